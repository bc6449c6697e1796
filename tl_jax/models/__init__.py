"""Models in Flax linen: pure, named layers, ``(output, endpoints)``."""

from tl_jax.models.registry import POLICY, TEXT, blocks, create, names, options

__all__ = ["POLICY", "TEXT", "blocks", "create", "names", "options"]
