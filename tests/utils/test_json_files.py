"""JSON from outside is a value or one line, never a traceback."""

import json
import random

import pytest

from tl_jax.train import logging
from tl_jax.utils.errors import UserError
from tl_jax.utils.json_files import add_checksum, format_row, parse_json, parse_row, read_json

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


CONTENT = {"steps": 12, "loss": 0.123456789, "classes": ["a", "ß"], "nested": {"2": None, "10": -0.0}}


def flipped(content, chance):
    """Return bytes with one bit changed, wherever."""
    found = bytearray(content)
    found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    path, whole = tmp_path / "facts.json", json.dumps(add_checksum(CONTENT), indent=2).encode()
    path.write_bytes(whole)
    assert read_json(path) == CONTENT
    chance, noticed = random.Random(0), 0
    for _ in range(300):
        path.write_bytes(flipped(whole, chance))
        try:
            found = read_json(path, "restore it")
        except UserError as error:
            assert "facts.json is damaged (" in str(error) and "; restore it" in str(error)
            noticed += 1
        else:  # in the name of the hash, or in the space between two values
            assert {name: found[name] for name in CONTENT} == CONTENT
    assert noticed > 200


def test_who_changes_a_file_is_told_what_to_delete(tmp_path):
    path = tmp_path / "config.json"
    text = json.dumps(add_checksum({"name": "a", "seed": 1}), indent=2)
    path.write_text(text.replace('"seed": 1', '"seed": 2'))
    with pytest.raises(UserError, match="wrong checksum.*if you edited it, delete its line content_"):
        read_json(path)
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "content_sha256" not in line))
    assert read_json(path) == {"name": "a", "seed": 2}


def test_a_flipped_bit_in_a_row_is_noticed_or_changes_nothing():
    row, chance, noticed = {"step": 3, "split": "train", "loss": 0.5}, random.Random(0), 0
    assert parse_row(format_row(row), "x") == row == parse_row(json.dumps(row), "x")
    for _ in range(300):
        try:
            found = parse_row(flipped(format_row(row).encode(), chance).decode(), "metrics.jsonl, line 1,")
        except (UserError, UnicodeDecodeError):
            noticed += 1
        else:
            assert {name: found[name] for name in row} == row
    assert noticed > 200


def test_a_run_goes_on_without_a_row_that_is_damaged_and_says_so(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    rows = [format_row({"step": step, "split": "train", "loss": 0.5}) for step in (1, 2, 3, 4)]
    path.write_text("".join([rows[0], rows[1].replace("0.5", "0.4"), rows[2], rows[3][:9]]))
    logging.Log(tmp_path, step=3, total=4, verbose=False).close()
    assert path.read_text() == rows[0] + rows[2]
    assert "metrics.jsonl, line 2, is damaged (wrong checksum)" in capsys.readouterr().err
    path.write_bytes(rows[0].encode() + rows[1].encode().replace(b"0.5", b"0\xac5") + b"{}\n" + rows[2].encode())
    logging.Log(tmp_path, step=3, total=4, verbose=False).close()
    assert path.read_text() == rows[0] + rows[2]
    said = capsys.readouterr().err
    assert (
        "metrics.jsonl, line 2, is damaged (UnicodeDecodeError" in said and "line 3, is damaged (wrong checksum" in said
    )


def test_each_flipped_bit_of_metrics_is_told_when_a_run_goes_on(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    whole = "".join(format_row({"step": step, "loss": 0.5}) for step in (1, 2)).encode()
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            logging.Log(tmp_path, step=2, total=2, verbose=False).close()
            assert "damaged" in capsys.readouterr().err, bytes(damaged)
    path.write_bytes(whole[:-1])  # of which nothing is lost
    logging.Log(tmp_path, step=2, total=2, verbose=False).close()
    assert path.read_bytes() == whole and not capsys.readouterr().err
