"""A run that is killed, or told to stop, and started again ends with the parameters of one that was not.

``TL_JAX_TEST_KILLS=20`` kills it so often, tells it to stop half as often, and changes the number of devices once.
"""

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
ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("TL_JAX_TEST_KILLS", "2"))
# Two phases, augmentation, momentum, averages and a checkpoint every second step, on the embedded digits.
ARGS = (
    "--config=configs/digits_resnet.py",
    "--config.seeds=()",
    "--config.arms=()",
    "--config.data.validation=0.05",
    "--config.phases=" + str(tuple({"name": name, "epochs": 12.0, "recipe": name} for name in ("head", "all"))),
    "--config.epochs=10",
    "--config.input.size=16",
    "--config.save_every=1",
    "--config.min_checkpoint_interval=0",
    "--config.optim.name=sgd",
    "--config.optim.ema=0.9",
)


def start(workdir, out, devices=1, *args):
    """Start the run in a process of its own."""
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "run.py", *ARGS, *args, f"--workdir={workdir}"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_being_killed_or_told_to_stop_changes_nothing(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with (tmp_path / "out").open("w") as out:
        assert start(whole, out).wait(timeout=300) == 0
        chance = random.Random(os.environ.get("TL_JAX_TEST_SEED", "0"))
        signals = [signal.SIGKILL] * KILLS + [signal.SIGTERM] * max(1, KILLS // 2)
        chance.shuffle(signals)
        codes = []
        for target, signum in zip(sorted(chance.choices(range(2, 40), k=len(signals))), signals, strict=True):
            process = start(cut, out)
            while process.poll() is None and not reached(cut, target):
                time.sleep(0.01)
            time.sleep(chance.random() * 0.2)
            process.send_signal(signum)
            codes.append(process.wait(timeout=120))
            assert not (cut / "summary.json").exists(), "finished before it was killed: lower the targets"
        assert start(cut, out).wait(timeout=300) == 0
    assert codes.count(-signal.SIGKILL) == KILLS and set(codes) <= {-signal.SIGKILL, -signal.SIGTERM, 75}
    assert 75 in codes and (tmp_path / "out").read_text().count("resuming from step") >= 2
    assert summary(cut)["parameters_sha256"] == summary(whole)["parameters_sha256"]
    assert summary(cut)["metrics"] == summary(whole)["metrics"]
    assert rows(cut) == rows(whole)


@pytest.mark.skipif("TL_JAX_TEST_KILLS" not in os.environ, reason="three runs: set TL_JAX_TEST_KILLS")
def test_on_fewer_devices_the_order_stays_and_values_differ_by_rounding(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sizes = "--config.batch_size=24", "--config.eval_batch_size=320"
    with (tmp_path / "out").open("w") as out:
        assert start(whole, out, 8, *sizes).wait(timeout=300) == 0
        process = start(cut, out, 8, *sizes)
        while process.poll() is None and not reached(cut, 20):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 75
        assert start(cut, out, 4, *sizes).wait(timeout=300) == 0
    for mine, theirs in zip(rows(cut), rows(whole), strict=True):
        assert (mine["step"], mine["split"]) == (theirs["step"], theirs["split"])
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert summary(cut)["examples_evaluated"] == summary(whole)["examples_evaluated"]


def reached(workdir, step):
    """Tell whether the metrics have come as far as ``step``."""
    path = workdir / "metrics.jsonl"
    return path.is_file() and any(json.loads(line)["step"] >= step for line in path.read_text().splitlines()[:-1])
