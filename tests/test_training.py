"""Whole runs through ``tl_jax.training``: the comparison of the default recipe, best checkpoints, members evaluated."""

import contextlib
import json

import pytest

from configs import digits_resnet
from tests.tasks import small
from tl_jax import pretrained, restore, training
from tl_jax.config import recipe, stored
from tl_jax.export.bundle import export
from tl_jax.train.workdir import read_json
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Two seeds of both arms of the default recipe, a few steps each, on small pictures."""
    folder = tmp_path_factory.mktemp("comparison")
    config = digits_resnet.get_config("smoke")
    changes = (("seeds", (0, 1)), ("input.size", 8), ("data.validation", 0.1))
    return folder, recipe.override(config, changes), training.train(recipe.override(config, changes), folder)


def test_comparison_leaves_summary_and_picture(comparison):
    folder, _, summary = comparison
    assert summary == read_json(folder / "summary.json")
    assert (folder / "comparison.png").stat().st_size > 5000
    assert summary["config_name"] == "digits_resnet_smoke" and summary["seeds"] == [0, 1]
    for arm in ("pretrained", "scratch"):
        for i, seed in enumerate((0, 1)):
            member = json.loads((folder / arm / f"seed{seed}" / "summary.json").read_text())
            assert member["metrics"]["accuracy"] == summary["arms"][arm]["values"][i]
            assert member["seed"] == seed and member["examples"] == {"train": 50, "validation": 120, "test": 64}
    assert summary["metrics"]["accuracy"] == pytest.approx(sum(summary["arms"]["pretrained"]["values"]) / 2)


def test_both_arms_see_the_same_examples_and_different_weights(comparison):
    folder, config, _ = comparison
    tasks = [restore.make_task(member) for _, seed, member in recipe.comparison_runs(config) if seed == 0]
    first, second = (task.train_batch(0) for task in tasks)
    assert (first["inputs"] == second["inputs"]).all()
    facts = [json.loads((folder / arm / "seed0" / "facts.json").read_text()) for arm in ("pretrained", "scratch")]
    assert facts[0]["weights_sha256"] and not facts[1]["weights_sha256"]


def test_a_finished_comparison_is_returned(comparison, capsys):
    folder, config, summary = comparison
    assert training.train(config, folder) == summary
    assert capsys.readouterr().out.count("is finished") == 4


def test_members_can_be_evaluated_and_the_comparison_names_them(comparison):
    folder, config, summary = comparison
    member = folder / "pretrained" / "seed1"
    result = training.test(stored.get_config(str(member)), member)
    assert result["metrics"]["accuracy"] == summary["arms"]["pretrained"]["values"][1]
    with pytest.raises(UserError, match="is a comparison; pass one of its runs, such as .*seed0"):
        training.test(config, folder)


def test_export_keeps_what_the_inputs_were(comparison):
    folder, _, _ = comparison
    member = folder / "pretrained" / "seed0"
    path = export(stored.get_config(str(member)), member)
    spec = pretrained.load("resnet8", "tl_jax", path).spec
    assert (spec.image_size, spec.crop, spec.interpolation, spec.scaling) == (8, 1.0, "bilinear", "tf")


def test_the_best_checkpoint_is_tested_when_asked_for(comparison, tmp_path):
    _, config, _ = comparison
    _, _, scratch = recipe.comparison_runs(config)[1]
    changes = (
        ("eval_checkpoint", "best"),
        ("optim.lr", 0.1),
        ("optim.schedule", "constant"),
        ("save_every", 0.5),
        ("epochs", 4.0),
    )
    summary = training.train(recipe.override(scratch, changes), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["accuracy"] for row in rows if row["split"] == "validation"}
    assert scores[summary["tested_step"]] == max(scores.values())
    assert len(scores) > 3 and summary["steps"] == max(scores)


def test_what_may_take_long_is_shown(tmp_path, monkeypatch):
    shown = []

    @contextlib.contextmanager
    def waiting(what):
        shown.append(what)
        yield

    monkeypatch.setattr(training, "show_elapsed", waiting)
    training.train(small.config(("epochs", 0.0), ("data.per_class", 2)), tmp_path)
    assert shown == ["loading weights and data", "testing"]


def test_a_fitted_head_is_evaluated_before_the_first_step_and_training_has_to_beat_it(tmp_path):
    fitted = (("init.head", "logistic"), ("init.strength", 1.0), ("data.validation", 0.2))
    probe = training.train(small.config(*fitted, ("epochs", 0.0)), tmp_path / "probe")
    config = small.config(*fitted, ("epochs", 3.0), ("optim.lr", 0.5))
    run = tmp_path / "run"
    run.mkdir()
    rows = [json.loads(line) for line in (tmp_path / "probe" / "metrics.jsonl").read_text().splitlines()]
    (start,) = [row for row in rows if row["split"] == "validation"]
    (run / "metrics.jsonl").write_text(
        (tmp_path / "probe" / "metrics.jsonl").read_text()
    )  # cut off before it was saved
    summary = training.train(config, run)
    again = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (again_start,) = [row for row in again if row["phase"] == "start"]
    assert again_start["accuracy"] == start["accuracy"] and again_start["step"] == 0
    assert any("with the fitted head alone" in text for text in summary["advice"])
    assert summary["metrics"]["accuracy"] < probe["metrics"]["accuracy"]


def test_where_validation_chose_the_strength_it_is_no_bar(tmp_path):
    config = small.config(("init.head", "logistic"), ("data.validation", 0.2), ("epochs", 1.0))
    training.train(config, tmp_path)
    assert '"start"' not in (tmp_path / "metrics.jsonl").read_text()
