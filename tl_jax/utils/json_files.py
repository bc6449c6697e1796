"""Read and write JSON files, with one-line errors for damaged ones.

Files of a run contain a checksum, so that flipped bits are noticed; a file without one is not verified.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tl_jax.utils.errors import UserError
from tl_jax.utils.plugins import MODULE_NAME

JSON_TYPES = {dict: "object", list: "list"}
CHECKSUM_KEY = "content_sha256"  # checksum of the other entries
_ROW = re.compile(r'(.*), "crc32": "([0-9a-f]{8})"\}')
MAX_DEPTH = 100  # levels of nesting; more would exhaust the stack in later use


class Field(NamedTuple):
    """Allowed values of a field: a description that follows "not", and a test."""

    description: str
    is_valid: Callable[[Any], bool]


def integer(low: int, high: int) -> Field:
    """Return a field for an integer within bounds."""
    is_valid = lambda value: type(value) is int and low <= value <= high  # noqa: E731
    return Field(f"an integer from {low:,} to {high:,}", is_valid)


def number(low: float, high: float) -> Field:
    """Return a field for a number within bounds."""
    is_valid = lambda value: type(value) in (int, float) and low <= value <= high  # noqa: E731
    return Field(f"a number from {low:g} to {high:g}", is_valid)


def choice(*values: str) -> Field:
    """Return a field for one of several texts."""
    return Field(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def list_of(entry: Field) -> Field:
    """Return a field for a list of such entries."""
    is_valid = lambda value: isinstance(value, list) and all(map(entry.is_valid, value))  # noqa: E731
    return Field(f"a list of entries that are each {entry.description}", is_valid)


def object_of(entry: Field) -> Field:
    """Return a field for an object with such entries."""
    is_valid = lambda value: isinstance(value, dict) and all(map(entry.is_valid, value.values()))  # noqa: E731
    return Field(f"an object with entries that are each {entry.description}", is_valid)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any(
        "\ud800" <= character <= "\udfff" for character in value
    )  # cannot be printed


STRING = Field("a text", _is_text)
MODULES = Field(
    "a list of module names",
    lambda value: isinstance(value, list) and all(_is_text(name) and MODULE_NAME.fullmatch(name) for name in value),
)
BOOLEAN = Field("true or false", lambda value: isinstance(value, bool))
OBJECT = Field("an object", lambda value: isinstance(value, dict))


def check_fields(content: Mapping[str, Any], where: object, fields: Mapping[str, Field], action: str = "") -> None:
    """Check the types and ranges of the values of some fields; null counts as missing.

    Args:
        content: content of a JSON object.
        where: its location, for the message.
        fields: name -> allowed values.
        action: action for the user if a value is wrong.

    Raises:
        UserError: names the first field with a wrong value.
    """
    for name, field in fields.items():
        if (value := content.get(name)) is not None and not field.is_valid(value):
            shown = (
                f"an {JSON_TYPES[dict]}" if isinstance(value, dict) else "a list" if isinstance(value, list) else value
            )
            shown = repr(shown) if isinstance(value, str) else shown
            raise UserError(f"{where}: {name} is {shown}, not {field.description}{_format_action(action)}")


def parse_json(text: str | bytes, where: object, action: str = "", kind: type = dict) -> Any:
    """Return the value in a JSON text.

    Args:
        text: JSON.
        where: its location, for the message: a file, optionally with a line.
        action: action for the user if it is damaged.
        kind: type that the value must have, dict or list.

    Raises:
        UserError: the text is no JSON, is nested too deeply, has a number with thousands of digits, or has another
            type.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged ({error}){_format_action(action)}") from None
    if not isinstance(content, kind):
        raise UserError(f"{where} is damaged (no JSON {JSON_TYPES[kind]}){_format_action(action)}")
    if _too_deep(content):
        raise UserError(f"{where} is damaged (nested more than {MAX_DEPTH} levels deep){_format_action(action)}")
    return content


def _too_deep(content: Any) -> bool:
    level = [content]
    for _ in range(MAX_DEPTH):
        groups = (node.values() if isinstance(node, dict) else node for node in level)
        level = [child for group in groups for child in group if isinstance(child, dict | list)]
    return bool(level)


def read_json(path: Path, action: str = "", kind: type = dict) -> Any:
    """Return the value in a JSON file; see ``parse_json``.

    Raises:
        UserError: also if the file cannot be read, or its checksum, see ``add_checksum``, is wrong.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}){_format_action(action)}") from None
    content = parse_json(text, path, action, kind)
    checksum = content.pop(CHECKSUM_KEY, None) if kind is dict else None
    if checksum is not None and checksum != _sha256(content):
        hint = f"; if you edited it, delete its line {CHECKSUM_KEY}"
        raise UserError(f"{path} is damaged (wrong checksum){_format_action(action)}{hint}")
    return content


def add_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with its checksum as the first entry, so that a user who edits the file can delete that line."""
    return {CHECKSUM_KEY: _sha256(json.loads(json.dumps(content))), **content}


def format_row(content: Mapping[str, Any]) -> str:
    """Return an object as a line of a JSONL file, with a checksum at its end."""
    text = json.dumps(content)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'


def parse_row(line: str, where: object, needs_checksum: bool = False) -> dict[str, Any]:
    """Return the object of a row without its checksum.

    Args:
        line: the row.
        where: its location, for messages.
        needs_checksum: whether a row without one, as written by 0.1, is damaged: a flipped bit may be in its name.

    Raises:
        UserError: see ``parse_json``; or the checksum is wrong.
    """
    match = _ROW.fullmatch(line.rstrip("\n"))
    if not match and not needs_checksum:
        return parse_json(line, where)
    text = match[1] + "}" if match else ""
    if not match or f"{zlib.crc32(text.encode('utf-8', 'replace')):08x}" != match[2]:
        raise UserError(f"{where} is damaged (wrong checksum)")
    return parse_json(text, where)


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _format_action(action: str) -> str:
    return f"; {action}" if action else ""
