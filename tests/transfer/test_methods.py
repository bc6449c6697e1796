"""Whole runs of mechanisms: exact resumption with everything on, deltas, averages, looks, and the study of all."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs import ct_classification, flowers_mobilenet, sst2_bert
from tests.tasks import small
from tests.text import network
from tl_jax import pretrained, training
from tl_jax.config import recipe, schema, validate
from tl_jax.export.bundle import export
from tl_jax.learner import Learner
from tl_jax.pretrained import huggingface
from tl_jax.tasks.image_classification import ImageClassification
from tl_jax.train import loop
from tl_jax.train.state import digest
from tl_jax.transfer import methods
from tl_jax.utils.errors import UserError

RECIPES = [
    (recipe, name) for recipe in (ct_classification, flowers_mobilenet) for name in methods.names_for_task("image")
]


@pytest.mark.fast
@pytest.mark.parametrize(("recipe", "name"), RECIPES, ids=lambda each: getattr(each, "__name__", each))
def test_every_mechanism_makes_a_valid_recipe(recipe, name):
    plain, config = recipe.get_config("fine_tune"), recipe.get_config(name)
    validate.validate(config)
    assert config.name == f"{recipe.__name__.rpartition('.')[2]}_{name}"
    assert (config.to_dict() | {"name": ""}) != (plain.to_dict() | {"name": ""}) or name == "fine_tune"


@pytest.mark.fast
@pytest.mark.parametrize("name", methods.names_for_task("text"))
def test_every_mechanism_for_texts_makes_a_valid_recipe(name, tmp_path):
    huggingface.save(tmp_path, network(tmp_path))
    assert sst2_bert.get_config(name).init.path  # nothing is downloaded yet
    config = recipe.override(sst2_bert.get_config(), (("init.path", str(tmp_path)),))
    methods.METHODS[name](config)
    validate.validate(config)


@pytest.fixture(scope="module")
def rich():
    """Three phases with nearly everything on at once, on the first layers of the network, which compile sooner."""
    config = small.config(
        ("phases", (
            {"name": "pretext", "epochs": 0.6, "objective": "pretext", "recipe": "all"},
            {"name": "adapters", "epochs": 2.0, "recipe": "adapters", "lr_scale": 0.5},
            {"name": "all", "epochs": 1.0, "recipe": "last_n_stages", "stages": 1, "layer_decay": 0.5},
        )),
        ("epochs", 10.0), ("adapt.kind", "lora"), ("adapt.rank", 2), ("init.head", "ridge"), ("data.per_class", 3),
        ("pretext.name", "simsiam"), ("regularize.l2_sp", 0.01), ("regularize.bss", 1e-3),
        ("model.endpoint", "stage1"), ("regularize.stochastic_norm", 0.5), ("regularize.mixup", 0.2),
        ("regularize.drop_path", 0.2), ("regularize.dropout", 0.2), ("optim.ema", 0.9),
        ("optim.weight_decay", 1e-3), ("optim.clip_norm", 1.0), ("augment.flip", True), ("augment.jitter", 0.2),
        ("batch_size", 8), ("data.validation", 0.1),
    )  # fmt: skip
    validate.validate(config)
    task = ImageClassification(schema.freeze(config))
    plan = task.plan()
    return task, plan


@pytest.mark.slow
@pytest.mark.parametrize("where", ["middle", "border"])
def test_a_stop_in_the_second_of_three_phases_changes_no_bit(rich, tmp_path, where):
    task, plan = rich
    middle = (plan[1].start + plan[1].stop) // 2
    assert plan[0].stop < middle < plan[1].stop < plan[2].stop
    at = middle if where == "middle" else plan[1].start

    class Cut(Exception):
        pass

    def batch(step):
        if step == at + (where == "middle"):
            raise Cut
        return task.train_batch(step)

    def fit(folder, task=task):
        fitted = loop.fit(task, plan, loop.Pace(middle, 3), 0, folder, verbose=False, verify_freeze=True)
        fitted.checkpoints.close()
        return fitted

    whole = fit(tmp_path / "whole")
    with pytest.raises(Cut):
        fit(tmp_path / "cut", task.replace(train_batch=batch))
    resumed = fit(tmp_path / "cut")
    assert resumed.resumed_from == at
    for name in ("variables", "eval_variables"):
        assert digest(jax.device_get(getattr(resumed.state, name))) == digest(
            jax.device_get(getattr(whole.state, name))
        ), name
    assert digest(jax.device_get(whole.state.eval_variables)) != digest(jax.device_get(whole.state.variables))
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    assert lines[0] == lines[1]
    assert whole.freeze["changed"] == 0 and set(whole.freeze["phases"]) == {"pretext", "adapters", "all"}


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A finished LoRA run and its exported files."""
    config = small.config(("epochs", 3.0), ("data.per_class", 3), ("optim.ema", 0.8), ("data.validation", 0.1))
    methods.METHODS["lora"](config)
    folder = tmp_path_factory.mktemp("lora")
    summary = training.train(recipe.override(config, ()), folder)
    return config, folder, summary, export(config, folder)


