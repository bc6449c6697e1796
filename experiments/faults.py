"""Inject faults of disks, machines and users into real runs, and record the messages and outcomes.

    python -m experiments.faults                          all of them (some need root, to mount)
    python -m experiments.faults --only="full disk,kills" --results=FILE

Some faults damage a run during training and are then repaired; the same command must then give the bits of an
undisturbed run. Others flip single bits in the files of a run or bundle: each is reported in a line that names the
file, or changes nothing. Others fill the disk in each mode: the mode prints one line, and the same command succeeds
once there is space. Others kill runs of each task at random times and restart them: they end with the bits of a run
that was not killed. Writes tables in Markdown.
"""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags, logging
from PIL import Image

from experiments import faults_flips, faults_training
from experiments.faults_training import ROOT, Section, Skipped, call_mount, list_checkpoints, wait_for_checkpoint
from experiments.record import commit
from tl_jax.report import html
from tl_jax.train import workdir
from tl_jax.train.logging import say
from tl_jax.train.workdir import read_json
from tl_jax.utils import command, compile_cache, disk
from tl_jax.utils.errors import UserError

ONLY = flags.DEFINE_list("only", [], "Faults to inject; empty for all.")
RESULTS = flags.DEFINE_string("results", "experiments/results/faults.md", "Output file.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the flipped bits and of the times of kills.")
FLIPS = flags.DEFINE_integer("flips", 300, "Number of bits to flip, one at a time.", lower_bound=1)
KILLS = flags.DEFINE_integer("kills", 30, "Number of kills, over all tasks.", lower_bound=1)
SECTIONS = {
    "bit flips": lambda home: faults_flips.flips_section(home, FLIPS.value, SEED.value),
    "full disk in each mode": lambda home: disk_section(home),
    "kills": lambda home: kills_section(home, KILLS.value, SEED.value),
}

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


def main(_: list[str]) -> None:
    """Put in each fault, compare, write."""
    logging.set_verbosity(logging.ERROR)
    workdir.silence_orbax()
    names = [*faults_training.FAULTS, *SECTIONS]
    if unknown := sorted(set(ONLY.value) - set(names)):
        raise UserError(f"--only: no fault is called {unknown[0]!r}; there are {', '.join(names)}")
    names = ONLY.value or names
    sections = []
    with tempfile.TemporaryDirectory(prefix="faults_") as folder:
        if training := [name for name in names if name in faults_training.FAULTS]:
            sections.append(faults_training.training_section(training, Path(folder)))
        for name in [name for name in names if name in SECTIONS]:
            home = Path(folder) / name.replace(" ", "_")
            home.mkdir()
            sections.append(SECTIONS[name](home))
    file = Path(RESULTS.value)
    disk.write_text(file, to_document(sections, file.read_text() if file.is_file() else ""))
    if failures := [line for section in sections for line in section.bad]:
        raise UserError(f"{len(failures)} faults ended badly: {'; '.join(failures[:5])}")


def to_document(sections: list[Section], old_document: str) -> str:
    """Return what was found, in Markdown; what ``old_document`` has of other kinds of faults is kept."""
    texts = {}
    for chapter in old_document.split("\n## ")[1:]:
        title, _, text = chapter.partition("\n")
        texts[title] = text.strip()
    for section in sections:
        tables = [html.to_markdown(table) for table in section.tables]
        origin = f"Made by `python -m experiments.faults` at commit {commit()}."
        texts[section.title] = "\n".join([*([f"{section.text}\n"] if section.text else []), *tables, origin])
    return "\n".join(["# Injected faults\n", *(f"## {title}\n\n{text}\n" for title, text in texts.items())])


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
    messages = [
        line for line in (first.stderr + first.stdout).splitlines() if line.startswith(("error:", "not cached"))
    ]
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


if __name__ == "__main__":
    command.run(main)
