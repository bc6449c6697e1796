"""Deprecated functions of the command line's calls; use the methods of ``tl_jax.Learner``."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tl_jax.config import recipe
from tl_jax.export.bundle import export
from tl_jax.learner import Learner
from tl_jax.training import test as evaluate
from tl_jax.training import train as run
from tl_jax.utils.environment import versions

__all__ = ["evaluate", "explain", "export", "find_lr", "play", "predict", "preview", "report", "run", "versions"]

warnings.warn("tl_jax.api is deprecated; use tl_jax.Learner(config, folder)", DeprecationWarning, stacklevel=2)


def _method(name: str) -> Callable[..., Any]:
    """Return a function that calls a method of the learner for a configuration and a folder."""

    def call(config: recipe.Config, folder: str | Path, *inputs: Any) -> Any:
        return getattr(Learner(config, folder), name)(*inputs)

    return call


explain, find_lr, play, preview, report = map(_method, ("explain", "find_lr", "play", "preview", "report"))
predict = _method("show_predictions")
