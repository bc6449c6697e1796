"""Transfer learning in JAX: fine-tune pretrained networks, and measure whether and why the transfer helps."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_jax.learner import Learner, fine_tune, load_learner
    from tl_jax.models import create as create_model
    from tl_jax.models import names as list_models
    from tl_jax.pretrained import load
    from tl_jax.utils.log import show_messages

__version__ = "0.2.0"
__all__ = ["Learner", "create_model", "fine_tune", "list_models", "load", "load_learner", "show_messages"]

_HOMES = {
    "Learner": ("tl_jax.learner", "Learner"),
    "fine_tune": ("tl_jax.learner", "fine_tune"),
    "load_learner": ("tl_jax.learner", "load_learner"),
    "load": ("tl_jax.pretrained", "load"),
    "create_model": ("tl_jax.models", "create"),
    "list_models": ("tl_jax.models", "names"),
    "show_messages": ("tl_jax.utils.log", "show_messages"),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: importing everything takes seconds, and submodules need only the version."""
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
