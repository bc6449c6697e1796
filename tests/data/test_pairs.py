"""LFW's files of pairs and of people: read as its README describes them, and what is wrong with one is said by line."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from tl_jax.data import faces
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
# The form of LFW's pairs.txt: folds and pairs of each kind, then in each fold one person's pairs before two people's.
TEN = "2\t2\nAnn\t1\t2\nBo\t1\t3\nAnn\t1\tBo\t2\nAnn\t2\tCy\t1\nCy\t1\t2\nBo\t2\t3\nBo\t1\tCy\t2\nCy\t1\tAnn\t1\n"
FILES = [Path(f"set/{name}/{name}_{i:04d}.jpg") for name in ("Ann", "Bo", "Cy") for i in (1, 2, 3)]


def write(tmp_path, text):
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    return path


def test_folds_with_a_header(tmp_path):
    listed = faces.read_pairs(write(tmp_path, TEN))
    assert listed.identities == ("Ann", "Bo", "Cy") and listed.per_fold == 4
    found = faces.match_pairs(listed, FILES)
    assert found.first.tolist() == [0, 3, 0, 1, 6, 4, 3, 6] and found.second.tolist() == [1, 5, 4, 6, 7, 5, 7, 0]
    assert found.same.tolist() == [True, True, False, False] * 2 and found.fold.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize("head", ["", "2\n"])
def test_one_set_of_pairs(tmp_path, head):
    """As pairsDevTest.txt, whose first line counts the pairs of each kind, or without such a line."""
    text = head + "Ann 1 2\nBo 1 3\n\nAnn 1 Bo 2\nAnn 2 Ann 3\n"  # the last is one person, however written
    found = faces.match_pairs(faces.read_pairs(write(tmp_path, text)), FILES)
    assert found.same.tolist() == [True, True, False, True] and set(found.fold) <= set(range(10))


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "has no pairs"),
        ("2\t2\n", "has no pairs"),
        ("Ann 1 2\nAnn 1\n", "line 2: 'Ann 1' is not 'NAME N N' for one person or 'NAME N NAME N' for two"),
        ("Ann 1 2\nAnn one 2\n", "line 2: 'Ann one Ann 2' is not"),
        ("Ann 1 2\nAnn 0 2\n", "line 2: .* N from 1 on"),
        ("Ann 1 2 Bo 1 Cy\n", "line 1: "),
        ("Ann ² 2\n", "line 1: 'Ann ² Ann 2' is not"),
        (f"Ann {'9' * 5000} 2\n", "line 1: 'Ann 999.* is not"),
        (f"{'9' * 5000}\nAnn 1 2\n", "line 1: '999.* is not"),
        ("²\nAnn 1 2\n", "line 1: '²' is not"),
        ("999999999 999999999\nAnn 1 2\n", "line 1: 1,999,999,996,000,000,002 pairs declared"),
        ("Ann 1 2\n\nBo 2 2\n", "line 3 pairs an image with itself"),
        ("10\t300\nAnn\t1\t2\n", "line 1: 6,000 pairs declared .10 300., but 1 found"),
        ("1\t2\t3\nAnn\t1\t2\n", "line 1: '1 2 3' is not the numbers of folds"),
    ],
)
def test_malformed(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        faces.read_pairs(write(tmp_path, text))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_pictures_that_are_not_there(tmp_path):
    path = write(tmp_path, "Ann 1 2\nAnn 1 Bo 4\n")
    with pytest.raises(UserError, match=f"{path}, line 2: no image Bo/Bo_0004 .1 of 2 pairs lack one.; check"):
        faces.match_pairs(faces.read_pairs(path), FILES)
    with pytest.raises(UserError, match="has no pair of two people"):
        faces.match_pairs(faces.read_pairs(write(tmp_path, "Ann 1 2\n")), FILES)
    with pytest.raises(UserError, match="has no pair of one person"):
        faces.match_pairs(faces.read_pairs(write(tmp_path, "Ann 1 Bo 2\n")), FILES)
    with pytest.raises(UserError, match="no file .*none.txt; check config.faces.pairs"):
        faces.read_pairs(tmp_path / "none.txt")
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="x.txt.*not UTF-8|cannot read"):
        faces.read_pairs(tmp_path / "x.txt")


def test_pairs_that_lack_a_picture_are_counted_once_for_all(tmp_path):
    path = write(tmp_path, "Ann 1 2\nAnn 1 Bo 4\nBo 1 4\nBo 1 2\nCy 1 7\n")
    with pytest.raises(UserError, match=f"{path}, line 2: .* image Bo/Bo_0004 .3 of 5 pairs lack one.; check"):
        faces.match_pairs(faces.read_pairs(path), FILES)
    renamed = [file.with_name(f"{file.stem}_0.png") for file in FILES]  # as tools for alignment write them
    with pytest.raises(UserError, match="no image Ann/Ann_0001 .*, but Ann_0001_0.png exists: rename such files"):
        faces.match_pairs(faces.read_pairs(path), renamed)


def test_pairs_with_a_byte_order_mark_and_names_in_the_other_unicode_form(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    path = write(tmp_path, f"\ufeff{nfc} 1 2\n{nfc} 1 Bo 1\n")
    files = [Path(f"set/{nfd}/{nfd}_{i:04d}.jpg") for i in (1, 2)] + [Path("set/Bo/day/Bo_0001.jpg")]
    found = faces.match_pairs(faces.read_pairs(path), files)
    assert found.first.tolist() == [0, 0] and found.second.tolist() == [1, 2]


def test_people_with_counts_or_without(tmp_path):
    """As peopleDevTest.txt: the number of people, then a name and its pictures a line."""
    assert faces.read_identities(write(tmp_path, "2\nAnn Lee\t3\nBo\t1\n")) == ("Ann Lee", "Bo")
    assert faces.read_identities(write(tmp_path, "Cy\nBo\nCy\n")) == ("Cy", "Bo")
    with pytest.raises(UserError, match="names no people"):
        faces.read_identities(write(tmp_path, "3\n"))


def test_numbers_of_lfw_itself():
    """10 folds of 300 and 300 pairs, as LFW's own: 6,000."""
    lines = [f"A\t{i % 2 + 1}\t3" if i % 600 < 300 else f"A\t1\tB\t{i % 3 + 1}" for i in range(6000)]
    files = [Path(f"{name}/{name}_{i:04d}.jpg") for name in "AB" for i in (1, 2, 3)]
    path = Path("pairs.txt")
    parsed = tuple(faces._parse_line(path, i, line.split("\t")) for i, line in enumerate(lines))
    found = faces.match_pairs(faces.PairList(path, parsed, 600), files)
    assert np.bincount(found.fold).tolist() == [600] * 10
    assert all(found.same[found.fold == fold].sum() == 300 for fold in range(10))
