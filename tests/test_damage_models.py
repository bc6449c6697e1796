"""Damaged models of several files give a value or one readable error: see ``tests.damage_models``.

TL_JAX_DAMAGE sets how many files of each kind are tried, other ones than the committed run has; to look into seed S
of a reader, run ``python -m tests.damage_models READER S 1``.
"""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.damage_models import READERS

pytestmark = pytest.mark.slow

COUNT = 100
MORE = int(os.environ.get("TL_JAX_DAMAGE", "0"))


@pytest.mark.parametrize("name", READERS)
def test_damaged_models_are_read_or_refused(name: str) -> None:
    count = MORE or COUNT
    command = [sys.executable, "-m", "tests.damage_models", name, str(COUNT if MORE else 0), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = done.stdout.splitlines()[-1] if done.stdout else "nothing read"
    assert done.returncode == 0, f"status {done.returncode} after {last}:\n{done.stderr[-3000:]}"
    read, refused = map(int, re.findall(r"(\d+) (?:read|refused)", last))
    assert read + refused == count and min(read, refused) > count // 20
