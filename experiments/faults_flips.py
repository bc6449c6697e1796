"""Bit flips in the files of a run or bundle: each must be reported with the file's name, or change nothing."""

import contextlib
import io
import json
import random
import re
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from configs import digits_resnet, sst2_bert
from experiments.faults_training import ROOT, Section
from tl_jax import pretrained, training
from tl_jax.config import recipe, stored
from tl_jax.export.bundle import export
from tl_jax.learner import Learner
from tl_jax.pretrained import formats, huggingface
from tl_jax.report import html
from tl_jax.train import sharding
from tl_jax.train.logging import say
from tl_jax.utils.errors import UserError

NUM_COMMANDS = 20  # of the flips that go through the command line
FIELDS = (
    ("arms", ()), ("seeds", ()), ("input.size", 8), ("augment.crop_pad", 0), ("data.validation", 0.1),
    ("epochs", 4.0), ("save_every", 1.0), ("min_checkpoint_interval", 0.0), ("log_every", 1), ("calibrate", True),
    ("eval_checkpoint", "best"), ("metrics", ("auc", "ece")),
)  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)


class Target(NamedTuple):
    """A folder whose files are flipped, and what then reads it: name of a mode -> what it makes of a copy."""

    folder: Path
    modes: dict[str, Callable[[Path], Any]]


def flips_section(home: Path, count: int, seed: int) -> Section:
    """Flip ``count`` bits, a file and a place in it at random for each; the modes take turns."""
    targets = prepare_targets(home)
    rng, counts, bad = random.Random(seed), Counter(), []
    turns = [(target, mode) for target in targets.values() for mode in target.modes]
    expected = {}
    for number in range(count):
        target, mode = turns[number % len(turns)]
        if (target.folder, mode) not in expected:
            expected[target.folder, mode] = call_quietly(target.modes[mode], copy_folder(target, home))[0]
        copy = copy_folder(target, home)
        file = flip_bit(copy, rng)
        outcome, line = classify_outcome(target.modes[mode], copy, file, expected[target.folder, mode])
        counts[mode, outcome] += 1
        if outcome not in GOOD_OUTCOMES:
            bad.append(f"{mode}, {file.relative_to(copy)}: {outcome}: {line}")
            say(bad[-1])
        if number % 20 == 19:
            sharding.clear_programs()  # hundreds of programs are too many for one process
    bad += flip_for_commands(targets["finished"], home, rng, counts)
    outcomes = sorted({outcome for _, outcome in counts})
    modes = list(dict.fromkeys(mode for mode, _ in counts))
    rows = [[mode, *(str(counts[mode, outcome]) for outcome in outcomes)] for mode in modes]
    rows += [["all", *(str(sum(counts[mode, outcome] for mode in modes)) for outcome in outcomes)]]
    text = f"{count} bits, seed {seed}, in files of a finished run, of one cut short and of two bundles, half of them "
    text += f"beside the checkpoints; a mode reads the folder after each. {NUM_COMMANDS} more through the command line."
    return Section("Flipped bits", text, [html.Table(("mode", *outcomes), rows)], bad)


GOOD_OUTCOMES = ("harmless", "refused", "warned of")


def classify_outcome(mode: Callable[[Path], Any], copy: Path, file: Path, expected: Any) -> tuple[str, str]:
    """Return what came of a flip, and what was said."""
    try:
        result, printed = call_quietly(mode, copy)
    except UserError as error:
        return ("refused" if names_file(str(error), copy, file) else "REFUSED, NAMING ANOTHER"), str(error)
    except Exception as error:
        return "CRASH", traceback.format_exception_only(error)[-1].strip()
    warned = [line for line in printed.splitlines() if "WARNING" in line]
    if warned:
        return ("warned of" if names_file(" ".join(warned), copy, file) else "WARNED OF ANOTHER"), warned[0]
    return ("harmless", "") if result == expected else ("OTHER OUTPUT", "")


def names_file(line: str, copy: Path, file: Path) -> bool:
    """Whether a message names the file, or the checkpoint that it is in."""
    inside, step = file.relative_to(copy).parts, file.relative_to(copy).parts[1:2]
    known = {f"checkpoints/{number}" for number in step} | {f"checkpoint {number}" for number in step}
    return file.name in line or (inside[0] == "checkpoints" and any(name in line for name in known))


def copy_folder(target: Target, home: Path) -> Path:
    """Return a copy of the folder, always at the same place."""
    copy = home / "copy" / target.folder.name
    shutil.rmtree(copy, ignore_errors=True)
    return shutil.copytree(target.folder, copy)


def flip_bit(folder: Path, rng: random.Random) -> Path:
    """Flip one bit in one of the files, and return which."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]
    top = [path for path in files if path.parent == folder]  # else nearly all would be files of checkpoints
    file = rng.choice(top if rng.random() < 0.5 else files)
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return file


def call_quietly(call: Callable[[Path], Any], folder: Path) -> tuple[Any, str]:
    """Return what a call makes of a folder, and what it printed."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        return call(folder), output.getvalue()


