"""Damaged data sets give values or one readable error: no traceback, hang, wild allocation or file read elsewhere.

TL_JAX_DAMAGE sets how many files of each kind are tried, other ones than the committed run has; to look into seed S
of a reader, run ``python -m tests.data.damage READER S 1``.
"""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.data.damage import READERS

pytestmark = pytest.mark.slow

COUNT = 100
MORE = int(os.environ.get("TL_JAX_DAMAGE", "0"))


@pytest.mark.parametrize("name", READERS)
def test_damaged_sets_are_read_or_refused(name: str) -> None:
    count = MORE or COUNT
    command = [sys.executable, "-m", "tests.data.damage", name, str(COUNT if MORE else 0), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = done.stdout.splitlines()[-1] if done.stdout else "nothing read"
    assert done.returncode == 0, f"status {done.returncode} after {last}:\n{done.stderr[-3000:]}"
    read, refused = map(int, re.findall(r"(\d+) (?:read|refused)", last))
    assert read + refused == count and refused > count // 10
