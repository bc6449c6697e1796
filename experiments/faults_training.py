"""Faults of disks, machines and users during a small run of the embedded default, with messages and outcomes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tl_jax.report import html
from tl_jax.train.logging import say
from tl_jax.train.workdir import read_json

ROOT = Path(__file__).parents[1]
RUN_FLAGS = (
    "--config=configs/digits_resnet.py", "--config.seeds=()", "--config.arms=()", "--config.epochs=20",
    "--config.batch_size=25", "--config.log_every=4", "--config.input.size=16", "--config.save_every=1",
    "--config.min_checkpoint_interval=0", "--config.optim.name=sgd", "--config.optim.ema=0.9",
)  # fmt: skip


FAKE_CLOCK = """
import pathlib, time
now, days = time.time, pathlib.Path({days!r})
time.time = lambda: now() + 86400 * float(days.read_text() or 0)
time.time_ns = lambda: int(time.time() * 1e9)
"""


class Section(NamedTuple):
    """What was found of one kind of fault: words, tables, and what ended badly."""

    title: str
    text: str
    tables: list[html.Table]
    bad: list[str]


class Ending(NamedTuple):
    """What a fault came to: the exit status and what was said of it."""

    status: int
    line: str


def training_section(names: Sequence[str], home: Path) -> Section:
    """Put in each fault, and compare the end with that of an undisturbed run."""
    rows, bad = [], []
    expected = finish_run(home / "whole")
    for name in names:
        folder = home / name.replace(" ", "_")
        folder.mkdir()
        try:
            ending, end = FAULTS[name](folder)
        except Skipped as e:
            rows.append((name, f"not tried: {e}", ""))
        else:
            result = "the bits of an undisturbed run" if end == expected else "OTHER VALUES"
            bad += [f"{name}: other values"] if end != expected else []
            line = ending.line.replace(str(folder), "DIR")
            rows.append((name, f"{line} (exit status {ending.status})" if line else "nothing", result))
        say(" | ".join(rows[-1]))
    table = html.Table(("fault", "what it printed", "the same command then came to"), rows)
    return Section("In training", "", [table], bad)


class Skipped(Exception):
    """This machine does not allow it."""


def start_run(folder: Path, **environment: str) -> subprocess.Popen:
    """Start the run in ``folder``."""
    return subprocess.Popen(
        [sys.executable, "run.py", *RUN_FLAGS, f"--workdir={folder}"], cwd=ROOT, env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for_end(process: subprocess.Popen) -> Ending:
    """Wait for the end; return how it ended and the line that says what was wrong, the last where there is one."""
    printed = process.communicate(timeout=300)[0].splitlines()
    lines = [line for line in printed if line.startswith(("error:", "WARNING:", "preempted:", "resuming"))]
    return Ending(process.returncode, "; ".join(lines))


def finish_run(folder: Path) -> str:
    """Run to the end; return the hash of the parameters."""
    end = wait_for_end(start_run(folder))
    if end.status:
        raise RuntimeError(f"the run did not end well: {end}")
    return read_json(folder / "summary.json")["parameters_sha256"]


def wait_for_checkpoint(process: subprocess.Popen, folder: Path, step: int = 16) -> None:
    """Wait until a checkpoint of ``step`` or later is whole."""
    while process.poll() is None and not any(int(path.name) >= step for path in list_checkpoints(folder)):
        time.sleep(0.01)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that are whole."""
    return sorted(
        (path for path in folder.glob("checkpoints/[0-9]*") if path.name.isdigit()), key=lambda p: int(p.name)
    )


def stop_run(folder: Path, signum: int = signal.SIGTERM) -> Ending:
    """Start the run and stop it half-way."""
    process = start_run(folder)
    wait_for_checkpoint(process, folder)
    process.send_signal(signum)
    return wait_for_end(process)


def call_mount(*arguments: object) -> None:
    """Call mount or umount."""
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode:
        raise Skipped(done.stderr.strip().splitlines()[-1] if done.stderr else f"{arguments[0]} failed")


def fill_disk(home: Path) -> tuple[Ending, str]:
    """A disk on which the third checkpoint has no room."""
    call_mount("mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", home)
    try:
        ending = wait_for_end(start_run(home / "run"))
        call_mount("mount", "-o", "remount,size=100m", home)
        return ending, finish_run(home / "run")
    finally:
        call_mount("umount", home)


def lose_mount(home: Path) -> tuple[Ending, str]:
    """A mount that goes away: the path then leads to the empty folder below it."""
    disk, mount_point = home / "disk", home / "seen"
    disk.mkdir()
    mount_point.mkdir()
    call_mount("mount", "--bind", disk, mount_point)
    process = start_run(mount_point / "run")
    wait_for_checkpoint(process, mount_point / "run")
    call_mount("umount", "-l", mount_point)
    ending = wait_for_end(process)
    call_mount("mount", "--bind", disk, mount_point)
    try:
        return ending, finish_run(mount_point / "run")
    finally:
        call_mount("umount", mount_point)


def corrupt_checkpoint(home: Path) -> tuple[Ending, str]:
    """A bit flips in the latest checkpoint."""
    stop_run(home / "run")
    latest = list_checkpoints(home / "run")[-1]
    file = max((latest / "variables").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return run_again(home / "run")


def interrupt_write(home: Path) -> tuple[Ending, str]:
    """The machine goes down while a checkpoint, and a row of metrics, is being written."""
    process = start_run(home / "run")
    wait_for_checkpoint(process, home / "run")
    while process.poll() is None and not list(home.glob("run/checkpoints/*.orbax-checkpoint-tmp/*")):
        time.sleep(0.0005)
    process.kill()
    wait_for_end(process)
    with (home / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    return run_again(home / "run")


def start_twice(home: Path) -> tuple[Ending, str]:
    """The same command is given twice."""
    first = start_run(home / "run")
    wait_for_checkpoint(first, home / "run", 2)
    second = wait_for_end(start_run(home / "run"))
    wait_for_end(first)
    return second, read_json(home / "run" / "summary.json")["parameters_sha256"]


def move_clock(home: Path) -> tuple[Ending, str]:
    """Python's clock goes forward by 400 days while it runs, and backward by 800 before it goes on."""
    days = home / "days"
    (home / "sitecustomize.py").write_text(FAKE_CLOCK.format(days=str(days)))
    environment = {"PYTHONPATH": str(home)}
    days.write_text("0")
    process = start_run(home / "run", **environment)
    wait_for_checkpoint(process, home / "run", 8)
    days.write_text("400")
    wait_for_checkpoint(process, home / "run", 20)
    process.send_signal(signal.SIGTERM)
    ending = wait_for_end(process)
    days.write_text("-400")
    wait_for_end(start_run(home / "run", **environment))
    return ending, read_json(home / "run" / "summary.json")["parameters_sha256"]


def run_again(folder: Path) -> tuple[Ending, str]:
    """Give the same command once more; what it says, and what it comes to."""
    ending = wait_for_end(start_run(folder))
    return ending, read_json(folder / "summary.json")["parameters_sha256"]


FAULTS: dict[str, Callable[[Path], tuple[Ending, str]]] = {
    "full disk": fill_disk,
    "lost mount": lose_mount,
    "corrupt checkpoint": corrupt_checkpoint,
    "half-written checkpoint": interrupt_write,
    "two processes": start_twice,
    "clock jumps": move_clock,
}