@pytest.mark.slow
def test_the_mixture_with_the_best_validation_is_tested_and_found_again(tmp_path):
    config = small.config(("epochs", 2.0), ("data.per_class", 3), ("data.validation", 0.1))
    methods.METHODS["wise_ft"](config)
    summary = training.train(recipe.override(config, ()), tmp_path)
    scores = summary["wise_ft"]["validation"]
    assert scores[f"{summary['wise_ft']['share']:g}"] == max(scores.values()) and len(scores) == 11
    assert training.test(config, tmp_path)["metrics"] == summary["metrics"]


@pytest.mark.slow
def test_a_delta_on_the_published_weights_equals_the_merged_file(lora):
    config, folder, summary, path = lora
    assert training.test(config, folder)["metrics"] == summary["metrics"]
    small_file = path.with_name("delta.safetensors")
    merged = pretrained.load("resnet8", "tl_jax", path)
    rebuilt = pretrained.load("resnet8", "tl_jax", delta=small_file)
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    first, second = (net.model.apply(net.variables, x)[0] for net in (merged, rebuilt))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)
    assert rebuilt.spec.num_classes == 10 and rebuilt.spec.image_size == 8 and not rebuilt.new_head
    leaves = pretrained.delta.read_delta(small_file)[2]
    kinds = {name.rpartition("/")[2] for name in leaves if name.startswith("params/")}
    assert kinds == {"lora_a", "lora_b", "kernel", "bias"}
    assert {name for name in leaves if name.endswith("/kernel")} == {"params/head/kernel"}
    assert any(name.startswith("batch_stats/") for name in leaves)
    # The network in the run, adapters apart, computes what the exported files do.
    task = ImageClassification(schema.freeze(config))
    _, _, state = training.restore(config, folder)
    batch = next(task.eval_batches("test"))
    inputs = merged.preprocess(batch["inputs"])
    mine = task.features(state.variables, batch)
    np.testing.assert_allclose(merged.model.apply(merged.variables, inputs)[1]["features"], mine, atol=1e-5)


@pytest.mark.slow
def test_a_delta_on_other_weights_is_refused(lora, tmp_path):
    delta = lora[3].with_name("delta.safetensors")
    with pytest.raises(UserError, match="applies to the weights with SHA-256"):
        pretrained.load("resnet8", "tl_jax", lora[3], delta=delta)
    with pytest.raises(UserError, match="a delta of resnet8"):
        pretrained.load("resnet50_tiny", "tl_jax", delta=delta)
    with pytest.raises(UserError, match="holds full weights"):
        pretrained.load("resnet8", "tl_jax", delta=lora[3])
    with pytest.raises(UserError, match="no file"):
        pretrained.load("resnet8", "tl_jax", delta=tmp_path / "absent")
    shutil.copytree(delta.parent, tmp_path / "damaged")
    whole = bytearray(delta.read_bytes())
    whole[-9] ^= 64
    (tmp_path / "damaged" / delta.name).write_bytes(whole)
    with pytest.raises(UserError, match=r"delta.safetensors: changed or truncated .SHA-256 .*copy the bundle again"):
        pretrained.load("resnet8", "tl_jax", delta=tmp_path / "damaged" / delta.name)


