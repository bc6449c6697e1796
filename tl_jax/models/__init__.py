"""Models in Flax linen: pure, named layers, ``(output, endpoints)``."""

from tl_jax.models.registry import TEXT, create, names, options

__all__ = ["TEXT", "create", "names", "options"]
