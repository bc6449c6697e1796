"""JSON that comes from a file: whatever is wrong with it is one line that names the file."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tl_jax.errors import UserError

NAMES = {dict: "object", list: "list"}
DEEPEST = 100  # levels of nesting; more would exhaust the stack of whoever compares or prints the content


class Field(NamedTuple):
    """What a field may hold: in words, which follow "not", and as a test of its value."""

    words: str
    valid: Callable[[Any], bool]


def integer(least: int, most: int) -> Field:
    """Return the field of a whole number within bounds."""
    valid = lambda value: type(value) is int and least <= value <= most  # noqa: E731
    return Field(f"a whole number from {least:,} to {most:,}", valid)


def number(least: float, most: float) -> Field:
    """Return the field of a number within bounds."""
    valid = lambda value: type(value) in (int, float) and least <= value <= most  # noqa: E731
    return Field(f"a number from {least:g} to {most:g}", valid)


def choice(*values: str) -> Field:
    """Return the field of one of some texts."""
    return Field(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def list_of(entry: Field) -> Field:
    """Return the field of a list of such entries."""
    valid = lambda value: isinstance(value, list) and all(map(entry.valid, value))  # noqa: E731
    return Field(f"a list of entries that are each {entry.words}", valid)


def object_of(entry: Field) -> Field:
    """Return the field of an object with such entries."""
    valid = lambda value: isinstance(value, dict) and all(map(entry.valid, value.values()))  # noqa: E731
    return Field(f"an object with entries that are each {entry.words}", valid)


def _text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)  # cannot be printed


TEXT = Field("a text", _text)
FLAG = Field("true or false", lambda value: isinstance(value, bool))
OBJECT = Field("an object", lambda value: isinstance(value, dict))


def check_fields(content: Mapping[str, Any], where: object, fields: Mapping[str, Field], action: str = "") -> None:
    """Check the type and the range of the values that a file has for these fields; null is as good as absent.

    Args:
        content: of a JSON object.
        where: it stands, for the message.
        fields: name -> what it may hold.
        action: what the user can do if a value is wrong.

    Raises:
        UserError: names the first field whose value is wrong.
    """
    for name, field in fields.items():
        if (value := content.get(name)) is not None and not field.valid(value):
            shown = f"an {NAMES[dict]}" if isinstance(value, dict) else "a list" if isinstance(value, list) else value
            shown = repr(shown) if isinstance(value, str) else shown
            raise UserError(f"{where}: {name} is {shown}, not {field.words}{_then(action)}")


def parse_json(text: str | bytes, where: object, action: str = "", kind: type = dict) -> Any:
    """Return the value that ``text`` holds.

    Args:
        text: JSON.
        where: it stands, for the message: a file, perhaps with a line.
        action: what the user can do if it is damaged.
        kind: type that the value must have, dict or list.

    Raises:
        UserError: the text is no JSON, is nested too deeply, has a number of thousands of digits,
            or is of another type.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged ({error}){_then(action)}") from None
    if not isinstance(content, kind):
        raise UserError(f"{where} is damaged (it holds no JSON {NAMES[kind]}){_then(action)}")
    if _too_deep(content):
        raise UserError(f"{where} is damaged (it is nested more than {DEEPEST} levels deep){_then(action)}")
    return content


def _too_deep(content: Any) -> bool:
    level = [content]
    for _ in range(DEEPEST):
        inner = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
    return bool(level)


def read_json(path: Path, action: str = "", kind: type = dict) -> Any:
    """Return the value in a JSON file; see ``parse_json``.

    Raises:
        UserError: also if the file cannot be read.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}){_then(action)}") from None
    return parse_json(text, path, action, kind)


def _then(action: str) -> str:
    return f"; {action}" if action else ""
