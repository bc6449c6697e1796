"""Three lines of Python: data in, predictions out; and a run's folder gives its learner back without its data."""

import csv
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tl_jax
from tl_jax.data.faces import draw_faces
from tl_jax.data.synthetic import draw_scenes
from tl_jax.tasks import image_task, text
from tl_jax.train.workdir import read_facts, write_json
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.slow
COLOURS = {"blue": (40, 40, 200), "red": (200, 40, 40)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images in the colour of their class."""
    top, rng = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (top / name).mkdir(parents=True)
        for i in range(15):
            pixels = np.clip(rng.normal(0, 30, (40, 40, 3)) + colour, 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(top / name / f"{i}.png")
    return top


@pytest.fixture(scope="module")
def learner(photos, tmp_path_factory):
    return tl_jax.fine_tune(photos, model="resnet8", image_size=32, workdir=tmp_path_factory.mktemp("runs") / "photos")


def test_images_are_learned_by_default(learner, photos):
    metrics = learner.evaluate()
    assert metrics["accuracy"] == 1.0 and metrics.examples == 6 and 0.5 < metrics.intervals["accuracy"][0] < 1.0
    assert "accuracy" in repr(metrics) and "<table>" in metrics._repr_html_()
    blue, red = learner.predict([photos / "blue" / "0.png", str(photos / "red" / "0.png")])
    assert (blue.label, red.label) == ("blue", "red") and blue.probability > 0.8
    assert sum(blue.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
    (only,) = learner.predict(photos / "red" / "1.png", top=1)
    assert list(only.probabilities) == ["red"]
    assert learner.config.epochs == 0 and "resnet8" in repr(learner)  # a linear probe knows these, too


def test_many_images_are_predicted_into_a_table(learner, photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "some" / "deeper")
    (folder / "blue" / "3.png").write_bytes(b"nothing")
    written = learner.write_predictions(tmp_path / "some", tmp_path / "p.csv", embeddings=True)
    with written.path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (len(rows), written.inputs, written.damaged) == (30, 30, 1)
    (damaged,) = (row for row in rows if row["error"])
    assert damaged["input"].endswith("blue/3.png") and "cannot decode" in damaged["error"]
    readable = [row for row in rows if not row["error"]]
    assert len(readable) == 29 and all(row["label"] == Path(row["input"]).parent.name for row in readable)
    given = [np.asarray(Image.open(row["input"])) for row in readable]
    alone = learner.predict(given, embeddings=True)  # the same images as arrays
    np.testing.assert_allclose(
        [float(row["probability_red"]) for row in readable], [each.probabilities["red"] for each in alone], atol=1e-5
    )
    features = np.load(tmp_path / "p.embeddings.npy")
    assert np.isnan(features).all(1).sum() == 1
    _, variables, _ = learner._trained
    kernel, bias = (np.asarray(variables["params"]["head"][name]) for name in ("kernel", "bias"))
    logits = features @ kernel + bias  # the head sits on them
    assert [learner.summary["facts"]["classes"][k] for k in logits.argmax(1)[~np.isnan(logits[:, 0])]] == [
        row["label"] for row in readable
    ]
    np.testing.assert_allclose([each.details["embedding"] for each in alone][0], features[0], rtol=1e-4, atol=1e-5)


def test_a_folder_of_a_run_answers_without_its_data(learner, photos, tmp_path, monkeypatch):
    before = learner.predict(photos / "red" / "1.png")
    monkeypatch.setattr(image_task, "load_network", None)  # nor are the weights that training started from
    shutil.copy(photos / "red" / "1.png", tmp_path / "new.png")
    moved = shutil.copytree(learner.workdir, tmp_path / "elsewhere")
    shutil.move(photos, photos.with_name("gone"))
    try:
        again = tl_jax.load_learner(moved)
        assert again.predict(tmp_path / "new.png")[0].probabilities == before[0].probabilities
        assert again.evaluate()["accuracy"] == 1.0
        assert again.explain([tmp_path / "new.png"]).is_file() and again.report().is_file()
        facts = read_facts(moved)
        write_json(moved / "facts.json", {**facts, "weights": str(tmp_path / "gone.safetensors")})
        bundle = tl_jax.load_learner(moved).export()
        assert (bundle / "bundle.json").is_file() and not (bundle / "delta.safetensors").exists()
    finally:
        shutil.move(photos.with_name("gone"), photos)


def test_another_labelled_set_is_tested_and_nothing_of_the_run_changes(learner, tmp_path):
    other, rng = tmp_path / "other_camera", np.random.default_rng(1)
    for name, colour in (("bleu", (60, 60, 180)), ("red", (180, 60, 60))):
        (other / name).mkdir(parents=True)
        for i in range(7):
            pixels = np.clip(rng.normal(0, 60, (50, 60, 3)) + colour, 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(other / name / f"{i}.png")
    files = {path: path.read_bytes() for path in learner.workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="the classes 'bleu' are not classes of the run .*'bleu': 'blue'"):
        learner.evaluate(other)
    metrics = learner.evaluate(other, classes={"bleu": "blue"})
    assert metrics.examples == 14 and metrics["accuracy"] > 0.8 and metrics.intervals["accuracy"][0] > 0.5
    said = [prediction.label for prediction in learner.predict(other)]
    right = sum(label == truth for label, truth in zip(said, ["blue"] * 7 + ["red"] * 7, strict=True))
    assert metrics["accuracy"] == pytest.approx(right / 14)
    assert all(path.read_bytes() == content for path, content in files.items())
    stored = json.loads((learner.workdir / "evaluations" / "other_camera.json").read_text())
    assert stored["examples_evaluated"] == 14 and stored["run"]["examples_evaluated"] == 6
    assert sum(row[2] for row in np.reshape(stored["details"]["confusion"], (-1, 3))) == 14
    assert "other_camera: 14 examples" in learner.report().read_text()
    with pytest.raises(UserError, match="the data are texts, and task=image learns from images"):
        learner.evaluate((["a", "b"] * 10, ["x", "y"] * 10))


def test_images_of_one_patient_count_together_elsewhere(learner, tmp_path):
    (tmp_path / "ward").mkdir()
    rows, rng = ["file,label,patient"], np.random.default_rng(1)
    for i in range(24):
        name = ("blue", "red")[i % 2]
        pixels = np.clip(rng.normal(0, 60, (40, 40, 3)) + COLOURS[name], 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "ward" / f"{i}.png")
        rows.append(f"{i}.png,{name if i > 3 else 'red'},p{i // 4}")  # of the first patient half is labelled wrongly
    (tmp_path / "ward" / "index.csv").write_text("\n".join(rows))
    apart = tl_jax.load_learner(learner.workdir).evaluate(tmp_path / "ward", name="apart")
    together = tl_jax.load_learner(learner.workdir).evaluate(tmp_path / "ward", group="patient")
    stored = json.loads((learner.workdir / "evaluations" / "ward.json").read_text())
    assert stored["details"]["groups"] == [i // 4 for i in range(24)] and together["accuracy"] == apart["accuracy"] < 1
    assert together.intervals["accuracy"] != apart.intervals["accuracy"] and together.intervals["accuracy"][1] == 1.0


def test_another_set_may_be_small_have_one_class_and_other_sizes(learner, tmp_path):
    (tmp_path / "few" / "red").mkdir(parents=True)
    for i, side in enumerate((90, 90, 90)):  # all of one size, which is not that of the run
        Image.new("RGB", (side, side), (190, 50, 50)).save(tmp_path / "few" / "red" / f"{i}.png")
    few = learner.evaluate(tmp_path / "few")
    assert few.examples == 3
    stored = json.loads((learner.workdir / "evaluations" / "few.json").read_text())
    wrong = sum(prediction.label != "red" for prediction in learner.predict(tmp_path / "few"))
    assert stored["metrics"]["accuracy"] == pytest.approx(1 - wrong / 3)
    arrays = np.full((4, 50, 60, 3), (190, 50, 50), np.uint8)
    table = {"file": sorted((tmp_path / "few" / "red").iterdir()), "label": ["red"] * 3}
    assert learner.evaluate((arrays, ["red"] * 4), name="arrays").examples == 4
    assert learner.evaluate(table, name="table")["loss"] == pytest.approx(few["loss"], rel=1e-5)


def test_options_are_known_when_the_data_are_read(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(12):
        Image.new("RGB", (16, 16), (200 * (i % 2), 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    rows = [f"{i}.png,{('dark', 'red')[i % 2]}" for i in range(12)]
    (tmp_path / "photos" / "index.csv").write_text("\n".join(["file,finding", *rows]))
    options = {"model": "resnet8", "image_size": 16, "batch_size": 4, "optim__lr": 0.0}
    options |= {"data__label": "finding", "method": "last_stages"}
    learner = tl_jax.fine_tune(tmp_path / "photos", workdir=tmp_path / "run", **options)
    assert learner.config.batch_size == 4 and learner.config.optim.lr == 0.0
    assert learner.summary["steps"] >= 200


def test_the_same_call_finds_its_run_again(learner, photos, caplog, monkeypatch):
    logger = logging.getLogger("tl_jax")
    monkeypatch.setattr(logger, "propagate", True)
    again = tl_jax.fine_tune(photos, model="resnet8", image_size=32, workdir=learner.workdir)
    assert again.summary == learner.summary and "is finished" in caplog.text


def test_arrays_methods_and_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, labels = np.random.default_rng(0), np.arange(60) % 2
    images = np.clip(rng.normal(60, 20, (60, 16, 16, 3)) + 90 * labels[:, None, None, None], 0, 255).astype(np.uint8)
    learner = tl_jax.fine_tune((images, labels), model="resnet8", method="logistic", image_size=16, seed=3)
    assert learner.evaluate()["accuracy"] == 1.0 and learner.workdir.parent.name == "runs" and learner.config.seed == 3
    trained = tl_jax.fine_tune(
        (images, labels), model="resnet8", weights="random", epochs=2, image_size=16, optim__lr=1e-2, batch_size=8
    )
    assert trained.config.optim.lr == 1e-2 and trained.config.init.source == "random"


def test_texts_are_learned_by_default(tmp_path, monkeypatch):
    rows = [f"{'good' if i % 2 else 'bad'} work {i},{'plus' if i % 2 else 'minus'}" for i in range(60)]
    (tmp_path / "mail.csv").write_text("\n".join(["text,label", *rows]))
    learner = tl_jax.fine_tune(tmp_path / "mail.csv", epochs=3, workdir=tmp_path / "run")
    assert learner.config.task == "text" and learner.evaluate()["accuracy"] > 0.8
    good, bad = learner.predict(["good work", "bad work"])
    assert (good.label, bad.label) == ("plus", "minus")
    (tmp_path / "mail.csv").unlink()
    monkeypatch.setattr(text, "load_network", None)  # nor are the weights that training started from there
    again = tl_jax.load_learner(shutil.copytree(tmp_path / "run", tmp_path / "moved"))
    assert again.predict(["good work"])[0].probabilities == good.probabilities
    (tmp_path / "new.csv").write_text('text,n\ngood work,1\nbad\n"bad, work",3\n')
    written = again.write_predictions(tmp_path / "new.csv", tmp_path / "p.jsonl", top=1, embeddings=True)
    rows = [json.loads(line) for line in written.path.read_text().splitlines()]
    assert [row.get("label") for row in rows] == ["plus", None, "minus"] and "new.csv:3: 1 columns" in rows[1]["error"]
    assert [row.get("n") for row in rows] == ["1", None, "3"]
    assert rows[0]["probability"] == pytest.approx(good.probability, rel=1e-5)
    assert np.isnan(np.load(tmp_path / "p.embeddings.npy")[:, 0]).tolist() == [False, True, False]
    other = {"text": ["good day", "bad day"] * 10, "label": ["plus", "minus"] * 10}
    assert learner.evaluate(other, name="days").examples == 20 and (tmp_path / "run/evaluations/days.json").is_file()


@pytest.mark.fast
@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"model": "resnet80"}, "model='resnet80': did you mean 'resnet8'"),
        ({"method": "lorra"}, "method='lorra' is unknown; did you mean 'lora'"),
        ({"weights": "lost.h5"}, "weights='lost.h5': no such file"),
        ({"optim__learning_rate": 3}, "unknown field config.optim.learning_rate"),
        ({"image_sise": 3}, "unknown argument 'image_sise'; did you mean 'image_size'"),
        ({"lr": 3}, "unknown field config.lr; did you mean 'optim.lr'"),
        ({"optim__lr": "high"}, "config.optim.lr='high' is not a finite number"),
        ({"rl__env": "CartPole-v1"}, "config.rl.env has no effect with config.task=image"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path):
    images, labels = np.zeros((20, 8, 8, 3), np.uint8), [i % 2 for i in range(20)]
    with pytest.raises(UserError, match=message):
        tl_jax.fine_tune((images, labels), **{"model": "resnet8", "workdir": tmp_path / "run", **arguments})


def same_answers(first, second, inputs):
    for one, other in zip(first.predict(inputs), second.predict(inputs), strict=True):
        assert one.label == other.label
        assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=1e-5)


def test_an_export_of_images_answers_as_its_run_does(learner, photos, tmp_path):
    bundle = shutil.copytree(learner.export(), tmp_path / "shared")
    again = tl_jax.load_learner(bundle)
    same_answers(learner, again, [photos / "red" / "1.png", photos / "blue" / "2.png"])
    assert again.evaluate()["accuracy"] == learner.evaluate()["accuracy"] == 1.0
    assert again.evaluate(photos, name="all").examples == 30 and again.explain(photos / "red" / "1.png").is_file()
    assert again.report().name == "README.md" and "resnet8" in repr(again)
    for call in (again.fit, again.export, again.preview, again.find_lr):
        with pytest.raises(UserError, match="shared: an export"):
            call()
    written = "".join(path.read_text() for path in (bundle / "run").iterdir())
    assert str(photos.parent) not in written and photos.name in written  # no folder of this machine
    (bundle / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="changed or truncated .*; copy the bundle again"):
        tl_jax.load_learner(bundle)


def test_an_export_of_texts_answers_without_anything_else(tmp_path, monkeypatch):
    rows = {"text": [f"{'good' if i % 2 else 'bad'} work {i}" for i in range(40)], "label": ["minus", "plus"] * 20}
    learner = tl_jax.fine_tune(rows, epochs=2, workdir=tmp_path / "run")
    bundle = tl_jax.load_learner(tmp_path / "run").export()
    monkeypatch.setattr(text, "load_network", None)  # nor are the weights that training started from there
    same_answers(learner, tl_jax.load_learner(shutil.move(bundle, tmp_path / "shared")), ["good work", "bad day"])


def test_texts_start_from_a_run(tmp_path):
    rows = {"text": [f"{'good' if i % 2 else 'bad'} work {i}" for i in range(40)], "label": ["minus", "plus"] * 20}
    first = tl_jax.fine_tune(rows, epochs=1, workdir=tmp_path / "run")
    second = tl_jax.fine_tune(rows, epochs=0, weights=first.workdir, init__head="keep", workdir=tmp_path / "next")
    same_answers(first, second, ["good work", "bad day"])


def test_boxes_are_learned_found_again_and_exported(tmp_path):
    some = draw_scenes(train=24, test=6, size=64)
    learner = tl_jax.fine_tune(some, model="resnet8", weights="random", image_size=64, epochs=1, workdir=tmp_path / "r")
    assert learner.config.task == "detection" and "map" in learner.evaluate()
    (before,) = learner.predict(some.test.inputs[0])
    again = tl_jax.load_learner(shutil.copytree(learner.export(), tmp_path / "shared"))
    (tmp_path / "far").mkdir()
    Image.fromarray(some.test.inputs[1]).save(tmp_path / "far" / "a.png")
    (tmp_path / "far" / "list.csv").write_text("file\na.png\n")
    rows = again.show_predictions([tmp_path / "far" / "list.csv", some.test.inputs[2]])  # drawn on each of them
    assert [row["input"] for row in rows] == [str(tmp_path / "far" / "a.png"), "image 1"]
    assert len(list((tmp_path / "shared" / "predictions").iterdir())) == 2
    (after,) = again.predict(some.test.inputs[0])
    assert after.details == before.details and learner.evaluate(some, name="all").examples == 30
    with pytest.raises(UserError, match="embeddings are not available"):
        learner.predict(some.test.inputs[0], embeddings=True)


def test_people_are_learned_and_known_elsewhere(tmp_path):
    album = draw_faces()
    for i, (image, person) in enumerate(zip(album.examples.inputs, album.examples.labels, strict=True)):
        folder = tmp_path / "people" / album.identities[person]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    learner = tl_jax.fine_tune(
        tmp_path / "people", task="faces", model="resnet8", image_size=32, epochs=1, workdir=tmp_path / "run"
    )
    assert learner.config.task == "faces" and learner.evaluate()["auc"] > 0.5
    image = sorted((tmp_path / "people" / "person01").iterdir())[0]
    (before,) = learner.predict(image, embeddings=True)
    bundle = shutil.copytree(learner.export(), tmp_path / "shared")
    shutil.move(tmp_path / "people", tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "person01" / image.name
    with pytest.raises(UserError, match="config.faces.known: no folder .*people of known people"):
        tl_jax.load_learner(bundle).predict(moved)
    (after,) = tl_jax.load_learner(bundle, faces__known=tmp_path / "elsewhere").predict(moved, embeddings=True)
    assert after.label == before.label and after.details["same"] == before.details["same"]
    np.testing.assert_allclose(after.details["embedding"], before.details["embedding"], atol=1e-4)
    with pytest.raises(UserError, match="faces.scale: fixed when the run was trained"):
        tl_jax.load_learner(bundle, faces__scale=3.0)


def test_a_policy_is_learned_shown_and_starts_another(tmp_path):
    short = {"rl__total_timesteps": 4096, "rl__episodes": 4, "rl__num_envs": 8, "batch_size": 512}
    learner = tl_jax.fine_tune("CartPole-v1", task="policy", workdir=tmp_path / "run", **short)
    assert "episode_return" in learner.evaluate() and learner.play().is_file()
    bundle = shutil.copytree(learner.export(), tmp_path / "shared")
    assert tl_jax.load_learner(bundle).play().read_bytes() == learner.play().read_bytes()
    second = tl_jax.fine_tune(
        "CartPole-v1", task="policy", weights=bundle, workdir=tmp_path / "next", epochs=0, **short
    )
    shutil.rmtree(bundle)
    assert tl_jax.load_learner(second.workdir).play().is_file() and second.evaluate()["episode_return"] > 0
