"""The same run with more epochs, and a run that another one starts from."""

import json
import shutil

import numpy as np
import pytest

from tests.tasks import small
from tl_jax import pretrained, training
from tl_jax.pretrained.catalog import EMBEDDED_RESNET8
from tl_jax.train import more_epochs
from tl_jax.train.workdir import read_json, read_summary
from tl_jax.utils.errors import UserError

CONSTANT = ("optim.schedule", "constant"), ("optim.warmup", 0.0)
BASE = (("data.per_class", 2), ("freeze.recipe", "all"), *CONSTANT)


@pytest.mark.slow
def test_more_epochs_give_what_one_longer_run_gives(tmp_path):
    first = training.train(small.config(*BASE, ("epochs", 2.0)), tmp_path / "run")
    second = training.train(small.config(*BASE, ("epochs", 5.0)), tmp_path / "run")
    whole = training.train(small.config(*BASE, ("epochs", 5.0)), tmp_path / "whole")
    assert second["parameters_sha256"] == whole["parameters_sha256"] != first["parameters_sha256"]
    assert second["metrics"] == whole["metrics"] and second["steps"] == whole["steps"] > first["steps"]
    assert read_json(tmp_path / "run" / "summary_2_epochs.json")["steps"] == first["steps"]
    with pytest.raises(UserError, match="another config.epochs"):
        training.train(small.config(*BASE, ("epochs", 1.0)), tmp_path / "run")


def finished(folder, **config):
    """A folder as a run leaves it that has ended."""
    folder.mkdir()
    stored = {
        "epochs": 2.0,
        "phases": [],
        "optim": {"schedule": "constant", "warmup": 0.0},
        "seed": 0,
        "patience": 0,
        "eval_checkpoint": "last",
        **config,
    }
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "summary.json").write_text('{"tested_step": 4}')
    return stored


@pytest.mark.parametrize(("change", "name"), [({"schedule": "cosine"}, "cosine"), ({"warmup": 0.1}, "warm-up")])
def test_a_schedule_that_depends_on_the_epochs_is_not_gone_on_with(tmp_path, change, name):
    config = finished(tmp_path / "run", optim={"schedule": "constant", "warmup": 0.0, **change})
    with pytest.raises(UserError, match=f"trained for 2 epochs, and its {name} depends .* config.init.path="):
        more_epochs.epochs_before({**config, "epochs": 3.0}, tmp_path / "run")
    assert read_summary(tmp_path / "run")


def test_only_the_last_phase_may_become_longer(tmp_path):
    phases = [{"name": "a", "epochs": 1.0}, {"name": "b", "epochs": 2.0}]
    config = finished(tmp_path / "run", phases=phases)
    for other in ({"seed": 1}, {"phases": [{"name": "a", "epochs": 2.0}, phases[1]]}, {"phases": phases[:1]}, {}):
        assert more_epochs.epochs_before({**config, **other}, tmp_path / "run") is None
    longer = {**config, "phases": [phases[0], {"name": "b", "epochs": 3.0}]}
    assert more_epochs.epochs_before(longer, tmp_path / "run") == 2.0 and read_summary(tmp_path / "run")
    more_epochs.begin(longer, tmp_path / "run", 2.0)
    assert not read_summary(tmp_path / "run") and (tmp_path / "run" / "summary_2_epochs.json").is_file()
    assert more_epochs.epochs_before(longer, tmp_path / "run") is None  # a run that goes on like any other


def test_a_start_that_was_cut_short_is_made_again(tmp_path):
    config = finished(tmp_path / "run")
    (tmp_path / "run" / "summary.json").rename(tmp_path / "run" / "summary_2_epochs.json")
    assert more_epochs.epochs_before({**config, "epochs": 3.0}, tmp_path / "run") == 2.0


@pytest.mark.slow
def test_a_run_whose_weights_are_gone_stays_finished(tmp_path):
    weights = shutil.copy(EMBEDDED_RESNET8["cifar10"], tmp_path / "own.safetensors")
    own = ("init.path", str(weights))
    first = training.train(small.config(*BASE, own, ("epochs", 1.0)), tmp_path / "run")
    weights.unlink()
    with pytest.raises(UserError, match="own.safetensors"):
        training.train(small.config(*BASE, own, ("epochs", 2.0)), tmp_path / "run")
    assert read_summary(tmp_path / "run")["metrics"] == first["metrics"]


@pytest.mark.slow
def test_a_run_starts_from_another_run(tmp_path):
    training.train(small.config(*BASE, ("epochs", 1.0)), tmp_path / "first")
    own = ("init.source", "tl_jax"), ("init.path", str(tmp_path / "first")), ("init.head", "keep")
    with pytest.raises(UserError, match=r"first: the run has no export; export it first"):
        pretrained.load("", "tl_jax", tmp_path / "first")
    second = training.train(small.config(*BASE, *own, ("epochs", 0.0)), tmp_path / "second")
    assert second["metrics"] == read_summary(tmp_path / "first")["metrics"]
    net = pretrained.load("", "tl_jax", tmp_path / "first")
    assert net.spec.model and np.isfinite(net.variables["params"]["head"]["kernel"]).all()
