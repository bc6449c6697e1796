"""Deprecated name of ``tl_jax.transferability``."""

import warnings

from tl_jax import transferability
from tl_jax.transferability import *  # noqa: F403

__all__ = []  # added to, as type checkers do not follow an assignment
__all__ += transferability.__all__

warnings.warn("tl_jax.distance is tl_jax.transferability now", DeprecationWarning, stacklevel=2)
