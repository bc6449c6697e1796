"""Grad-CAM: by hand where the head is linear on the average, and on pictures whose evidence lies in a known corner."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

from configs import ct_classification
from tests.tasks import small
from tl_jax import training
from tl_jax.config import stored
from tl_jax.learner import Learner
from tl_jax.tasks import image_classification
from tl_jax.tasks.image_classification import explain, make_grad_cam
from tl_jax.tasks.losses import Maps
from tl_jax.utils.errors import UserError

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corner(tmp_path_factory):
    """A run on noise in which only the bright spot at the upper left tells the class."""
    top = tmp_path_factory.mktemp("corner")
    for part, count in (("train", 40), ("val", 20), ("test", 20)):
        for name in ("plain", "spot"):
            folder = top / "set" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture = RNG.normal(90, 25, (32, 32))
                if name == "spot":
                    picture[3:11, 3:11] += 110
                Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    rows = [f"{p.relative_to(top / 'set')},{p.parent.parent.name}{p.parent.name}{int(p.stem) // 4}"
            for p in (top / "set").rglob("*.png")]  # fmt: skip
    (top / "set" / "index.csv").write_text("\n".join(["file,patient", *rows]))
    config = ct_classification.get_config("smoke")
    config.model.name, config.input.size, config.data.dir, config.data.group = (
        "resnet8",
        32,
        str(top / "set"),
        "patient",
    )
    config.init.source, config.init.path, config.positive = "tl_jax", "cifar10", "spot"
    config.augment.flip, config.augment.crop_pad, config.augment.rotate = False, 0, 0.0
    config.data.train_examples, config.epochs, config.optim.lr = 0, 6.0, 3e-3
    config.save_every = 6.0
    folder = top / "run"
    return top, folder, training.train(config, folder)


def test_the_map_lies_where_the_evidence_is(corner):
    top, folder, summary = corner
    assert summary["metrics"]["accuracy"] > 0.9 and summary["metrics"]["auc"] > 0.95
    config = stored.get_config(str(folder))
    task, _, state = training.restore(config, folder)
    found, _ = explain(task.predictor, state.variables, task.read_inputs(top / "set" / "test" / "spot"))
    assert found.images.shape == (20, 32, 32, 3) and len(found.files) == 20
    maps = found.maps[np.array(found.classes) == "spot"]
    h, w = maps.shape[1:]
    assert h >= 4
    share = maps[:, : h // 2, : w // 2].sum((1, 2)) / maps.sum((1, 2))
    assert share.mean() > 0.5  # of a quarter of the area


@pytest.fixture(scope="module")
def trained(corner):
    """The network of that run, its variables and a batch of pictures with a class each."""
    task, _, state = training.restore(stored.get_config(str(corner[1])), corner[1])
    batch = next(task.eval_batches("test"))
    batch = {"inputs": batch["inputs"][:4], "label": np.array([0, 1, 1, 0], np.int32)}
    return task.predictor.network, state.variables, batch


def test_with_a_linear_head_it_is_the_class_activation_map(trained):
    """Zhou et al. 2016: weights of the class times features; the averages of the gradient are these over h w."""
    net, variables, batch = trained
    maps = jax.jit(make_grad_cam(net))(variables, batch)
    last = net.model.stage_names()[-1]
    features = np.asarray(jax.jit(net.predict)(variables, batch["inputs"])[1][last], np.float64)
    weights = np.asarray(variables["params"]["head"]["kernel"], np.float64)[:, batch["label"]]  # (D, N)
    expected = np.maximum(np.einsum("nhwd,dn->nhw", features, weights), 0) / np.prod(features.shape[1:3])
    assert expected.shape[1] > 1 and (expected.max((1, 2)) > 0).sum() > 1
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6)


def test_at_an_earlier_endpoint_it_is_the_gradient_that_differences_show(trained):
    net, variables, batch = trained
    name = net.model.stage_names()[-2]
    one = {key: values[1:2] for key, values in batch.items()}
    found = np.asarray(jax.jit(make_grad_cam(net, name))(variables, one))[0]
    maps = jax.jit(net.predict)(variables, one["inputs"])[1][name]
    rest = net._replace(model=net.model.clone(start=name), inputs=Maps())
    moves = 1e-2 * jnp.eye(maps.shape[-1])[:, None, None]  # of one channel, at all positions: the gradient's sum
    logits = [np.asarray(jax.jit(rest.predict)(variables, maps + sign * moves)[0])[:, 1] for sign in (1, -1)]
    slopes = (logits[0] - logits[1]) / 2e-2 / np.prod(maps.shape[1:3])
    sums = (np.asarray(maps[0]) * slopes).sum(-1)
    assert np.abs(sums).max() > 0 and found.max() > 0
    np.testing.assert_allclose(found, np.maximum(sums, 0), atol=0.05 * np.abs(sums).max())


def test_the_run_leaves_pictures_and_predicts_with_its_temperature(corner, capsys):
    top, folder, summary = corner
    kept = json.loads((folder / "summary.json").read_text())
    temperature = kept["calibration"]["temperature"]
    assert temperature == summary["calibration"]["temperature"] != 1.0
    assert kept["intervals"]["over"] == "10 groups" and kept["operating_point"]["positive"] == "spot"
    assert (folder / "reliability.png").stat().st_size > 5000
    config = stored.get_config(str(folder))
    file = str(top / "set" / "test" / "spot" / "0.png")
    (found,) = Learner(config, folder).show_predictions([file])
    task, _, state = training.restore(config, folder)
    asked = task.predictor._replace(validation=None)  # as the network puts it
    (plain,) = image_classification.predict_images(asked, state.variables, task.read_inputs(file))
    logits = {name: np.log(p) / temperature for name, p in plain["probabilities"].items()}
    expected = np.exp(logits["spot"]) / sum(np.exp(x) for x in logits.values())
    assert found["probabilities"]["spot"] == pytest.approx(expected, rel=1e-4) and found["input"] == file
    assert Learner(config, folder).explain([str(top / "set" / "test" / "spot")]).stat().st_size > 20000
    assert "Grad-CAM" not in capsys.readouterr().err
    assert training.test(config, folder)["metrics"] == summary["metrics"]


def test_what_cannot_be_looked_at(corner, tmp_path):
    _, folder, _ = corner
    config = stored.get_config(str(folder))
    task, _, state = training.restore(config, folder)
    for inputs, message in (
        ([], "pass images, or folders of images"),
        ([str(tmp_path / "none.png")], "no file or folder .*none.png; check the input"),
        ([str(tmp_path)], f"{tmp_path} has no images"),
    ):
        with pytest.raises(UserError, match=message):
            explain(task.predictor, state.variables, task.read_inputs(inputs))


def test_weights_of_classes_are_factors_on_their_losses():
    uneven = ("data.per_class", 0), ("data.train_examples", 15)
    plain, balanced = (small.task(*uneven, ("regularize.class_weights", said)) for said in ("", "balanced"))
    variables, batch = plain.init(jax.random.key(0)), plain.train_batch(0)
    labels = np.concatenate([b["label"][b["mask"] > 0] for b in plain.eval_batches("train")])
    weights = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    loss = jax.jit(plain.loss)

    def total(k):
        only = {**batch, "mask": (batch["label"] == k).astype(np.float32)}
        return float(loss(variables, only, jax.random.key(1))[1][1]["loss"][0])

    expected = sum(weight * total(k) for k, weight in enumerate(weights))
    found = float(jax.jit(balanced.loss)(variables, batch, jax.random.key(1))[1][1]["loss"][0])
    assert len(labels) == 15 and weights.std() > 0.1
    assert found == pytest.approx(expected, rel=1e-5)
