"""Image models in Flax linen: pure, named layers, ``(logits, endpoints)``."""

from tl_jax.models.registry import create, names, options

__all__ = ["create", "names", "options"]
