"""Deprecated name of ``tl_jax.pretrained``, of which ``python -m tl_jax.weights.convert`` is left."""
