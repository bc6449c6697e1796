"""What others can load: bundles of weights, StableHLO programs, files of other libraries, and model cards."""
