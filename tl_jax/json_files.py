"""JSON that comes from a file: whatever is wrong with it is one line that names the file.

What a run writes has a hash within, so that a bit that flips is noticed; a file without one is taken as it is.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl_jax.errors import UserError

NAMES = {dict: "object", list: "list"}
SEAL = "content_sha256"  # of the rest, in an object
_ROW = re.compile(r'(.*), "crc32": "([0-9a-f]{8})"\}')


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
        UserError: also if the file cannot be read, or its hash, see ``sealed``, is not that of its content.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}){_then(action)}") from None
    content = parse_json(text, path, action, kind)
    seal = content.pop(SEAL, None) if kind is dict else None
    if seal is not None and seal != _hash(content):
        edited = f"; if you changed it yourself, delete its line {SEAL}"
        raise UserError(f"{path} is damaged (it is not as it was written){_then(action)}{edited}")
    return content


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with its hash, first, so that whoever changes the file can delete that line."""
    return {SEAL: _hash(json.loads(json.dumps(content))), **content}


def sealed_row(content: Mapping[str, Any]) -> str:
    """Return an object as a line of a file of rows, with a checksum at its end."""
    text = json.dumps(content)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'


def parse_row(line: str, where: object) -> dict[str, Any]:
    """Return the object of a row without its checksum.

    Raises:
        UserError: see ``parse_json``; or the checksum is not that of the row.
    """
    found = _ROW.fullmatch(line.rstrip("\n"))
    if not found:
        return parse_json(line, where)
    text = found[1] + "}"
    if f"{zlib.crc32(text.encode('utf-8', 'replace')):08x}" != found[2]:
        raise UserError(f"{where} is damaged (it is not as it was written)")
    return parse_json(text, where)


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _then(action: str) -> str:
    return f"; {action}" if action else ""
