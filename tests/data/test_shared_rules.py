"""What all readers of data agree on: names of splits, litter, encodings."""

from pathlib import PurePath

import pytest

from tl_jax.data.dataset import find_splits, parse_split
from tl_jax.data.text import read_text
from tl_jax.data.walker import has_ignored_part, is_ignored
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("name, split", [
    ("train", "train"), ("Training", "train"), ("val", "validation"), ("valid", "validation"), ("dev", "validation"),
    ("eval", "validation"), ("Testing", "test"), ("TEST", "test"), ("cats", None), ("", None),
])  # fmt: skip
def test_a_split_is_known_by_all_its_names(name: str, split: str | None) -> None:
    assert parse_split(name) == split


def test_splits_are_found_among_other_names() -> None:
    assert find_splits(["Testing", "readme", "Training", "dev"], "x") == {
        "train": "Training", "validation": "dev", "test": "Testing",
    }  # fmt: skip


def test_two_names_of_one_split_are_refused() -> None:
    with pytest.raises(UserError, match="'dev' and 'val' both denote the validation split"):
        find_splits(["val", "dev", "train"], "folder")


@pytest.mark.parametrize("name", [
    ".hidden", "._1.jpg", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db",
])  # fmt: skip
def test_litter_is_known(name: str) -> None:
    assert is_ignored(name) and has_ignored_part(PurePath("class") / name / "1.jpg")


def test_data_is_no_litter() -> None:
    assert not is_ignored("cat") and not has_ignored_part(PurePath("cat/1.jpg"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_file_is_read_in_each_encoding(tmp_path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("café\r\n".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "café\r\n"


@pytest.mark.parametrize("data, said", [
    ("a\ncafé\n".encode("latin-1"), "a.txt, line 2: not UTF-8 .byte 0xe9.; convert it"),
    ("café".encode("utf-16-le"), "not UTF-8|NUL"),
    (None, "cannot read .*a.txt"),
])  # fmt: skip
def test_other_encodings_are_one_line_that_says_what_to_do(tmp_path, data: bytes | None, said: str) -> None:
    if data is not None:
        (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError, match=said):
        read_text(tmp_path / "a.txt")
