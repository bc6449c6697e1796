"""Commands: what the user can mend is one line, and the process starts anew on huge pages once."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tl_jax.utils import command

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parents[2]
PREEMPTED = "preempted: stopped after step 7, which is saved; the same command goes on there"
SHOW = "import os, sys; from tl_jax.utils import command; command.use_huge_pages(); "
SHOW += "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:])"


def run(code, *arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="huge pages are asked of glibc")
def test_the_process_goes_on_with_the_setting_and_its_arguments():
    code, out, err = run(SHOW, "a b", "--x=*")
    assert (code, err) == (0, "") and out.endswith(f"{command.HUGE_PAGES} ['a b', '--x=*']")


def test_a_setting_of_the_users_stays():
    code, out, _ = run(SHOW, GLIBC_TUNABLES="glibc.malloc.arena_max=2")
    assert code == 0 and out.endswith("glibc.malloc.arena_max=2 []")


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        ("UserError('the lr is odd; make it even')", 2, "error: the lr is odd; make it even"),
        ("Preempted('stopped after step 7, which is saved')", 75, PREEMPTED),
        ("KeyboardInterrupt", 130, "stopped; the same command goes on where this one was"),
    ],
)
def test_what_ends_a_command_is_said_in_one_line(raised, code, line):
    program = "from tl_jax.utils import command; from tl_jax.utils.errors import Preempted, UserError\n"
    program += f"def main(_): raise {raised}\ncommand.run(main)"
    assert run(program) == (code, "", line)
