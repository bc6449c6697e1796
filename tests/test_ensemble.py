"""Ensembles, against what their networks say by themselves: the tests average with NumPy what each one predicts."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest

import tl_jax
from tests.configs import change
from tests.tasks import small
from tl_jax import ensemble, restore, training
from tl_jax.config import recipe, schema, validate
from tl_jax.metrics.intervals import paired_interval
from tl_jax.train.workdir import read_facts, read_json, write_json
from tl_jax.transfer import adapters
from tl_jax.utils.errors import UserError

SIZE = 3
SHORT = (("ensemble", SIZE), ("epochs", 4.0), ("data.test_examples", 60), ("seed", 5))


@pytest.fixture(scope="module")
def config():
    return small.config(*SHORT)


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    """A trained ensemble of small networks on digits."""
    workdir = tmp_path_factory.mktemp("runs") / "ensemble"
    training.train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def examples(config):
    """Images uint8 (N, 8, 8, 3) and labels of each split."""
    splits = restore.make_task(recipe.comparison_runs(config)[0][2]).splits
    return {name: (_rgb(split.inputs[np.arange(len(split.labels))]), split.labels) for name, split in splits.items()}


@pytest.fixture(scope="module")
def members(folder):
    """The networks, each opened by itself."""
    return [tl_jax.load_learner(path) for path in sorted((folder / "member").iterdir())]


def _rgb(images):
    return np.repeat(images, 3, -1) if images.shape[-1] == 1 else images


def probabilities(learner, images):
    """Return what a learner says of images, in the order of the classes."""
    rows = learner.predict(images)
    return np.asarray([[row.probabilities[str(k)] for k in range(10)] for row in rows])


def mean_of(learners, images):
    return np.mean([probabilities(learner, images) for learner in learners], axis=0)


def log_loss(values, labels):
    return -np.log(values[np.arange(len(labels)), labels]).mean()


def scaled(values, temperature):
    powers = values ** (1 / temperature)
    return powers / powers.sum(1, keepdims=True)


def named(report, name):
    (row,) = (row for row in report["rows"] if row["name"].startswith(name))
    return row


def test_the_mean_of_the_members_answers(folder, members, examples):
    images, labels = examples["test"]
    learner, expected = tl_jax.load_learner(folder), mean_of(members, images)
    np.testing.assert_allclose(probabilities(learner, images), expected, atol=1e-6)
    metrics = learner.evaluate()
    assert metrics["accuracy"] == pytest.approx((expected.argmax(1) == labels).mean())
    assert metrics["loss"] == pytest.approx(log_loss(expected, labels), abs=1e-5)
    assert metrics.examples == len(labels) and metrics.intervals["accuracy"][0] < metrics["accuracy"]
    assert learner.test()["metrics"] == pytest.approx(dict(metrics))
    assert learner.summary["seeds"] == [5, 6, 7] and "ensemble" in learner.summary


def test_the_members_share_their_splits_and_nothing_else(folder, config, members):
    facts = [read_facts(member.workdir)["data_sha256"] for member in members]
    assert facts[0] == facts[1] == facts[2]
    assert [member.config.seed for member in members] == [5, 6, 7]
    assert len({member.summary["parameters_sha256"] for member in members}) == SIZE
    alone = restore.make_task(recipe.override(config, (("ensemble", 0), ("seed", 6))))  # splits go by the seed else
    assert alone.facts["data_sha256"]["validation"] != facts[0]["validation"]
    assert alone.facts["data_sha256"]["test"] == facts[0]["test"]


def test_each_step_is_measured_on_the_same_examples(folder, members, examples):
    images, labels = examples["test"]
    report = read_json(folder / "ensemble.json")
    assert report["examples"] == len(labels) and report["final"] == "ensemble of 3"
    alone = [probabilities(member, images) for member in members]
    first = report["rows"][0]
    assert first["accuracy"] == pytest.approx(np.mean([(each.argmax(1) == labels).mean() for each in alone]))
    assert first["loss"] == pytest.approx(np.mean([log_loss(each, labels) for each in alone]), abs=1e-5)
    mirrored = (mean_of(members, images) + mean_of(members, images[:, :, ::-1])) / 2
    row = named(report, "ensemble of 3, mirrored views")
    assert row["accuracy"] == pytest.approx((mirrored.argmax(1) == labels).mean())
    assert row["loss"] == pytest.approx(log_loss(mirrored, labels), abs=1e-5)
    pairs = [(0, 1), (0, 2), (1, 2)]
    disagreement = np.mean([(alone[i].argmax(1) != alone[j].argmax(1)).mean() for i, j in pairs])
    assert report["disagreement"] == pytest.approx(disagreement)


def test_differences_have_paired_intervals(folder, members, examples):
    images, labels = examples["test"]
    alone = [probabilities(member, images) for member in members]
    right = np.mean([each.argmax(1) == labels for each in alone], axis=0)
    differences = (np.mean(alone, axis=0).argmax(1) == labels) - right
    rows = {row["name"]: row for row in read_json(folder / "ensemble.json")["rows"]}
    found = rows["ensemble of 3"]["difference"]["accuracy"]
    assert found["mean"] == pytest.approx(differences.mean())
    half = 1.96 * differences.std() / np.sqrt(len(labels))  # as the central limit theorem has it
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.15)
    assert found["low"] < found["mean"] < found["high"]


def test_the_soup_is_the_network_of_mean_weights(folder, members, examples):
    images, labels = examples["test"]
    variables = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *[member._trained.variables for member in members])
    task = members[0]._trained.task
    rows = list(task.predict(variables, task.read_inputs(images)))
    values = np.asarray([[row["probabilities"][str(k)] for k in range(10)] for row in rows])
    report = read_json(folder / "ensemble.json")
    assert named(report, "soup")["loss"] == pytest.approx(log_loss(values, labels), rel=1e-3)
    assert any(
        "the soup is expected to fail, as the networks started from different random heads" in note
        for note in report["notes"]
    )


def test_the_temperature_is_fitted_to_validation(folder, config, members, examples, tmp_path):
    shutil.copytree(folder / "member", tmp_path / "run" / "member")  # networks are the same, calibrated or not
    summary = training.train(recipe.override(config, (("calibrate", True),)), tmp_path / "run")
    held_out, (images, labels) = mean_of(members, examples["validation"][0]), examples["test"]
    candidates = np.geomspace(0.05, 20, 4001)
    losses = [log_loss(scaled(held_out, t), examples["validation"][1]) for t in candidates]
    temperature = candidates[int(np.argmin(losses))]
    assert summary["calibration"]["temperature"] == pytest.approx(temperature, rel=5e-3)
    before = mean_of(members, images)
    after = scaled(before, summary["calibration"]["temperature"])
    assert summary["metrics"]["loss"] == pytest.approx(log_loss(after, labels), abs=1e-4)
    assert summary["calibration"]["loss_before"] == pytest.approx(log_loss(before, labels), abs=1e-4)
    assert summary["metrics"]["accuracy"] == read_json(folder / "summary.json")["metrics"]["accuracy"]
    assert summary["ensemble"]["final"].startswith("ensemble of 3, temperature ")
    np.testing.assert_allclose(probabilities(tl_jax.load_learner(tmp_path / "run"), images), after, atol=1e-5)
    assert (tmp_path / "run" / "reliability.png").is_file()
    best = tl_jax.load_learner(tmp_path / "run", eval_checkpoint="best").test()  # a temperature of its own
    assert best["metrics"]["accuracy"] > 0


def test_another_set_is_tested_and_a_table_written(folder, members, examples, tmp_path):
    images, labels = examples["test"]
    learner = tl_jax.load_learner(shutil.copytree(folder, tmp_path / "moved"))
    assert learner.evaluate((images, [str(label) for label in labels]), name="again")["loss"] == pytest.approx(
        learner.evaluate()["loss"], abs=1e-5
    )
    learner.write_predictions(images[:5], tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = [[float(row[f"probability_{k}"]) for k in range(10)] for row in csv.DictReader(file)]
    np.testing.assert_allclose(rows, mean_of(members, images[:5]), atol=1e-5)
    shown = learner.show_predictions(images[:2])
    assert [row["input"] for row in shown] == ["image 0", "image 1"]
    page = learner.report().read_text()
    assert "<h2>Ensemble</h2>" in page and "soup of their weights" in page and "Of the ensemble." in page


def test_what_needs_one_network_names_a_folder(folder, examples, tmp_path):
    learner, images = tl_jax.load_learner(folder), examples["test"][0][:2]
    calls = {
        "export": learner.export,
        "explain": lambda: learner.explain(images),
        "embeddings": lambda: learner.predict(images, embeddings=True),
        "embeddings ": lambda: learner.write_predictions(images, tmp_path / "p.csv", embeddings=True),
    }
    for what, call in calls.items():
        with pytest.raises(UserError, match=f"{what.strip()} takes one network, not an ensemble of 3; .*member/seed5"):
            call()
    with pytest.raises(UserError, match="has 3 networks; set init.path to one of them, such as .*member/seed5"):
        training.train(small.config(("init.path", str(folder))), tmp_path / "run")


def test_a_member_that_is_cut_off_is_trained_alone(folder, config, tmp_path, capsys):
    moved = shutil.copytree(folder, tmp_path / "run")
    for path in (moved / "member" / "seed6" / "summary.json", moved / "summary.json", moved / "ensemble.json"):
        path.unlink()
    shutil.rmtree(moved / "member" / "seed7")
    kept = {path: path.stat().st_mtime_ns for path in (moved / "member" / "seed5" / "checkpoints").rglob("*")}
    before = read_json(folder / "summary.json")
    capsys.readouterr()
    summary = training.train(config, moved)
    assert capsys.readouterr().out.count("is finished") == 1
    assert summary["metrics"] == pytest.approx(before["metrics"])
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert training.train(config, moved) == summary  # which is not repeated
    with pytest.raises(UserError, match="belongs to a run with another config.ensemble"):
        training.train(recipe.override(config, (("ensemble", 2),)), moved)


def test_fewer_networks_than_were_trained_are_another_run(folder, config):
    with pytest.raises(UserError, match="belongs to a run with another config.ensemble .3 there, 2 here."):
        tl_jax.Learner(recipe.override(config, (("ensemble", 2),)), folder).predict(np.zeros((8, 8, 3), np.uint8))


def test_networks_of_other_data_are_refused(folder, config, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "run")
    facts = read_facts(moved / "member" / "seed6")
    facts["data_sha256"]["test"] = "0" * 64
    write_json(moved / "member" / "seed6" / "facts.json", facts)
    with pytest.raises(UserError, match="seed6: the test split is not that of .*seed5; restore the data"):
        ensemble.load(schema.freeze(config), moved)
    facts = read_facts(folder / "member" / "seed6")
    write_json(moved / "member" / "seed6" / "facts.json", {**facts, "classes": facts["classes"][::-1]})
    with pytest.raises(UserError, match="seed6: the order of classes is not that of .*seed5"):
        tl_jax.load_learner(moved).predict(np.zeros((8, 8, 3), np.uint8))


def test_equal_networks_are_called_so(tmp_path):
    changes = (("ensemble", 2), ("epochs", 0.0), ("init.head", "logistic"), ("init.strength", 1.0))
    summary = training.train(small.config(*changes, ("data.test_examples", 60)), tmp_path / "run")
    assert "all networks are the same" in summary["ensemble"]["notes"][0]
    assert summary["ensemble"]["disagreement"] == 0
    assert named(summary["ensemble"], "soup")["difference"]["accuracy"] == {"mean": 0, "low": 0, "high": 0}


@pytest.mark.fast
@pytest.mark.parametrize(
    "changes,message",
    [
        ((("ensemble", 1),), r"config.ensemble=1 is no ensemble; set it to 2 or more, or to 0"),
        ((("ensemble", 2), ("seeds", (0, 1))), "config.ensemble sets its seeds, .*; leave config.seeds"),
        ((("ensemble", 2), ("arms", (("a", ()),))), "config.ensemble sets its seeds"),
        ((("arms", (("a", (("ensemble", 2),)),)),), "arm 'a': config.ensemble is not for arms"),
        (
            (("task", "detection"), ("ensemble", 2)),
            r"ensembles need one class per example \(image or text\)",
        ),
        ((("member", 1), ("ensemble", 2)), "config.member=1 is set by config.ensemble in its runs"),
        ((("member", 1),), "config.member=1: the first seed of its ensemble would be -1"),
        ((("ensemble", -1),), "config.ensemble=-1 must be at least 0"),
    ],
)
def test_mistakes_are_one_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        validate.validate(change(recipe.get_config(), *changes))
    assert "\n" not in str(error.value)


@pytest.mark.fast
def test_policies_are_no_ensembles():
    config = recipe.get_config("policy")
    recipe.policy(config)
    config.ensemble = 2
    with pytest.raises(UserError, match="ensembles need one class per example .*config.task=policy lacks"):
        validate.validate(config)


@pytest.mark.fast
def test_members_have_seeds_in_a_row_and_no_temperature():
    config = change(recipe.get_config(), ("ensemble", 2), ("seed", 3), ("calibrate", True))
    runs = [
        (name, run.seed, run.member, run.ensemble, run.calibrate) for name, _, run in recipe.comparison_runs(config)
    ]
    assert runs == [("member", 3, 0, 0, False), ("member", 4, 1, 0, False)]
    for _, _, run in recipe.comparison_runs(config):
        validate.validate(run)


@pytest.mark.fast
def test_adapters_are_merged_before_they_are_averaged():
    config = adapters.AdapterConfig("lora", rank=2, alpha=2.0)
    rng = np.random.default_rng(0)
    runs = []
    for _ in range(2):
        layer = {
            "kernel": rng.normal(size=(8, 8)),
            "lora_a": rng.normal(size=(8, 2)),
            "lora_b": rng.normal(size=(2, 8)),
        }
        runs.append({"params": {"layer": layer}, "batch_stats": {}})
    merged = [ensemble._merged(run, type("Config", (), {"adapt": config}))["params"]["layer"] for run in runs]
    for run, plain in zip(runs, merged, strict=True):
        layer = run["params"]["layer"]
        np.testing.assert_allclose(plain["kernel"], layer["kernel"] + layer["lora_a"] @ layer["lora_b"], rtol=1e-6)
        assert set(plain) == {"kernel"}


@pytest.mark.fast
def test_groups_widen_a_paired_interval():
    differences = np.repeat([1.0, 0.0, 0.0, -1.0, 1.0, 0.0], 20)
    low, high = paired_interval(differences)
    wide_low, wide_high = paired_interval(differences, np.repeat(np.arange(6), 20))
    assert wide_low < low < differences.mean() < high < wide_high
    assert paired_interval(np.zeros(10)) == (0.0, 0.0)


@pytest.mark.slow
def test_texts_may_be_an_ensemble(tmp_path):
    data = {"text": [f"{'good' if i % 2 else 'bad'} work {i}" for i in range(60)], "label": ["minus", "plus"] * 30}
    learner = tl_jax.fine_tune(data, method="fine_tune", epochs=1, ensemble=2, workdir=tmp_path / "run")
    members = [tl_jax.load_learner(path) for path in sorted((tmp_path / "run" / "member").iterdir())]
    texts, summary = ["good day", "it is bad"], learner.summary
    alone = [member.predict(texts) for member in members]
    for i, row in enumerate(learner.predict(texts)):
        for name, value in row.probabilities.items():
            assert value == pytest.approx(np.mean([rows[i].probabilities[name] for rows in alone]), abs=1e-6)
    assert list(summary["metrics"]) == list(members[0].summary["metrics"]) and summary["per_class"]
    assert not any("mirrored" in row["name"] for row in summary["ensemble"]["rows"])
    learner.write_predictions(texts, tmp_path / "p.jsonl")
    assert json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])["input"] == "good day"


@pytest.mark.slow
def test_the_method_is_chosen_once_and_python_has_it_in_one_word(tmp_path):
    rng, labels = np.random.default_rng(0), np.arange(80) % 2
    images = np.clip(rng.normal(60, 60, (80, 16, 16, 3)) + 25 * labels[:, None, None, None], 0, 255).astype(np.uint8)
    options = {"model": "resnet8", "image_size": 16, "workdir": tmp_path / "run", "ensemble": 2}
    learner = tl_jax.fine_tune((images, labels), **options)
    assert [str(path.relative_to(tmp_path / "run")) for path in tmp_path.rglob("choice.json")] == ["choice.json"]
    assert learner.config.ensemble == 2 and learner.summary["choice"]["reason"]
    assert len(learner.predict(images[:3])) == 3 and "accuracy" in learner.evaluate()
    stored = [json.loads(path.read_text()) for path in tmp_path.rglob("member/*/config.json")]
    assert {config["method"] for config in stored} == {""} and {config["member"] for config in stored} == {0, 1}
    assert tl_jax.fine_tune((images, labels), **options).summary == learner.summary
