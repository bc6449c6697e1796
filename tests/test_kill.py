"""A run that is killed and started again ends with the parameters of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
# Two phases, augmentation, momentum and a checkpoint every second step, on the embedded digits.
ARGS = (
    "--config=configs/digits_resnet.py",
    "--config.seeds=()",
    "--config.arms=()",
    "--config.data.validation=0.05",
    "--config.phases=" + str(tuple({"name": name, "epochs": 12.0, "recipe": name} for name in ("head", "all"))),
    "--config.epochs=10",
    "--config.input.size=16",
    "--config.save_every=1",
    "--config.optim.name=sgd",
)


def start(workdir, out):
    """Start the run in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, "run.py", *ARGS, f"--workdir={workdir}"], cwd=ROOT, env=environment, stdout=out, stderr=out
    )


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_three_kills_change_nothing(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with (tmp_path / "out").open("w") as out:
        assert start(whole, out).wait(timeout=300) == 0
        chance = random.Random(os.environ.get("TL_JAX_TEST_SEED", "0"))
        for target in sorted(chance.sample(range(2, 44), 3)):
            process = start(cut, out)
            while process.poll() is None and not reached(cut, target):
                time.sleep(0.01)
            time.sleep(chance.random() * 0.2)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (cut / "summary.json").exists(), "finished before it was killed: lower the targets"
        assert start(cut, out).wait(timeout=300) == 0
    assert (tmp_path / "out").read_text().count("resuming from step") >= 2
    assert summary(cut)["parameters_sha256"] == summary(whole)["parameters_sha256"]
    assert summary(cut)["metrics"] == summary(whole)["metrics"]
    assert rows(cut) == rows(whole)


def reached(workdir, step):
    """Tell whether the metrics have come as far as ``step``."""
    path = workdir / "metrics.jsonl"
    return path.is_file() and any(json.loads(line)["step"] >= step for line in path.read_text().splitlines()[:-1])
