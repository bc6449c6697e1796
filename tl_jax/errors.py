"""Deprecated name of ``tl_jax.utils.errors``."""

import warnings

from tl_jax.utils.errors import Diverged, Preempted, UserError

__all__ = ["Diverged", "Preempted", "UserError"]

warnings.warn("tl_jax.errors is tl_jax.utils.errors now", DeprecationWarning, stacklevel=2)
