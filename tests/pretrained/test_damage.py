"""Damaged files of every format give arrays or one readable error: no crash, no hang, no wild allocation, nothing run.

TL_JAX_DAMAGE sets how many files of each format are tried, other ones than the committed run has; to look into seed S
of a format, run ``python -m tests.pretrained.damage FORMAT S 1``.
"""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.pretrained import damage
from tests.pretrained.files import WRITERS

pytestmark = pytest.mark.slow

COUNT = 100  # 1000 files in all
MORE = int(os.environ.get("TL_JAX_DAMAGE", "0"))


def run(*arguments: str) -> tuple[int, str, str]:
    """Run ``damage`` in a process of its own, which may end badly; return its status and what it printed."""
    command = [sys.executable, "-m", "tests.pretrained.damage", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_are_read_or_refused(name: str) -> None:
    count = MORE or COUNT
    status, out, err = run(name, str(COUNT if MORE else 0), str(count))
    last = out.splitlines()[-1] if out else "nothing read"
    assert status == 0, f"status {status} after {last}:\n{err[-3000:]}"
    read, refused = map(int, re.findall(r"(\d+) (?:read|refused)", last))
    assert read + refused == count
    assert min(read, refused) > count // 20  # or the damage is too mild, or too harsh, to tell anything


@pytest.mark.parametrize("harm", damage.HARMS)
def test_the_harness_sees_harm(harm: str) -> None:
    status, out, err = run("--harm", harm)
    words = {"crash": "Segmentation", "hang": "in harm", "allocation": "MemoryError", "execution": "os.system"}
    assert status != 0 and "seed 0" in out and words.get(harm, "ZeroDivisionError") in err
