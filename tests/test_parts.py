"""CI runs a part of the slow tests with each commit: the parts leave no file out."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT, part_of

pytestmark = pytest.mark.fast
PATHS = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_parts_are_all_files_each_once(count):
    parts = [part_of(PATHS, f"{index}/{count}") for index in range(count)]
    assert set().union(*parts) == set(PATHS) and sum(map(len, parts)) == len(PATHS)


def test_the_parts_of_ci_are_all_tenths():
    script = (Path(ROOT) / ".ci" / "run").read_text()
    count = int(re.findall(r"% (\d+)\)\)", script)[0])  # part 0 is the oldest versions
    assert count == 11 and f"part $part of 0 to {count - 1}" in script
    assert f'TL_JAX_TEST_PART="$((part - 1))/{count - 1}"' in script and '[ "$part" = 0 ]' in script


def test_there_is_no_other_part():
    with pytest.raises(AssertionError, match="parts of 3 are 0 to 2"):
        part_of(PATHS, "3/3")
