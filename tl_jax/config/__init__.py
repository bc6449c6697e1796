"""Configurations: their fields, validation, and the shipped recipes."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def recipes_dir() -> Path:
    """Return the folder of the shipped recipes: ``configs/`` in a checkout, ``tl_jax/recipes`` in an installation."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"
