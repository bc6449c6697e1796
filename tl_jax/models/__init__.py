"""Models in Flax linen: pure, named layers, ``(output, endpoints)``."""

from tl_jax.models.registry import POLICY, TEXT, create, names, options

__all__ = ["POLICY", "TEXT", "create", "names", "options"]
