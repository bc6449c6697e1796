"""People as a task: the smoke recipe from training to predictions and back from its export, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from configs import faces_verification
from tl_jax import pretrained, training
from tl_jax.config import recipe, schema, validate
from tl_jax.data import faces
from tl_jax.export.bundle import export
from tl_jax.learner import Learner
from tl_jax.tasks import face_verification
from tl_jax.train.evaluate import evaluate, extract
from tl_jax.train.state import stream_key
from tl_jax.train.workdir import read_json
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.slow
SMALL = (("eval_batch_size", 50),)


def configure(*changes):
    return recipe.override(faces_verification.get_config("smoke"), (*SMALL, *changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, training.train(configure(("epochs", 6.0), ("save_every", 3.0)), folder)


def test_it_learns_and_says_how_well_with_intervals_over_people(run):
    folder, summary = run
    values, between = summary["metrics"], summary["intervals95"]
    assert values["auc"] > 0.8 and values["rank1"] > 0.5  # of 6 people who were not in training; 0.5 and 0.17 by chance
    assert all(low <= values[name] <= high for name, (low, high) in between.items()) and "auc" in between
    assert summary["pairs"] == {"people": 6, "same": 6 * 28, "different": 15 * 64}
    assert np.isnan(values["tar_at_1e-3"])
    written = json.loads((folder / "summary.json").read_text())
    assert written["metrics"]["tar_at_1e-3"] is None and written["examples_evaluated"] == 48
    assert written["missing"] == {"tar_at_1e-3": "needs 1,000 pairs of different people; there are 960"}
    with Image.open(folder / "roc.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] > 400 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    again = training.train(configure(("epochs", 6.0), ("save_every", 3.0)), folder)  # is finished: only shown
    assert again["metrics"]["auc"] == values["auc"]
    assert training.test(configure(("epochs", 6.0), ("save_every", 3.0)), folder)["metrics"]["auc"] == values["auc"]


def test_predictions_name_the_person_and_say_same_or_different(run, tmp_path):
    folder, _ = run
    album = faces.draw_faces()
    chosen = {0: "a.png", 9: "b.png"}  # persons 0 and 1
    for row, name in chosen.items():
        Image.fromarray(album.examples.inputs[row]).save(tmp_path / name)
    config = configure(("epochs", 6.0), ("save_every", 3.0))
    found = Learner(config, folder).show_predictions([str(tmp_path)])
    assert [entry["person"] for entry in found] == ["person00", "person01"]  # the very pictures are known
    assert all(entry["similarity"] == pytest.approx(1.0, abs=1e-4) and entry["same"] for entry in found)
    assert json.loads((folder / "predictions.json").read_text()) == found
    # Two people are known, and neither is person 0 or 1: a picture is not compared with itself.
    known = tmp_path / "known"
    for row in (16, 17, 24, 25):
        person = known / album.identities[album.examples.labels[row]]
        person.mkdir(parents=True, exist_ok=True)
        Image.fromarray(album.examples.inputs[row]).save(person / f"{row}.png")
    other = recipe.override(config, (("faces.known", str(known)),))
    (one,) = Learner(other, folder).show_predictions([str(known / "person02" / "16.png")])
    assert one["person"] in ("person02", "person03") and not one["picture"].endswith("/16.png")
    assert one["same"] == (one["similarity"] >= one["threshold"]) and -1 <= one["threshold"] < 1
    with pytest.raises(UserError, match="no inputs; pass images"):
        Learner(config, folder).show_predictions([])
    with pytest.raises(UserError, match="no file or folder .*nowhere; check the input"):
        Learner(config, folder).show_predictions([str(tmp_path / "nowhere")])
    lost = recipe.override(config, (("faces.known", str(tmp_path / "lost")),))
    with pytest.raises(UserError, match="config.faces.known: no folder .*lost of known people"):
        Learner(lost, folder).show_predictions([str(tmp_path)])


def test_predictions_use_the_threshold_of_the_run(run, tmp_path):
    folder, summary = run
    config = configure(("epochs", 6.0), ("save_every", 3.0))
    copied = shutil.copytree(folder, tmp_path / "run")
    kept = read_json(copied / "summary.json")
    assert kept["threshold"] == summary["threshold"] and -1 < summary["threshold"] < 1
    task, _, state = training.restore(config, folder)  # with its data, to which the threshold is fitted anew
    assert face_verification.validation_threshold(task, state.variables) == pytest.approx(
        summary["threshold"], abs=1e-4
    )
    Image.fromarray(faces.draw_faces().examples.inputs[0]).save(tmp_path / "a.png")
    for value in (summary["threshold"], 0.125):
        (copied / "summary.json").write_text(json.dumps({**kept, "threshold": value}))
        (found,) = Learner(config, copied).show_predictions([str(tmp_path / "a.png")])
        assert found["threshold"] == value


def test_people_may_join_those_that_are_known(tmp_path):
    album, data = faces.draw_faces(), tmp_path / "people"
    write_people(data, range(64), album)  # eight people, eight pictures each
    config = configure(("data.dir", str(data)), ("data.validation", 0.34), ("epochs", 1.0))
    training.train(config, tmp_path / "run")
    write_people(data, range(64, 80), album)
    (found,) = Learner(config, tmp_path / "run").show_predictions([str(data / album.files[72])])
    assert found["person"] and found["threshold"] is not None
    with pytest.raises(UserError, match="split differs from the one that the run was started with"):
        training.test(config, tmp_path / "run")


def test_an_export_puts_out_the_embeddings(run):
    folder, _ = run
    config = configure(("epochs", 6.0), ("save_every", 3.0))
    net = pretrained.load("resnet8", "tl_jax", export(config, folder))
    task = face_verification.FaceVerification(schema.freeze(config))
    state = training.restore(config, folder)[2]
    images = faces.draw_faces().examples.inputs[:4]
    raw, _ = jax.jit(net.model.apply)(net.variables, net.preprocess(images))
    assert raw.shape == (4, 32)
    expected = jax.jit(task.outputs)(state.variables, {"inputs": images})
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), expected, atol=1e-4)


def test_the_head_alone_trains_on_kept_features(tmp_path, monkeypatch):
    from tl_jax.tasks import feature_cache

    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_cache, "MIN_FLOPS_PER_BYTE", 0.0)  # on pictures of 32 pixels nothing is much work
    plain = (("freeze.recipe", "head"), ("augment.flip", False), ("augment.crop_pad", 0), ("epochs", 2.0))
    config = configure(*plain, ("save_every", 2.0))
    on, off = (
        training.train(config, tmp_path),
        training.test(config, tmp_path),
    )  # the second goes through the whole network
    assert list((tmp_path / "cache" / "features").glob("*.npy"))
    assert on["metrics"]["auc"] == pytest.approx(off["metrics"]["auc"], abs=2e-3)
    centres, embedding = 32 * on["examples"]["train"] // 8, 128 * 32 + 32
    assert on["parameters"]["trainable"] == centres + embedding


def write_people(folder, rows, album):
    """Write drawn pictures as LFW names them."""
    for row in rows:
        file = folder / album.files[row]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(album.examples.inputs[row]).save(file)
    return folder


def test_a_file_of_pairs_names_the_test_part_and_what_is_scored(tmp_path):
    album = faces.draw_faces()
    write_people(tmp_path / "set", range(80), album)  # ten people, eight pictures each
    lines = [f"person0{p} {i} {i + 1}" for p in (7, 8, 9) for i in (1, 3, 5, 7)]
    lines += [f"person0{p} {i} person0{q} {i}" for p, q in ((7, 8), (8, 9), (7, 9)) for i in (1, 3, 5, 7)]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    changes = (
        ("data.dir", str(tmp_path / "set")),
        ("faces.pairs", str(tmp_path / "pairs.txt")),
        ("data.validation", 0.0),
    )
    config = configure(*changes, ("faces.embedding", 0))
    task = face_verification.FaceVerification(schema.freeze(config))
    assert task.classes == tuple(f"person0{i}" for i in range(7)) and task.sizes == {
        "train": 56,
        "validation": 0,
        "test": 24,
    }
    variables = task.init(stream_key(0, "init"))
    assert variables["params"]["extra"]["people"]["kernel"].shape == (128, 7)  # on the features as they are
    trial = evaluate(task, variables, "test").evaluation.predictions
    assert len(trial.scores) == 24 and trial.same.sum() == 12
    embeddings = extract(task.outputs, variables, task.eval_batches("test"))  # person 7, 8, 9, eight pictures each
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-5)
    mine = [embeddings[8 * p + i] @ embeddings[8 * p + i + 1] for p in range(3) for i in (0, 2, 4, 6)]
    mine += [embeddings[8 * p + i] @ embeddings[8 * q + i] for p, q in ((0, 1), (1, 2), (0, 2)) for i in (0, 2, 4, 6)]
    np.testing.assert_allclose(trial.scores, np.sort(mine)[::-1], atol=1e-5)
    expected = sklearn_metrics.roc_auc_score(np.arange(24) < 12, mine)
    assert evaluate(task, variables, "test").values["auc"] == pytest.approx(expected, abs=1e-6)
    assert evaluate(task, variables, "train").evaluation.predictions.same.sum() == 7 * 28  # every pair of another part


def test_views_are_averaged_and_parts_share_nobody():
    task, two = (
        face_verification.FaceVerification(schema.freeze(configure())),
        face_verification.FaceVerification(schema.freeze(configure(("test_views", 2)))),
    )
    variables = task.init(stream_key(0, "init"))
    batch, predict = next(task.eval_batches("test")), jax.jit(task.outputs)
    sides = [
        np.asarray(predict(variables, {"inputs": image})) for image in (batch["inputs"], batch["inputs"][:, :, ::-1])
    ]
    mean = sum(sides) / np.linalg.norm(sum(sides), axis=1, keepdims=True)
    np.testing.assert_allclose(jax.jit(two.outputs)(variables, {"inputs": batch["inputs"]}), mean, atol=1e-5)
    people_of = {part: {k for b in task.eval_batches(part) for k in b["label"].tolist()} for part in task.sizes}
    assert people_of["train"] == set(range(14)) and people_of["test"] == set(range(18, 24))
    assert not people_of["train"] & people_of["validation"] and not people_of["test"] & people_of["validation"]


@pytest.mark.parametrize(
    "changes,message",
    [
        ((("init.head", "logistic"),), "init.head=logistic fits classes, but task=faces trains embeddings"),
        ((("regularize.mixup", 0.2),), "regularize.mixup has no effect with config.task=faces"),
        ((("data.test_examples", 5),), "data.test_examples has no effect with config.task=faces"),
        ((("faces.pairs", "a"), ("faces.test_file", "b")), "both define the test identities; omit one"),
        (
            (("faces.pairs", "a"), ("faces.test_identities", 5.0)),
            "faces.test_identities and split_seed have no effect with",
        ),
        ((("faces.loss", "softmax"),), "faces.scale and margin have an effect with config.faces.loss=arcface only"),
        ((("faces.loss", "arcfase"),), "did you mean 'arcface'"),
    ],
)
def test_fields_that_do_not_go_together(changes, message):
    with pytest.raises(UserError, match=message):
        validate.validate(configure(*changes))


def test_sets_without_people():
    with pytest.raises(UserError, match="data.name='digits' has no people; choose one of drawn_faces, folder, lfw"):
        face_verification.FaceVerification(schema.freeze(configure(("data.generate", False), ("data.name", "digits"))))
    with pytest.raises(UserError, match="needs files; set config.data.dir to a path with FOLDER/PERSON/PICTURE"):
        face_verification.FaceVerification(schema.freeze(configure(("data.generate", False))))
