"""Commands: what the user can mend is one line, and the process starts anew on huge pages once.

They say what they are busy with: before the heavy imports, while they compile, and with an honest ETA.
"""

import fcntl
import os
import platform
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tl_jax.train.logging import Log
from tl_jax.utils import command

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parents[2]
PREEMPTED = "preempted: stopped after step 7, which is saved; run the same command to resume"
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
        ("KeyboardInterrupt", 130, "stopped; run the same command to resume"),
    ],
)
def test_what_ends_a_command_is_said_in_one_line(raised, code, line):
    program = "from tl_jax.utils import command; from tl_jax.utils.errors import Preempted, UserError\n"
    program += f"def main(_): raise {raised}\ncommand.run(main)"
    assert run(program) == (code, "", line)


def on_terminal(code: str, *argv: str) -> str:
    """Return what a Python program writes to a terminal of 100 columns."""
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {**os.environ, "GLIBC_TUNABLES": ""}
    command_line = [sys.executable, "-c", code, *argv]
    with subprocess.Popen(command_line, stdin=other, stdout=other, stderr=other, cwd=ROOT, env=environment) as process:
        os.close(other)
        text = b""
        while True:
            try:
                data = os.read(main, 4096)
            except OSError:  # Linux' way to say that the other side has closed
                break
            if not data:
                break
            text += data
    os.close(main)
    assert process.returncode == 0, text.decode()
    return text.decode()


@pytest.mark.parametrize("mode", ["train", "eval", "export", "predict", "explain", "play", "preview", "find_lr"])
def test_the_first_words_come_before_the_heavy_imports(tmp_path, mode):
    (tmp_path / "jax.py").write_text("raise SystemExit(0)\n")  # where the slow part would begin
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, '.']; from tl_jax import cli; cli.main()"
    assert "loading JAX" in on_terminal(code, f"--mode={mode}")


def test_a_wait_shows_its_seconds_and_leaves_nothing():
    code = (
        "import time; from tl_jax.utils import command; command.REFRESH_SECONDS = 0.1\n"
        "with command.show_elapsed('thinking'):\n"
        "    with command.show_elapsed('inner'): time.sleep(1.5)\n"
        "print('done')"
    )
    text = on_terminal(code)
    assert "thinking (00:00)" in text and "thinking (00:01)" in text and "inner" not in text
    assert text.split("\r")[-2].strip() == "" or "done" in text.split("\r")[-2]


def test_nothing_of_it_is_written_to_a_file():
    code = "from tl_jax.utils.command import show_elapsed\nwith show_elapsed('thinking'): print('done')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_the_time_left_does_not_count_compiling(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    log = Log(tmp_path, 0, 10, True)
    log.start_bar(0)
    time.sleep(0.01)
    log.progress(1)
    log.exclude_time(-3600.0)  # an hour of steps ...
    log.exclude_time(3600.0)  # ... which was compiling
    assert log._bar is not None and 0 < log._bar.format_dict["elapsed"] < 60
    log.close()


def test_no_bar_stands_still_while_the_first_step_compiles(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    log = Log(tmp_path, 0, 10, True)
    assert "0/10" not in capsys.readouterr().err
    log.start_bar(0)
    log.close()
    assert "0/10" in capsys.readouterr().err


def test_an_advice_names_flags_and_a_problem_does_not():
    said = "config.optim.lr=1 is too high; set config.optim.lr=0.1, or look at config.json in RUN/config.x"
    shown = "config.optim.lr=1 is too high; set --config.optim.lr=0.1, or look at config.json in RUN/config.x"
    assert command.name_flags(said) == shown and command.name_flags("config.seed: no") == "config.seed: no"
