"""Heads in bulk: each is the head that a run of its own trains."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import linear_heads
from tests.tasks import small
from tl_jax.tasks import feature_cache
from tl_jax.train import evaluate, loop
from tl_jax.train.state import initial_state

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parents[2]
RECIPE = (("freeze.recipe", "head"), ("epochs", 4.0), ("optim.schedule", "cosine"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_cache, "MIN_FLOPS_PER_BYTE", 0.0)


def prepared(*changes):
    task, config = (make(*RECIPE, *changes) for make in (small.task, small.config))
    (phase,) = task.plan()
    return task, phase, task.cache_features(initial_state(task, config.seed).variables, phase)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_each_is_that_of_a_run_of_its_own(tmp_path, decay):
    _, phase, seen = prepared()
    found = linear_heads.train_heads(seen, phase, (3, 0), (1e-3, 3e-2), (0.5, decay))
    task, (phase, alone) = small.task(*RECIPE), (phase, prepared(("optim.lr", 3e-2), ("optim.weight_decay", decay))[1])
    fitted = loop.fit(task, [alone], loop.Pace(1000, 1000), 0, tmp_path / "run", verbose=False)
    fitted.checkpoints.close()
    head = fitted.state.params["head"]
    for name, leaf in head.items():
        np.testing.assert_allclose(found.params["head"][name][1, 1, 1], leaf, rtol=1e-3, atol=1e-4)
    for part, scores in (("validation", found.validation), ("test", found.test)):
        values = evaluate.evaluate(fitted.task, fitted.state.eval_variables, part).values
        assert scores[1, 1, 1] == pytest.approx(values["accuracy"], abs=0.011)


def test_seeds_rates_and_decays_all_matter():
    _, phase, seen = prepared()
    kernels = linear_heads.train_heads(seen, phase, (0, 1), (1e-3, 1e-2), (0.0, 1.0)).params["head"]["kernel"]
    flat = kernels.reshape(8, -1)
    assert len({row.tobytes() for row in flat}) == 8
    norms = np.linalg.norm(flat, axis=1).reshape(2, 2, 2)
    assert (norms[:, 1, 1] < norms[:, 1, 0]).all()  # decay makes them small


def test_without_validation_there_is_no_number():
    _, phase, seen = prepared(("data.validation", 0.0))
    found = linear_heads.train_heads(seen, phase, (0,), (1e-2,))
    assert (
        np.isnan(found.validation).all() and found.test.shape == (1, 1, 1) and found.test[0, 0, 0] > 0.2
    )  # chance is 0.1


def test_a_head_that_diverged_has_no_accuracy():
    _, phase, seen = prepared()
    found = linear_heads.train_heads(seen, phase, (0,), (1e-2, 3e38))
    for part in (found.validation, found.test):
        assert np.isfinite(part[0, 0, 0]) and np.isnan(part[0, 1, 0])


@pytest.mark.slow
def test_the_command(tmp_path):
    def run(*more):
        command = [sys.executable, "-m", "experiments.linear_heads", "--config=configs/digits_resnet.py"]
        command += ["--seeds=0,1", "--rates=1e-3,1e-2", f"--workdir={tmp_path / 'out'}", *more]
        return subprocess.run(
            command, cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, timeout=600
        )

    refused = run()
    assert refused.returncode == 2 and "set --config.cache.views=8" in refused.stderr.splitlines()[-1]
    done = run("--config.augment.crop_pad=0", "--config.epochs=5")
    assert done.returncode == 0, done.stderr
    assert "best on validation: rate" in done.stdout
    rows = list(csv.DictReader((tmp_path / "out" / "heads.csv").open()))
    assert [(row["seed"], float(row["rate"])) for row in rows] == [("0", 1e-3), ("0", 1e-2), ("1", 1e-3), ("1", 1e-2)]
    assert (tmp_path / "out" / "heads.png").stat().st_size > 10_000
