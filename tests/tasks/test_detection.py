"""Detection through the calls of the other tasks: train, resume, freeze, predict, export, and what is refused."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import detection_voc
from tests.data import boxed
from tl_jax import models, pretrained, training
from tl_jax.config import recipe, schema, validate
from tl_jax.data import synthetic
from tl_jax.export.bundle import export
from tl_jax.learner import Learner
from tl_jax.models.centernet import Detector, head_stages, map_shape
from tl_jax.report import images
from tl_jax.tasks import detection
from tl_jax.tasks.detection import focal_loss, loss_terms
from tl_jax.transfer import freeze
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

# The small network that ships, pretrained on CIFAR-10.
SMALL = (("model.name", "resnet8"), ("init.source", "tl_jax"), ("input.size", 32), ("eval_batch_size", 32))


def config_of(*changes):
    return recipe.override(detection_voc.get_config("smoke"), (*SMALL, *changes))


LONG = (
    ("data.train_examples", 0), ("epochs", 8.0), ("save_every", 4.0), ("augment.resized_crop", 0.0),
    ("augment.jitter", 0.0), ("freeze.verify", True),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on drawn scenes."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, training.train(config_of(*LONG), folder)


@pytest.mark.slow
def test_shapes_are_found(trained):
    folder, summary = trained
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert losses[-1] < 0.5 * losses[0]
    assert summary["metrics"]["map50"] > 0.2 and summary["metrics"]["map"] > 0.08  # 0.001 untrained
    assert summary["score"] == "map" and set(summary["per_class"]) == {"disc", "square", "triangle"}
    assert summary["examples_evaluated"] == 64 and summary["facts"]["weights_sha256"]
    assert training.test(config_of(*LONG), folder)["metrics"] == pytest.approx(summary["metrics"])


@pytest.mark.slow
def test_predictions_are_said_written_and_drawn(trained, tmp_path, capsys):
    folder, _ = trained
    source = synthetic.draw_scenes(size=32)
    for i in range(12):  # twice the size of what the network was trained on
        Image.fromarray(source.test.inputs[i]).resize((64, 64)).save(tmp_path / f"{i:02}.png")
    Image.new("RGB", (40, 80)).save(tmp_path / "other.png")
    found = Learner(config_of(*LONG), folder).show_predictions([str(tmp_path)])
    out = capsys.readouterr().out
    assert [row["input"] for row in found] == [str(path) for path in sorted(tmp_path.iterdir())]
    assert json.loads((folder / "predictions.json").read_text()) == found
    hits, wanted = 0, 0
    for row, label in zip(found[:12], source.test.labels, strict=False):
        assert [each["score"] for each in row["boxes"]] == sorted((e["score"] for e in row["boxes"]), reverse=True)
        for each in row["boxes"]:
            assert f"{each['class']}  {each['score']:.3f}" in out and each["score"] >= 0.3
            x0, y0, x1, y1 = each["box"]
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
        for *box, _, _ in label[label[:, 4] >= 0]:
            near = [np.abs(np.array(e["box"]) - 2 * np.array(box)).max() for e in row["boxes"]]
            hits, wanted = hits + (min(near, default=99) < 10), wanted + 1
    assert hits > wanted / 3
    sizes = [Image.open(folder / "predictions" / name).size for name in ("00.png", "other.png")]
    assert sizes == [(640, 640), (320, 640)]
    for bad, message in (
        (["absent.png"], "no file or folder absent.png; check the input"),
        ([], "no inputs"),
    ):
        with pytest.raises(UserError, match=message):
            Learner(config_of(*LONG), folder).show_predictions(bad)


@pytest.mark.slow
def test_an_export_starts_another_run_with_its_network(trained):
    folder, _ = trained
    net = pretrained.load("resnet8", "tl_jax", export(config_of(*LONG), folder))
    assert net.spec.num_classes == 0 and "head" not in net.variables["params"]
    started = pretrained.load("resnet8", "tl_jax", num_classes=0)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), net.variables["params"], started.variables["params"])
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.slow
def test_augmentation_is_drawn_with_boxes(tmp_path):
    (path,) = Learner(
        config_of(("augment.jitter", 0.0), ("augment.flip", False), ("augment.resized_crop", 0.0)), tmp_path
    ).preview()
    seen = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    assert all((seen == images.class_color(k)).all(1).sum() > 50 for k in range(3))


@pytest.mark.fast
def test_one_box_is_no_boxes():
    assert [detection.count_boxes(count) for count in np.arange(3)] == ["0 boxes", "1 box", "2 boxes"]


@pytest.mark.fast
def test_the_head_trains_alone_where_the_network_is_frozen():
    detector = Detector(models.create("resnet8", 0), 3, 16)
    params = jax.eval_shape(detector.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))[
        "params"
    ]
    moves = tree.flatten(freeze.trainable(dict(params), freeze.recipe_rules("head")))
    assert {path.split("/")[0] for path, trains in moves.items() if trains} == {"head"}
    assert {path.split("/")[0] for path, trains in moves.items() if not trains} == {
        "stem",
        "stage1",
        "stage2",
        "stage3",
    }


@pytest.mark.fast
@pytest.mark.parametrize(
    "name", ["mobilenet_v2_tiny", "resnet50_tiny", "resnet50v2_tiny", "resnet8", "vgg16_tiny", "inception_v3_tiny",
             "mobilenet_v2"],
)  # fmt: skip
def test_any_network_becomes_a_detector_and_keeps_its_names(name):
    backbone = models.create(name, 0, **({"fc": False} if "vgg" in name else {}))
    detector = Detector(backbone, 3, 16)
    pictures = jax.ShapeDtypeStruct((2, 96, 128, 3), np.float32)
    alone, whole = (jax.eval_shape(model.init, jax.random.key(0), pictures) for model in (backbone, detector))
    for kind in whole:
        old, new = (tree.flatten(dict(each)[kind]) for each in (alone, whole))
        assert {path: leaf.shape for path, leaf in new.items() if not path.startswith("head/")} == {
            path: leaf.shape for path, leaf in old.items()
        }
    out, end = jax.eval_shape(detector.apply, whole, pictures)
    assert out["heat"].shape == (2, 24, 32, 3) and out["sides"].shape == (2, 24, 32, 4)
    used = head_stages(detector.stage_names(), end, map_shape((96, 128)))
    sizes = [end[level].shape[1] for level in used]
    assert len(used) >= 2 and sizes == sorted(sizes, reverse=True) and sizes[0] <= 24


@pytest.mark.fast
def test_the_focal_loss_is_that_of_the_paper():
    logits, heat = np.array([-2.0, 0.5, 3.0, 0.0]), np.array([1.0, 1.0, 0.0, 0.6])
    p = 1 / (1 + np.exp(-logits))
    expected = [
        -((1 - p[0]) ** 2) * np.log(p[0]),
        -((1 - p[1]) ** 2) * np.log(p[1]),
        -(p[2] ** 2) * np.log(1 - p[2]),
        -((1 - 0.6) ** 4) * p[3] ** 2 * np.log(1 - p[3]),
    ]
    np.testing.assert_allclose(focal_loss(logits, heat), expected, rtol=1e-5)


@pytest.mark.fast
def test_an_object_in_a_crowd_is_still_to_be_found_and_nothing_else_is_said_there():
    labels = np.array([[[0, 0, 16, 32, 0, 1], [4, 4, 12, 12, 0, 0]]], np.float32)
    heat = np.full((1, 8, 8, 1), -9.0, np.float32)
    places = {"nowhere": (), "object": (2, 2), "crowd": (6, 1), "beside": (6, 6)}
    middles = {}
    for name, place in places.items():
        sure = heat.copy()
        if place:
            sure[0, *place, 0] = 9.0
        out = {"heat": sure, "sides": np.full((1, 8, 8, 4), 4.0, np.float32)}
        middles[name] = float(loss_terms(out, labels, np.ones(1), (1, 32, 32, 3))["middles"][0])
    assert middles["nowhere"] == middles["crowd"] == pytest.approx(9.0, abs=0.01)
    assert middles["object"] < 0.01 and middles["beside"] == pytest.approx(18.0, abs=0.01)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("augment.rotate", 10.0)], "augment.rotate has no effect with config.task=detection"),
        ([("augment.crop_pad", 4)], "augment.crop_pad has no effect with config.task=detection"),
        ([("regularize.mixup", 0.2)], "regularize.mixup has no effect with config.task=detection"),
        ([("init.head", "keep")], "init.head has no effect with config.task=detection"),
        ([("input.max_length", 7)], "input.max_length has no effect with config.task=detection"),
        ([("model.name", "bert")], "model.name=bert is no network for task=detection"),
    ],
)
def test_fields_of_other_tasks_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        validate.validate(config_of(*changes))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("data.generate", False), ("data.name", "vox")], "config.data.name='vox' has no boxes; did you mean 'voc'"),
        ([("data.generate", False), ("data.name", "voc")], "data.name=voc needs files; set config.data.dir to a path"),
        ([("detect.width", 12)], "config.detect.width=12 is not a multiple of 8"),
    ],
)
def test_bad_input_is_one_clear_line(changes, message):
    with pytest.raises(UserError, match=message):
        detection.Detection(schema.freeze(config_of(*changes)))


@pytest.mark.fast
def test_parts_without_objects_are_refused():
    source = synthetic.draw_scenes(train=8, test=4, size=32)
    source.test.labels[..., 4] = -1
    with pytest.raises(UserError, match="drawn: no image of the test split has an object"):
        detection.check_splits("drawn", {"train": source.train, "test": source.test})


@pytest.mark.fast
def test_a_class_that_train_has_lost_to_validation_is_said(capsys):
    source = synthetic.draw_scenes(train=6, test=2, size=32)
    detection.warn_missing_classes(source, source.train)
    assert capsys.readouterr().out == ""
    labels = source.train.labels.copy()
    labels[labels[..., 4] == 2, 4] = 1
    detection.warn_missing_classes(source, source.train._replace(labels=labels))
    assert "scenes: no object of triangle is left in train" in capsys.readouterr().err


@pytest.mark.slow
def test_boxes_are_named_by_the_classes_of_the_run_and_other_boxes_are_not_tested_on(tmp_path):
    rng, data = np.random.default_rng(0), tmp_path / "set"
    names = [f"p{i}" for i in range(12)]
    objects = {name: [(("cat", "dog")[i % 2], 0, 4, 4, 20, 20)] for i, name in enumerate(names)}
    boxed.write_voc(data, objects, {"train": names[:8], "test": names[8:]}, size=(32, 32))
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "one.png")
    changes = (
        ("data.generate", False), ("data.name", "voc"), ("data.dir", str(data)), ("data.validation", 0.0),
        ("data.train_examples", 0), ("data.test_examples", 0), ("epochs", 1.0), ("batch_size", 4),
        ("detect.score_threshold", 0.0), ("eval_checkpoint", "last"),
    )  # fmt: skip
    config, run = config_of(*changes), tmp_path / "run"
    assert training.train(config, run)["facts"]["classes"] == ["cat", "dog"]
    before = Learner(config, run).show_predictions([str(tmp_path / "one.png")])
    for file in (data / "Annotations").glob("*.xml"):
        file.write_text(file.read_text().replace("cat", "zebra"))
    assert Learner(config, run).show_predictions([str(tmp_path / "one.png")]) == before and before[0]["boxes"]
    with pytest.raises(UserError, match="'cat' missing, 'zebra' new"):
        training.test(config, run)
    for file in (data / "Annotations").glob("*.xml"):
        file.write_text(file.read_text().replace("zebra", "cat").replace("<xmax>20<", "<xmax>24<"))
    with pytest.raises(UserError, match=r"the test split differs .* \(4 examples then, 4 now, with other labels"):
        training.test(config, run)
