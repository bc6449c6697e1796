"""Transfer methods: freezing, optimization, regularization, adapters and training phases."""
