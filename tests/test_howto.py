"""The pages on adding something, followed to the letter in a copy of the repository, have the effect they promise."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_documentation import BLOCK

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages" / "howto"


class Copy:
    """A copy of the repository in which a page has been followed."""

    def __init__(self, folder: Path, page: str):
        self.folder = folder
        for name in ("tl_jax", "configs", "experiments"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        shutil.copy(ROOT / "run.py", folder)
        self.code: list[str] = []
        self.commands: list[list[str]] = []
        for block in BLOCK.finditer((PAGES / page).read_text()):
            language, text = block["language"], block["text"]
            if block["why"]:  # it is not run
                continue
            if language == "diff":
                self.change(text)
            elif language == "python" and (file := re.match(r"# (\S+\.py)\n", text)):
                (folder / file[1]).write_text(text[file.end() :])
            elif language == "python":
                self.code.append(text)
            elif language == "bash":
                self.commands += [shlex.split(line) for line in text.splitlines()]

    def change(self, diff: str) -> None:
        """Put the lines of a diff in; each place must be there once."""
        for part in re.split(r"^--- .*\n(?=\+\+\+ )", diff, flags=re.M)[1:]:
            path = self.folder / part.split("\n", 1)[0].removeprefix("+++ b/")
            for hunk in re.split(r"^@@.*\n", part, flags=re.M)[1:]:
                lines = hunk.splitlines(keepends=True)
                old, new = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
                text = path.read_text()
                assert text.count(old) == 1, f"{path.name}: {old!r} is there {text.count(old)} times"
                path.write_text(text.replace(old, new))

    def run(self, *words: str) -> str:
        """Run Python in the copy and return what it printed."""
        # On one device, as a reader would.
        environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        environment |= {"PYTHONPATH": str(self.folder), "MPLBACKEND": "agg"}
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def script(self) -> str:
        """Run all blocks of Python in order, as one program."""
        return self.run("-c", "\n".join(self.code))

    def metrics(self, run: str, name: str) -> list[float]:
        """Return the values of a metric in the log of a run."""
        lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        return [row[name] for row in map(json.loads, lines) if name in row]


def test_an_added_score_is_in_the_study_of_distances(tmp_path):
    copy = Copy(tmp_path, "score.md")
    printed = copy.script()
    assert [line.split()[0] for line in printed.splitlines()[-3:]] == ["mnist", "cifar10", "faces"]
    (command,) = copy.commands
    assert command[:2] == ["python", "-m"]
    # Like the page's command, on one target and with runs of a few steps.
    small = ("--targets=digits", "--per_class=3", "--seeds=0", "--steps=4", "--sources=cifar10,mnist,faces")
    program = "import sys; from experiments.transferability import study; study.shrink_flags = lambda: None; "
    program += "study.command.run(study.main)"
    copy.run("-c", program, *command[3:], *small, "--rates=3e-3", "--tested=100")
    with (tmp_path / "runs" / "distance" / "transfer_distance.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and all(-1 <= float(row["silhouette"]) <= 1 for row in rows)
    assert re.search(r"^\| silhouette \| -?\d", (tmp_path / "runs/distance/transfer_distance.md").read_text(), re.M)


def test_an_added_term_changes_the_loss(tmp_path):
    copy = Copy(tmp_path, "mechanism.md")
    copy.script()
    slow = json.loads((tmp_path / "runs" / "slow_stem" / "config.json").read_text())
    assert slow["optim"]["lr_multipliers"] == [["stem", 0.01]]
    without, added = (copy.metrics(run, "penalty") for run in ("runs/slow_stem", "runs/feature_norm"))
    assert not without and added and all(value > 0 for value in added)
    (command,) = copy.commands
    names = next(word for word in command if word.startswith("--mechanisms=")).partition("=")[2].split(",")
    program = "from configs import flowers_mobilenet as f; from tl_jax.transfer import methods; "
    program += "print(*methods.names_for_task('image')); "
    program += "print(f.get_config('feature_norm').regularize.feature_norm)"
    known, strength = copy.run("-c", program).splitlines()
    assert set(names) <= set(known.split()) and float(strength) > 0


def test_an_added_model_loads_and_learns(tmp_path):
    printed = Copy(tmp_path, "model.md").script()
    assert "(2, 10) {'stage1': (2, 8, 8, 8), 'stage2': (2, 4, 4, 16)" in printed
    summary = json.loads((tmp_path / "runs" / "plain" / "summary.json").read_text())
    assert summary["metrics"]["accuracy"] > 0.3  # of gratings in more than five directions


def photos(folder: Path) -> None:
    """Write ten red and ten blue pictures of 24 pixels, with noise."""
    rng = np.random.default_rng(0)
    for channel, name in ((0, "red"), (2, "blue")):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            image = rng.integers(0, 80, (24, 24, 3), dtype=np.uint8)
            image[..., channel] += 150
            Image.fromarray(image).save(folder / name / f"{i}.png")


def test_your_own_pictures_are_read_and_become_a_model(tmp_path):
    copy = Copy(tmp_path, "data.md")
    photos(tmp_path / "PICTURES")
    copy.script()  # the set that code makes
    rings = json.loads((tmp_path / "runs" / "rings" / "summary.json").read_text())
    assert rings["examples_evaluated"] == 60 and rings["metrics"]["accuracy"] > 0.6
    commands = [command for command in copy.commands if "--workdir=runs/few" in command]
    assert len(commands) == 5
    for command in commands:
        copy.run("run.py", *(word if word != "--config.epochs=60" else "--config.epochs=20" for word in command[1:]))
    few = tmp_path / "runs" / "few"
    for name in ("preview.png", "explain.png", "export/README.md", "report.html"):
        assert (few / name).stat().st_size > 100, name
    assert json.loads((few / "export" / "bundle.json").read_text())["classes"] == ["blue", "red"]
    summary = json.loads((few / "summary.json").read_text())
    assert summary["examples_evaluated"] == 4 and summary["metrics"]["accuracy"] == 1.0
