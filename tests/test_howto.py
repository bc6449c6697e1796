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
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.references import draw
from tests.test_documentation import BLOCK

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages" / "howto"


class Copy:
    """A copy of the repository in which a page has been followed.

    Args:
        folder: where the copy is made.
        page: of the folder ``howto``.
        section: title of the only section that is followed, "" for what stands above the first; None for all.
    """

    def __init__(self, folder: Path, page: str, section: str | None = None):
        self.folder = folder
        for name in ("tl_jax", "configs", "experiments"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        shutil.copy(ROOT / "run.py", folder)
        self.code: list[str] = []
        self.commands: list[list[str]] = []
        text = (PAGES / page).read_text()
        if section is not None:
            titles_and_texts = re.split(r"^## (.*)\n", f"## \n{text}", flags=re.M)[1:]
            text = dict(zip(titles_and_texts[::2], titles_and_texts[1::2], strict=True))[section]
        for block in BLOCK.finditer(text):
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
    program = "import feature_norm; from configs import flowers_mobilenet as f; from tl_jax.transfer import methods; "
    program += "print(*methods.names_for_task('image')); "
    program += "print(f.get_config('small_norms').regularize.feature_norm)"
    known, strength = copy.run("-c", program).splitlines()
    assert set(names) <= set(known.split()) and float(strength) > 0


def test_an_added_model_loads_and_learns(tmp_path):
    printed = Copy(tmp_path, "model.md", section="").script()
    assert "(2, 10) {'stage1': (2, 8, 8, 8), 'stage2': (2, 4, 4, 16)" in printed
    summary = json.loads((tmp_path / "runs" / "plain" / "summary.json").read_text())
    assert summary["metrics"]["accuracy"] > 0.3  # of gratings in more than five directions


def torch_resnet20() -> Any:
    """Return CIFAR-10's ResNet-20 in PyTorch, with random weights and statistics; its shortcuts have no weights."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self, before: int, after: int):
            super().__init__()
            self.conv1 = nn.Conv2d(before, after, 3, stride=after // before, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(after)
            self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(after)

        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if x.shape != y.shape:
                zeros = torch.zeros_like(y[:, : x.shape[1] // 2])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
            return F.relu(x + y)

    class ResNet20(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
            self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
            self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
            self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
            return self.linear(x.mean((2, 3)))

    net = ResNet20().eval()
    arrays = {name: draw.draw(name, tuple(value.shape), seed=0) for name, value in net.state_dict().items()}
    net.load_state_dict({name: torch.as_tensor(array) for name, array in arrays.items()})
    assert sum(value.numel() for value in net.parameters()) == 269_722  # 0.27 M in table 6 of the paper
    return net


LOGITS = """
import numpy as np
from tl_jax import pretrained
import cifar_resnet20

images = np.load("images.npy")
for file in ("resnet20.pth", "checkpoint.th"):
    net = pretrained.load("cifar_resnet20", "torch", file)
    logits, _ = net.model.apply(net.variables, net.preprocess(images))
    np.save(f"{file}.npy", logits)
"""


@pytest.mark.peers
def test_an_added_model_computes_what_pytorch_computes_from_its_weights(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch_resnet20()
    copy = Copy(tmp_path, "model.md", section="A network with its weights")
    torch.save(net.state_dict(), tmp_path / "resnet20.pth")
    # A training checkpoint of a network on several devices.
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "checkpoint.th")
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)

    copy.run("-c", LOGITS)
    x = (images / 255 - (0.4914, 0.4822, 0.4465)) / (0.2470, 0.2435, 0.2616)  # CIFAR-10's mean and deviation
    with torch.no_grad():
        expected = net.double()(torch.as_tensor(x).permute(0, 3, 1, 2)).numpy()
    assert expected.std(axis=0).min() > 0.01 * np.abs(expected).max()  # pictures are told apart
    for file in ("resnet20.pth.npy", "checkpoint.th.npy"):
        error = np.abs(np.load(tmp_path / file) - expected).max() / np.abs(expected).max()
        assert error < 1e-5, file

    printed = copy.script()
    shapes = "(2, 10) {'stem': (2, 32, 32, 16), 'stage1': (2, 32, 32, 16), 'stage2': (2, 16, 16, 32), "
    assert shapes + "'stage3': (2, 8, 8, 64), 'features': (2, 64)}" in printed
    summary = json.loads((tmp_path / "runs" / "cifar_resnet20" / "summary.json").read_text())
    assert summary["metrics"]["accuracy"] > 0.3 and summary["parameters"]["trainable"] == 269_722


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
    photos(tmp_path / "PHOTOS")
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


def test_an_added_kind_of_task_is_learned_and_measured(tmp_path):
    copy = Copy(tmp_path, "task.md")
    metrics = json.loads(copy.script().splitlines()[-1])
    assert metrics["accuracy"] >= 0 and -1 <= metrics["kappa"] <= 1
    summary = json.loads((tmp_path / "runs" / "graded" / "summary.json").read_text())
    assert summary["score"] == "kappa" and summary["facts"]["data"]
    (command,) = copy.commands
    shutil.rmtree(tmp_path / "runs")
    main = ("-c", "from tl_jax.cli import main; main()")
    copy.run(*main, *command[1:])
    again = json.loads((tmp_path / "runs" / "graded" / "summary.json").read_text())
    assert again["metrics"] == metrics
    # The loss is the page's own: of grades 0 to 9 it begins far above the cross-entropy of ten classes, 2.3.
    assert copy.metrics("runs/graded", "loss")[0] > 3
    # A field that it does not have is refused.
    with pytest.raises(AssertionError, match="regularize.mixup has no effect with config.task=grades"):
        copy.run(
            "-c", "from tl_jax.cli import main; main()", *command[1:3], "--workdir=x", "--config.regularize.mixup=0.2"
        )