def prepare_targets(home: Path) -> dict[str, Target]:
    """Train, export, and cut a copy short."""
    config = recipe.override(digits_resnet.get_config("smoke"), FIELDS)
    run, cut, image = home / "finished", home / "cut", home / "picture.png"
    Image.fromarray(IMAGES[0]).save(image)
    call_quietly(lambda folder: training.train(config, folder), run)
    shutil.copytree(run, cut)
    for name in ("summary.json", "network.json", "test_details.json", "report.html", "reliability.png"):
        (cut / name).unlink()
    steps = sorted(int(path.name) for path in (cut / "checkpoints").iterdir() if path.name.isdigit())
    shutil.rmtree(cut / "checkpoints" / str(steps[-1]))
    call_quietly(lambda folder: export(config, folder), run)
    text_config = recipe.override(sst2_bert.get_config("smoke"), (("epochs", 0.0), ("data.test_examples", 16)))
    call_quietly(lambda folder: training.train(text_config, folder), home / "words")
    call_quietly(lambda folder: export(text_config, folder), home / "words")
    shutil.copytree(run / "export", home / "bundle")
    shutil.copytree(home / "words" / "export", home / "bundle_of_texts")
    shutil.rmtree(run / "export")
    modes = {
        "eval": lambda folder: json.dumps(training.test(stored.get_config(str(folder)), folder)),
        "predict": lambda folder: json.dumps(
            Learner(stored.get_config(str(folder)), folder).show_predictions([str(image)])
        ),
        "export": export_run,
        "report": lambda folder: Learner(config, folder).report().read_text(),
        "train, finished": lambda folder: json.dumps(training.train(config, folder)),
    }
    return {
        "finished": Target(run, modes),
        "cut": Target(cut, {"train, cut short": lambda folder: finish_run(config, folder)}),
        "bundle": Target(home / "bundle", {"bundle": load_bundle, "bundle, delta": load_delta}),
        "bundle of texts": Target(home / "bundle_of_texts", {"bundle of texts": load_text_bundle}),
    }


def export_run(folder: Path) -> str:
    """Export a run; return its weights, and how images come to them. The program names lines of this code."""
    export(stored.get_config(str(folder)), folder)
    files = {path.name: path.read_bytes() for path in (folder / "export").iterdir() if path.suffix == ".safetensors"}
    return repr(files) + json.dumps(formats.read_bundle(folder / "export")["preprocessing"])


def finish_run(config: recipe.Config, folder: Path) -> str:
    """Train to the end; return what must not differ."""
    summary = training.train(config, folder)
    fixed = {name: summary[name] for name in ("parameters_sha256", "metrics", "calibration", "steps", "tested_step")}
    return json.dumps(fixed) + (folder / "metrics.jsonl").read_text() + (folder / "test_details.json").read_text()


def load_bundle(folder: Path) -> bytes:
    """Load a bundle of pictures; return what its network says of some."""
    net = pretrained.load(source="tl_jax", path=folder)
    return np.asarray(net.model.apply(net.variables, net.preprocess(IMAGES), train=False)[0]).tobytes()


def load_delta(folder: Path) -> bytes:
    """Put the delta of a bundle on the weights that the run started from; return what the network says."""
    net = pretrained.load("resnet8", "tl_jax", delta=folder / "delta.safetensors")
    return np.asarray(net.model.apply(net.variables, net.preprocess(IMAGES), train=False)[0]).tobytes()


def load_text_bundle(folder: Path) -> bytes:
    """Load a bundle of texts; return what its network says of one."""
    net = huggingface.load("bert", folder)
    tokens = net.tokenize(["a text of some words"], max_length=16)
    return np.asarray(net.model.apply(net.variables, **tokens, train=False)[0]).tobytes()


def flip_for_commands(target: Target, home: Path, rng: random.Random, counts: Counter) -> list[str]:
    """Flip bits that the command line meets; it must end in one line, or as with the whole folder."""
    modes, bad = ("eval", "report", "export", "train"), []
    for number in range(NUM_COMMANDS):
        copy, mode = copy_folder(target, home), modes[number % len(modes)]
        file = flip_bit(copy, rng)
        process = subprocess.run(
            [sys.executable, "run.py", f"--mode={mode}", f"--config=configs/stored.py:{copy}", f"--workdir={copy}"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        lines = [line for line in process.stderr.splitlines() if line.strip()]
        refused = process.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ")
        outcome = "refused" if refused else "harmless" if process.returncode == 0 else "CRASH"
        if "WARNING" in process.stderr:
            outcome = "warned of"
        if re.search("Traceback", process.stdout + process.stderr):
            outcome = "CRASH"
        counts["command line", outcome] += 1
        if outcome == "CRASH":
            bad.append(f"--mode={mode}, {file.relative_to(copy)}: {lines[-1:]}")
    return bad
