"""JSON that comes from a file: whatever is wrong with it is one line that names the file."""

import json
from pathlib import Path
from typing import Any

from tl_jax.errors import UserError

NAMES = {dict: "object", list: "list"}


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
    return content


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