@pytest.mark.slow
def test_no_epochs_test_what_is_there(tmp_path):
    config = small.config(("epochs", 0.0), ("init.head", "ridge"), ("init.strength", 1.0), ("test_train", True))
    summary = training.train(config, tmp_path)
    assert summary["steps"] == 0 and summary["parameters"]["trainable"] == 0
    assert summary["metrics"]["accuracy"] > 0.5 and summary["train_metrics"]["accuracy"] > 0.9
    assert training.test(config, tmp_path)["metrics"] == summary["metrics"]
    assert training.train(config, tmp_path) == summary


@pytest.mark.slow
def test_looks_leave_pictures_and_start_no_run(tmp_path):
    config = small.config(("pretext.name", "simclr"), ("pretext.weight", 0.1), ("augment.flip", True))
    assert [path.name for path in Learner(config, tmp_path).preview()] == ["preview.png", "preview_pretext.png"]
    assert all(path.stat().st_size > 5000 for path in tmp_path.glob("*.png"))
    found = Learner(small.config(("data.per_class", 5)), tmp_path).find_lr()
    written = json.loads((tmp_path / "find_lr.json").read_text())
    assert written["suggested"] == found.suggested and 1e-5 < found.suggested < 1
    assert (tmp_path / "find_lr.png").stat().st_size > 5000 and found.head is None
    grouped = Learner(small.config(("data.per_class", 5), ("optim.backbone_lr_scale", 0.1)), tmp_path).find_lr()
    alone = Learner(small.config(("data.per_class", 5), ("freeze.recipe", "head")), tmp_path / "head").find_lr()
    assert grouped.head is not None and grouped.head.suggested == pytest.approx(alone.suggested, rel=0.01)
    written = json.loads((tmp_path / "find_lr.json").read_text())
    assert written["head"]["suggested"] == grouped.head.suggested and grouped.suggested == found.suggested
    assert (tmp_path / "find_lr_head.png").stat().st_size > 5000
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_the_study_runs_writes_and_skips_what_is_there(tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    def study(*names, workdir=tmp_path, rates="1e-3,1e-2"):
        command = [sys.executable, "-m", "experiments.mechanisms.study", "--smoke", f"--workdir={workdir}"]
        command += [f"--mechanisms={','.join(names)}", "--per_class=2", "--steps=2", f"--rates={rates}", "--seeds=0,1"]
        command += [f"--results={tmp_path / 'mechanisms'}"]
        root = Path(__file__).parents[2]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)

    done = study("scratch", "logistic", "knn", "soup")
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "mechanisms.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 * 2 and "| soup |" in (tmp_path / "mechanisms.md").read_text()
    assert (tmp_path / "mechanisms_gain.png").stat().st_size > 5000
    again = study("scratch", "logistic", "knn", "soup")
    assert again.returncode == 0 and again.stdout.count(f": in {tmp_path / 'mechanisms'}.csv") == 4
    elsewhere = study("logistic", "head", workdir=tmp_path / "elsewhere")  # goes on from the record
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert "--- logistic, 2 per class: in " in elsewhere.stdout and not (tmp_path / "elsewhere" / "logistic").exists()
    kept = (tmp_path / "mechanisms.csv").read_text().splitlines()
    assert len(kept) == 1 + 5 * 2 and set(rows) < set(kept)
    other = study("head", workdir=tmp_path / "elsewhere", rates="1e-3")
    assert other.returncode == 2 and "was made with another protocol.rates" in other.stderr
    wrong = study("lorra")
    assert wrong.returncode != 0 and "did you mean 'lora'" in wrong.stderr
