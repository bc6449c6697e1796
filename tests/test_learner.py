"""Three lines of Python: data in, predictions out; and a run's folder gives its learner back without its data."""

import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

import tl_jax
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
    assert learner.summary["steps"] >= 200 and "resnet8" in repr(learner)


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
    with pytest.raises(UserError, match="has the classes 'bleu', which the run does not know; .*'bleu': 'blue'"):
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
    with pytest.raises(UserError, match="the data are texts, and the run has config.task=image"):
        learner.evaluate((["a", "b"] * 10, ["x", "y"] * 10))


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
        ({"rl__env": "CartPole-v1"}, "config.rl.env has no effect with config.task=image"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path):
    images, labels = np.zeros((20, 8, 8, 3), np.uint8), [i % 2 for i in range(20)]
    with pytest.raises(UserError, match=message):
        tl_jax.fine_tune((images, labels), **{"model": "resnet8", "workdir": tmp_path / "run", **arguments})
