"""CI runs a part of the slow tests with each commit: the parts leave no file out."""

from pathlib import Path

import pytest

from tests.conftest import ROOT, part_of

pytestmark = pytest.mark.fast
PATHS = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_parts_are_all_files_each_once(count):
    parts = [part_of(PATHS, f"{index}/{count}") for index in range(count)]
    assert set().union(*parts) == set(PATHS) and sum(map(len, parts)) == len(PATHS)


def test_ci_runs_one_of_the_three_parts():
    script = (Path(ROOT) / ".ci" / "run").read_text()
    assert "% 3))" in script and 'TL_JAX_TEST_PART="$part/3"' in script


def test_there_is_no_other_part():
    with pytest.raises(AssertionError, match="parts of 3 are 0 to 2"):
        part_of(PATHS, "3/3")
