"""Text files as strings, whatever their encoding."""

import codecs
from pathlib import Path

from tl_jax.errors import UserError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Line ends stay as they are. Other encodings are refused, not guessed: a wrong guess changes letters in silence.

    Raises:
        UserError: the file cannot be read, or is in another encoding; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); check the path and its permissions") from error
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); "
            f"convert it, if it is Latin-1 with: iconv -f LATIN1 -t UTF-8 {path.name}"
        ) from error
    if "\0" in text:
        raise UserError(f"{path} has NUL characters, so it is no text in UTF-8; store it as UTF-8")
    return text
