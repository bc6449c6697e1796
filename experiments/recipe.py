"""Recipes with changed fields, for flags such as ``--set=FIELD=VALUE``; defines no flags itself."""

import ast
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_jax.utils.errors import UserError


def load_config(recipe: str, changes: Mapping[str, Any]) -> Any:
    """Return a recipe with fields changed; a UserError names a mistake in either."""
    from tl_jax.config import recipe as recipe_module
    from tl_jax.config import validate

    file, _, variant = recipe.partition(":")
    path = Path(file)
    try:
        module = importlib.import_module(f"configs.{path.stem}")
        make = module.get_config
    except (ImportError, AttributeError):
        raise UserError(f"--config={recipe} is no recipe in configs/") from None
    config = recipe_module.override(make(variant), tuple(changes.items()))
    validate.validate(config)
    return config


def format_value(value: Any) -> str:
    """Return a value as the record writes it."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def split_pair(text: str) -> tuple[str, str]:
    """Return field and rest of FIELD=..."""
    field, equals, value = text.partition("=")
    if not equals or not value:
        raise UserError(f"{text!r} is not FIELD=VALUE")
    return field.removeprefix("config."), value


def parse_pair(text: str) -> tuple[str, Any]:
    """Return field and value of FIELD=VALUE."""
    field, value = split_pair(text)
    return field, parse_literal(value)


def parse_values(text: str) -> Sequence[Any]:
    """Return the values of VALUE,VALUE,...; a value with commas of its own stands in brackets, as Python writes it."""
    try:
        values = ast.literal_eval(f"[{text}]")
    except (SyntaxError, ValueError):
        values = [parse_literal(word) for word in text.split(",")]
    if len({format_value(value) for value in values}) < len(values):
        raise UserError(f"{text!r} has a value twice")
    return values


def parse_literal(text: str) -> Any:
    """Return a Python literal, or the word itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
