"""JSON from outside is a value or one line, never a traceback."""

import pytest

from tl_jax.errors import UserError
from tl_jax.json_files import parse_json, read_json

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("text", [
    "[" * 200_000, '{"a":' * 200_000, "9" * 10_000, "", "{", "nul", '{"a": 1}{', "[]", '"x"', "3", "null", b"\xff\xfe{",
])  # fmt: skip
def test_whatever_is_wrong_is_one_line(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=r"a\.json is damaged \(.*\); make it anew$"):
        read_json(path, "make it anew")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read .* make it anew"):
        read_json(tmp_path, "make it anew")


def test_what_is_right_is_returned(tmp_path):
    assert parse_json('{"a": [1]}', "x", "y") == {"a": [1]} and parse_json("[1]", "x", "y", list) == [1]
