"""Faults of disks, machines and people while the embedded default trains in small; what it printed and came to."""

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
RUN = (
    "--config=configs/digits_resnet.py", "--config.seeds=()", "--config.arms=()", "--config.epochs=20",
    "--config.batch_size=25", "--config.log_every=4", "--config.input.size=16", "--config.save_every=1",
    "--config.min_checkpoint_interval=0", "--config.optim.name=sgd", "--config.optim.ema=0.9",
)  # fmt: skip


CLOCK = """
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


class Told(NamedTuple):
    """What a fault came to: the exit status and what was said of it."""

    status: int
    line: str


def section(names: Sequence[str], home: Path) -> Section:
    """Put in each fault, and compare the end with that of an undisturbed run."""
    rows, bad = [], []
    whole = finish(home / "whole")
    for name in names:
        folder = home / name.replace(" ", "_")
        folder.mkdir()
        try:
            said, end = FAULTS[name](folder)
        except Skipped as e:
            rows.append((name, f"not tried: {e}", ""))
        else:
            same = "the bits of an undisturbed run" if end == whole else "OTHER VALUES"
            bad += [f"{name}: other values"] if end != whole else []
            line = said.line.replace(str(folder), "DIR")
            rows.append((name, f"{line} (exit status {said.status})" if line else "nothing", same))
        say(" | ".join(rows[-1]))
    table = html.Table(("fault", "what it printed", "the same command then came to"), rows)
    return Section("In training", "", [table], bad)


class Skipped(Exception):
    """This machine does not allow it."""


def start(folder: Path, **environment: str) -> subprocess.Popen:
    """Start the run in ``folder``."""
    return subprocess.Popen(
        [sys.executable, "run.py", *RUN, f"--workdir={folder}"], cwd=ROOT, env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def told(process: subprocess.Popen) -> Told:
    """Wait for the end; return how it ended and the line that says what was wrong, the last where there is one."""
    said = process.communicate(timeout=300)[0].splitlines()
    lines = [line for line in said if line.startswith(("error:", "WARNING:", "preempted:", "resuming"))]
    return Told(process.returncode, "; ".join(lines))


def finish(folder: Path) -> str:
    """Run to the end; return the hash of the parameters."""
    end = told(start(folder))
    if end.status:
        raise RuntimeError(f"the run did not end well: {end}")
    return read_json(folder / "summary.json")["parameters_sha256"]


def reach(process: subprocess.Popen, folder: Path, step: int = 16) -> None:
    """Wait until a checkpoint of ``step`` or later is whole."""
    while process.poll() is None and not any(int(path.name) >= step for path in saved(folder)):
        time.sleep(0.01)


def saved(folder: Path) -> list[Path]:
    """Return the checkpoints that are whole."""
    return sorted(
        (path for path in folder.glob("checkpoints/[0-9]*") if path.name.isdigit()), key=lambda p: int(p.name)
    )


def stopped(folder: Path, signum: int = signal.SIGTERM) -> Told:
    """Start the run and stop it half-way."""
    process = start(folder)
    reach(process, folder)
    process.send_signal(signum)
    return told(process)


def mount(*arguments: object) -> None:
    """Call mount or umount."""
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode:
        raise Skipped(done.stderr.strip().splitlines()[-1] if done.stderr else f"{arguments[0]} failed")


def full_disk(home: Path) -> tuple[Told, str]:
    """A disk on which the third checkpoint has no room."""
    mount("mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", home)
    try:
        said = told(start(home / "run"))
        mount("mount", "-o", "remount,size=100m", home)
        return said, finish(home / "run")
    finally:
        mount("umount", home)


def lost_mount(home: Path) -> tuple[Told, str]:
    """A mount that goes away: the path then leads to the empty folder below it."""
    disk, seen = home / "disk", home / "seen"
    disk.mkdir()
    seen.mkdir()
    mount("mount", "--bind", disk, seen)
    process = start(seen / "run")
    reach(process, seen / "run")
    mount("umount", "-l", seen)
    said = told(process)
    mount("mount", "--bind", disk, seen)
    try:
        return said, finish(seen / "run")
    finally:
        mount("umount", seen)


def corrupt(home: Path) -> tuple[Told, str]:
    """A bit flips in the latest checkpoint."""
    stopped(home / "run")
    latest = saved(home / "run")[-1]
    file = max((latest / "variables").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return again(home / "run")


def half_written(home: Path) -> tuple[Told, str]:
    """The machine goes down while a checkpoint, and a row of metrics, is being written."""
    process = start(home / "run")
    reach(process, home / "run")
    while process.poll() is None and not list(home.glob("run/checkpoints/*.orbax-checkpoint-tmp/*")):
        time.sleep(0.0005)
    process.kill()
    told(process)
    with (home / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    return again(home / "run")


def two_processes(home: Path) -> tuple[Told, str]:
    """The same command is given twice."""
    first = start(home / "run")
    reach(first, home / "run", 2)
    second = told(start(home / "run"))
    told(first)
    return second, read_json(home / "run" / "summary.json")["parameters_sha256"]


def clock_jumps(home: Path) -> tuple[Told, str]:
    """Python's clock goes forward by 400 days while it runs, and backward by 800 before it goes on."""
    days = home / "days"
    (home / "sitecustomize.py").write_text(CLOCK.format(days=str(days)))
    fake = {"PYTHONPATH": str(home)}
    days.write_text("0")
    process = start(home / "run", **fake)
    reach(process, home / "run", 8)
    days.write_text("400")
    reach(process, home / "run", 20)
    process.send_signal(signal.SIGTERM)
    said = told(process)
    days.write_text("-400")
    told(start(home / "run", **fake))
    return said, read_json(home / "run" / "summary.json")["parameters_sha256"]


def again(folder: Path) -> tuple[Told, str]:
    """Give the same command once more; what it says, and what it comes to."""
    said = told(start(folder))
    return said, read_json(folder / "summary.json")["parameters_sha256"]


FAULTS: dict[str, Callable[[Path], tuple[Told, str]]] = {
    "full disk": full_disk,
    "lost mount": lost_mount,
    "corrupt checkpoint": corrupt,
    "half-written checkpoint": half_written,
    "two processes": two_processes,
    "clock jumps": clock_jumps,
}
