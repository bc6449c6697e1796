"""Deprecated name of ``tl_jax.utils.errors``."""

import warnings

from tl_jax.utils.errors import Diverged, Preempted, UserError

__all__ = ["Diverged", "Preempted", "UserError"]

warnings.warn("tl_jax.errors is deprecated; import tl_jax.utils.errors", DeprecationWarning, stacklevel=2)
