"""Runs of each task, killed at random moments and started again: they end with the bits of one that was not killed."""

import os
import random
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

from experiments.faults_training import ROOT, Section, reach, saved
from tl_jax.report import html
from tl_jax.train.logging import say
from tl_jax.train.workdir import read_json
from tl_jax.utils import compile_cache

# Smoke recipes, smaller still where that is possible; each has checkpoints all the time.
QUICK = "--xla_backend_optimization_level=0"  # to compile quickly: most of these runs is compiling
OFTEN = ("--config.save_every=0.5", "--config.min_checkpoint_interval=0", "--config.epochs=8")
TASKS = {
    "image": ("digits_resnet:smoke", "--config.seeds=()", "--config.arms=()", "--config.input.size=8",
              "--config.augment.crop_pad=0", "--config.data.validation=0.1", *OFTEN),
    "image, frozen": ("digits_resnet:smoke", "--config.seeds=()", "--config.arms=()", "--config.input.size=8",
                      "--config.augment.crop_pad=0", "--config.freeze.recipe=head", *OFTEN),
    "text": ("sst2_bert:smoke", *OFTEN),
    "tokens": ("ner_bert:smoke", *OFTEN),
    "masked": ("masked_words:smoke", *OFTEN),
    "detection": ("detection_voc:smoke", "--config.save_every=0.5", "--config.min_checkpoint_interval=0"),
    "faces": ("faces_verification:smoke", "--config.save_every=0.5", "--config.min_checkpoint_interval=0"),
    "policy": ("cartpole_ppo:smoke", "--config.save_every=0.2", "--config.min_checkpoint_interval=0"),
}  # fmt: skip


def section(home: Path, count: int, seed: int) -> Section:
    """Kill ``count`` times over all tasks, and compare."""
    chance, rows, bad = random.Random(seed), [], []
    shares = [count // len(TASKS) + (i < count % len(TASKS)) for i in range(len(TASKS))]
    for (task, arguments), kills in zip(TASKS.items(), shares, strict=True):
        row, fine = killed(home / task.replace(", ", "_"), arguments, kills, chance)
        rows.append([task, *row])
        bad += [] if fine else [f"{task}: {' | '.join(row)}"]
        say(" | ".join(rows[-1]))
        shutil.rmtree(home / task.replace(", ", "_"))
    text = f"{count} times SIGKILL, seed {seed}: a third at moments drawn from all of a run, the others after a "
    text += "checkpoint that is drawn, beginning with empty caches; then the same command to the end, and again with a "
    text += "new folder and the caches as they are."
    columns = ("task", "kills", "steps saved when killed", "parameters", "programs", "arrays", "again")
    return Section("Kills", text, [html.Table(columns, rows)], bad)


def killed(home: Path, arguments: tuple[str, ...], kills: int, chance: random.Random) -> tuple[list[str], bool]:
    """Return the row of a task, and whether it is as it should be."""
    home.mkdir()
    begin = time.monotonic()
    whole = finished(arguments, home / "whole", home / "undisturbed")
    long, steps = time.monotonic() - begin, []
    last = max((int(path.name) for path in saved(home / "whole")), default=1)
    while len(steps) < kills:
        process = started(arguments, home / "cut", home / "cache")
        if len(steps) % 3 == 0:  # loading and compiling, for the most part
            time.sleep(chance.uniform(0.15, 0.6) * long)
        else:
            done = max((int(path.name) for path in saved(home / "cut")), default=0)
            reach(process, home / "cut", done + chance.randint(1, max(1, (last - done) // 3)))
            time.sleep(chance.uniform(0, 0.03))
        if process.poll() is not None:  # it was faster than the first, which had to compile: begin again
            process.communicate()
            shutil.rmtree(home / "cut")
            long *= 0.7
            continue
        process.kill()
        process.communicate()
        steps.append(max((int(path.name) for path in saved(home / "cut")), default=0))
    end = finished(arguments, home / "cut", home / "cache")
    before, arrays = programs(home / "cache"), stored(home / "cache")
    again = finished(arguments, home / "again", home / "cache")
    broken = unsound(home / "cache")
    new = programs(home / "cache") - before
    kept = "as they were" if stored(home / "cache") == arrays else "MADE AGAIN"
    same = {True: "the same bits", False: "OTHER VALUES"}
    row = [
        str(kills),
        ", ".join(map(str, steps)),
        same[end == whole],
        f"{len(before)}, {len(new)} new, {broken} broken",
        f"{len(arrays)}, {kept}" if arrays else "none",
        same[again == whole],
    ]
    return row, end == whole == again and not broken and kept == "as they were" and len(new) <= len(before) // 4


def started(arguments: tuple[str, ...], folder: Path, cache: Path) -> subprocess.Popen:
    """Start a run."""
    recipe, *more = arguments
    return subprocess.Popen(
        [sys.executable, "run.py", f"--config={recipe}", *more, f"--workdir={folder}"],
        cwd=ROOT,
        env={**os.environ, "TL_JAX_CACHE": str(cache), "XLA_FLAGS": QUICK},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(arguments: tuple[str, ...], folder: Path, cache: Path) -> str:
    """Run to the end; return the hash of the parameters."""
    process = started(arguments, folder, cache)
    said = process.communicate()[0]
    if process.returncode:
        return f"exit status {process.returncode}: {said[-300:]}"
    return read_json(folder / "summary.json")["parameters_sha256"]


def programs(cache: Path) -> set[str]:
    """Return the compiled programs of a cache that have both their files."""
    files = {path.name for path in cache.glob("programs/*/*")}
    whole = {name for name in files if name.endswith(compile_cache.PROGRAM_SUFFIX)}
    return {
        name for name in whole if name.removesuffix(compile_cache.PROGRAM_SUFFIX) + compile_cache.ATIME_SUFFIX in files
    }


def unsound(cache: Path) -> int:
    """Return the number of programs that cannot be unpacked or have lost one of their files."""
    count = 0
    for path in cache.glob("programs/*/*" + compile_cache.PROGRAM_SUFFIX):
        try:
            zlib.decompress(path.read_bytes())
            count += not path.with_name(
                path.name.removesuffix(compile_cache.PROGRAM_SUFFIX) + compile_cache.ATIME_SUFFIX
            ).is_file()
        except zlib.error:
            count += 1
    return count


def stored(cache: Path) -> dict[str, int]:
    """Return the arrays of a cache, each with the file that it is: one that is made again is another."""
    return {str(path.relative_to(cache)): path.stat().st_ino for path in cache.rglob("*.npy")}
