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

from experiments.faults_training import ROOT, Section, Skipped, mount
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


def section(home: Path) -> Section:
    """Fill the disk before each mode, and give the same command again when there is room."""
    rows, bad = [], []
    picture = home / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(picture)
    runs = {DIGITS: home / "digits", POLE: home / "pole"}
    cache = {**os.environ, "TL_JAX_CACHE": str(home / "cache")}
    for recipe, folder in runs.items():
        called("train", recipe, folder, cache)
    place = home / "disk"
    place.mkdir()
    for name, recipe in [*MODES.items(), ("train, the caches alone", DIGITS)]:
        mode = name.partition(",")[0]
        more = (f"--input={picture}",) if mode in ("predict", "explain") else ()
        try:
            with small(place):
                row, fine = tried(name, mode, (*recipe, *more), runs[recipe], place, cache)
        except Skipped as e:
            row, fine = (name, f"not tried: {e}", ""), True
        rows.append([cell.replace(str(place), "DISK") for cell in row])
        bad += [] if fine else [" | ".join(row)]
        say(" | ".join(row))
    text = "The disk has no byte left when the command starts; of the caches, theirs alone."
    return Section("A full disk, in each mode", text, [html.Table(("mode", "what it printed", "with room"), rows)], bad)


@contextlib.contextmanager
def small(place: Path) -> Iterator[None]:
    """Mount a disk of 40 MiB."""
    mount("mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", place)
    try:
        yield
    finally:
        mount("umount", place)


def tried(
    name: str, mode: str, arguments: tuple[str, ...], run: Path, place: Path, cache: dict[str, str]
) -> tuple[tuple[str, str, str], bool]:
    """Return the row of a mode, and whether it is as it should be."""
    elsewhere = name != mode
    folder = run.with_name("elsewhere") if elsewhere else place / "run"
    environment = {**cache, "TL_JAX_CACHE": str(place / "cache")} if elsewhere else cache
    if mode not in NEW:
        shutil.copytree(run, folder)
    filler = place / "filler"
    fill(filler)
    first = called(mode, arguments, folder, environment)
    filler.unlink()
    second = called(mode, arguments, folder, environment)
    said = [line for line in (first.stderr + first.stdout).splitlines() if line.startswith(("error:", "not kept"))]
    clean = "Traceback" not in first.stdout + first.stderr
    fine = clean and second.returncode == 0 and (len(said) == 1 and first.returncode == 2 or elsewhere)
    after = "exit status 0" if second.returncode == 0 else f"exit status {second.returncode}: {second.stderr[-300:]}"
    shown = "; ".join(said) or ("nothing" if clean else first.stderr[-300:])
    return (name, f"{shown} (exit status {first.returncode})", after), fine


def fill(file: Path) -> None:
    """Take all the room that is left on a disk."""
    with file.open("wb", buffering=0) as out:
        for size in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while out.write(bytes(size)) == size:
                    pass


def called(
    mode: str, arguments: tuple[str, ...], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess:
    """Call the command in a process of its own."""
    command = [sys.executable, "run.py", f"--mode={mode}", *arguments, f"--workdir={folder}"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
