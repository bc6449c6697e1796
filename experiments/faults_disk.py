"""A disk without room, in each mode: one line, and the same command goes through once there is room."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.faults_training import ROOT, Section, Skipped, call_mount
from tl_jax.report import html
from tl_jax.train.logging import say

DIGITS = (
    "--config=configs/digits_resnet.py:smoke", "--config.seeds=()", "--config.arms=()", "--config.input.size=8",
    "--config.augment.crop_pad=0", "--config.calibrate=True",
)  # fmt: skip
POLE = ("--config=configs/cartpole_ppo.py:smoke",)
# What each mode is given; those that need a run come with the recipe that it was trained by.
MODES = {
    "train": DIGITS, "eval": DIGITS, "predict": DIGITS, "explain": DIGITS, "preview": DIGITS, "report": DIGITS,
    "export": DIGITS, "find_lr": DIGITS, "play": POLE,
}  # fmt: skip
NEW = ("train", "preview", "find_lr")
MIB = 2**20


def disk_section(home: Path) -> Section:
    """Fill the disk before each mode, and give the same command again when there is room."""
    rows, bad = [], []
    picture = home / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(picture)
    runs = {DIGITS: home / "digits", POLE: home / "pole"}
    cache = {**os.environ, "TL_JAX_CACHE": str(home / "cache")}
    for recipe, folder in runs.items():
        call_mode("train", recipe, folder, cache)
    mount_point = home / "disk"
    mount_point.mkdir()
    for name, recipe in [*MODES.items(), ("train, the caches alone", DIGITS)]:
        mode = name.partition(",")[0]
        input_flags = (f"--input={picture}",) if mode in ("predict", "explain") else ()
        try:
            with small_disk(mount_point):
                row, passed = try_mode(name, mode, (*recipe, *input_flags), runs[recipe], mount_point, cache)
        except Skipped as e:
            row, passed = (name, f"not tried: {e}", ""), True
        rows.append([cell.replace(str(mount_point), "DISK") for cell in row])
        bad += [] if passed else [" | ".join(row)]
        say(" | ".join(row))
    text = "The disk has no byte left when the command starts; of the caches, theirs alone."
    return Section("A full disk, in each mode", text, [html.Table(("mode", "what it printed", "with room"), rows)], bad)


@contextlib.contextmanager
def small_disk(mount_point: Path) -> Iterator[None]:
    """Mount a disk of 40 MiB."""
    call_mount("mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", mount_point)
    try:
        yield
    finally:
        call_mount("umount", mount_point)


def try_mode(
    name: str, mode: str, arguments: tuple[str, ...], run: Path, mount_point: Path, cache: dict[str, str]
) -> tuple[tuple[str, str, str], bool]:
    """Return the row of a mode, and whether it is as it should be."""
    caches_only = name != mode
    folder = run.with_name("elsewhere") if caches_only else mount_point / "run"
    environment = {**cache, "TL_JAX_CACHE": str(mount_point / "cache")} if caches_only else cache
    if mode not in NEW:
        shutil.copytree(run, folder)
    filler = mount_point / "filler"
    fill_disk(filler)
    first = call_mode(mode, arguments, folder, environment)
    filler.unlink()
    second = call_mode(mode, arguments, folder, environment)
    messages = [line for line in (first.stderr + first.stdout).splitlines() if line.startswith(("error:", "not kept"))]
    no_traceback = "Traceback" not in first.stdout + first.stderr
    passed = no_traceback and second.returncode == 0 and (len(messages) == 1 and first.returncode == 2 or caches_only)
    after = "exit status 0" if second.returncode == 0 else f"exit status {second.returncode}: {second.stderr[-300:]}"
    printed = "; ".join(messages) or ("nothing" if no_traceback else first.stderr[-300:])
    return (name, f"{printed} (exit status {first.returncode})", after), passed


def fill_disk(file: Path) -> None:
    """Take all the room that is left on a disk."""
    with file.open("wb", buffering=0) as out:
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while out.write(bytes(size)) == size:
                    pass


def call_mode(
    mode: str, arguments: tuple[str, ...], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess:
    """Call the command in a process of its own."""
    command = [sys.executable, "run.py", f"--mode={mode}", *arguments, f"--workdir={folder}"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
