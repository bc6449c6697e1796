"""Runs of each task, killed at random moments and started again: they end with the bits of one that was not killed."""

import os
import random
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

from experiments.faults_training import ROOT, Section, list_checkpoints, wait_for_checkpoint
from tl_jax.report import html
from tl_jax.train.logging import say
from tl_jax.train.workdir import read_json
from tl_jax.utils import compile_cache

# Smoke recipes, smaller still where that is possible; each has checkpoints all the time.
FAST_COMPILE = "--xla_backend_optimization_level=0"  # to compile quickly: most of these runs is compiling
FREQUENT_CHECKPOINTS = ("--config.save_every=0.5", "--config.min_checkpoint_interval=0", "--config.epochs=8")
TASKS = {
    "image": ("digits_resnet:smoke", "--config.seeds=()", "--config.arms=()", "--config.input.size=8",
              "--config.augment.crop_pad=0", "--config.data.validation=0.1", *FREQUENT_CHECKPOINTS),
    "image, frozen": ("digits_resnet:smoke", "--config.seeds=()", "--config.arms=()", "--config.input.size=8",
                      "--config.augment.crop_pad=0", "--config.freeze.recipe=head", *FREQUENT_CHECKPOINTS),
    "text": ("sst2_bert:smoke", *FREQUENT_CHECKPOINTS),
    "tokens": ("ner_bert:smoke", *FREQUENT_CHECKPOINTS),
    "masked": ("masked_words:smoke", *FREQUENT_CHECKPOINTS),
    "detection": ("detection_voc:smoke", "--config.save_every=0.5", "--config.min_checkpoint_interval=0"),
    "faces": ("faces_verification:smoke", "--config.save_every=0.5", "--config.min_checkpoint_interval=0"),
    "policy": ("cartpole_ppo:smoke", "--config.save_every=0.2", "--config.min_checkpoint_interval=0"),
}  # fmt: skip


def kills_section(home: Path, count: int, seed: int) -> Section:
    """Kill ``count`` times over all tasks, and compare."""
    rng, rows, bad = random.Random(seed), [], []
    shares = [count // len(TASKS) + (i < count % len(TASKS)) for i in range(len(TASKS))]
    for (task, arguments), kills in zip(TASKS.items(), shares, strict=True):
        row, passed = kill_task(home / task.replace(", ", "_"), arguments, kills, rng)
        rows.append([task, *row])
        bad += [] if passed else [f"{task}: {' | '.join(row)}"]
        say(" | ".join(rows[-1]))
        shutil.rmtree(home / task.replace(", ", "_"))
    text = f"{count} times SIGKILL, seed {seed}: a third at moments drawn from all of a run, the others after a "
    text += "checkpoint that is drawn, beginning with empty caches; then the same command to the end, and again with a "
    text += "new folder and the caches as they are."
    columns = ("task", "kills", "steps saved when killed", "parameters", "programs", "arrays", "again")
    return Section("Kills", text, [html.Table(columns, rows)], bad)


def kill_task(home: Path, arguments: tuple[str, ...], kills: int, rng: random.Random) -> tuple[list[str], bool]:
    """Return the row of a task, and whether it is as it should be."""
    home.mkdir()
    start = time.monotonic()
    expected = finish_run(arguments, home / "whole", home / "undisturbed")
    duration, steps = time.monotonic() - start, []
    last = max((int(path.name) for path in list_checkpoints(home / "whole")), default=1)
    while len(steps) < kills:
        process = start_run(arguments, home / "cut", home / "cache")
        if len(steps) % 3 == 0:  # loading and compiling, for the most part
            time.sleep(rng.uniform(0.15, 0.6) * duration)
        else:
            last_saved = max((int(path.name) for path in list_checkpoints(home / "cut")), default=0)
            wait_for_checkpoint(process, home / "cut", last_saved + rng.randint(1, max(1, (last - last_saved) // 3)))
            time.sleep(rng.uniform(0, 0.03))
        if process.poll() is not None:  # it was faster than the first, which had to compile: begin again
            process.communicate()
            shutil.rmtree(home / "cut")
            duration *= 0.7
            continue
        process.kill()
        process.communicate()
        steps.append(max((int(path.name) for path in list_checkpoints(home / "cut")), default=0))
    end = finish_run(arguments, home / "cut", home / "cache")
    programs_before, arrays = list_programs(home / "cache"), list_arrays(home / "cache")
    repeated = finish_run(arguments, home / "again", home / "cache")
    num_broken = count_broken(home / "cache")
    new_programs = list_programs(home / "cache") - programs_before
    arrays_state = "as they were" if list_arrays(home / "cache") == arrays else "MADE AGAIN"
    labels = {True: "the same bits", False: "OTHER VALUES"}
    row = [
        str(kills),
        ", ".join(map(str, steps)),
        labels[end == expected],
        f"{len(programs_before)}, {len(new_programs)} new, {num_broken} broken",
        f"{len(arrays)}, {arrays_state}" if arrays else "none",
        labels[repeated == expected],
    ]
    reused = arrays_state == "as they were" and len(new_programs) <= len(programs_before) // 4
    return row, end == expected == repeated and not num_broken and reused


def start_run(arguments: tuple[str, ...], folder: Path, cache: Path) -> subprocess.Popen:
    """Start a run."""
    recipe, *more = arguments
    return subprocess.Popen(
        [sys.executable, "run.py", f"--config={recipe}", *more, f"--workdir={folder}"],
        cwd=ROOT,
        env={**os.environ, "TL_JAX_CACHE": str(cache), "XLA_FLAGS": FAST_COMPILE},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish_run(arguments: tuple[str, ...], folder: Path, cache: Path) -> str:
    """Run to the end; return the hash of the parameters."""
    process = start_run(arguments, folder, cache)
    printed = process.communicate()[0]
    if process.returncode:
        return f"exit status {process.returncode}: {printed[-300:]}"
    return read_json(folder / "summary.json")["parameters_sha256"]


def list_programs(cache: Path) -> set[str]:
    """Return the compiled programs of a cache that have both their files."""
    files = {path.name for path in cache.glob("programs/*/*")}
    complete = {name for name in files if name.endswith(compile_cache.PROGRAM_SUFFIX)}
    return {
        name
        for name in complete
        if name.removesuffix(compile_cache.PROGRAM_SUFFIX) + compile_cache.ATIME_SUFFIX in files
    }


def count_broken(cache: Path) -> int:
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


def list_arrays(cache: Path) -> dict[str, int]:
    """Return the arrays of a cache, each with the file that it is: one that is made again is another."""
    return {str(path.relative_to(cache)): path.stat().st_ino for path in cache.rglob("*.npy")}
