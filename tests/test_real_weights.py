"""Real ImageNet weights on real photos: MobileNetV2 classifies as Keras does, and its features serve as well."""

import csv

import jax
import numpy as np
import pytest
from PIL import Image

from tl_jax import pretrained
from tl_jax.data import sources
from tl_jax.distance import logistic_probe

pytestmark = [pytest.mark.data, pytest.mark.slow]


@pytest.fixture
def weights(data_dir):
    file = data_dir / "weights" / "mobilenet_v2_keras_imagenet.h5"
    if not file.is_file():
        pytest.skip(f"no {file}")
    return file


def in_batches(net, images, size=50):
    """Return (logits or features, endpoint features) of uint8 pictures."""
    apply = jax.jit(lambda v, x: net.model.apply(v, x))
    rows = [apply(net.variables, net.preprocess(images[i : i + size])) for i in range(0, len(images), size)]
    return tuple(np.concatenate([np.asarray(part) for part in parts]) for parts in
                 zip(*((first, end["features"]) for first, end in rows), strict=True))  # fmt: skip


def test_four_photos_get_the_stored_logits(weights, data_dir):
    folder = data_dir / "weights" / "check_images"
    expected = np.load(folder / "expected.npz")
    names = [row[0] for row in csv.reader((folder / "expected.csv").open())][1:]
    images = np.stack([np.asarray(Image.open((folder / name).with_suffix(".png")).convert("RGB")) for name in names])
    logits, features = in_batches(pretrained.load("mobilenet_v2", "keras", weights), images)
    assert [str(n).removesuffix(".png") for n in expected["names"]] == [n.removesuffix(".png") for n in names]
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-3)
    np.testing.assert_allclose(features, expected["features"], atol=1e-3)
    np.testing.assert_array_equal(logits.argmax(1), expected["top1"])


def test_a_thousand_photos_get_the_recorded_accuracy(weights, data_dir):
    files = sorted((data_dir / "imagenet_sample").glob("*.jpg"))
    labels = np.array([int(file.name[:3]) for file in files])
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    net = pretrained.load("mobilenet_v2", "keras", weights)
    assert net.spec.crop == 0.875  # of 256 pixels: the centre crop of 224
    best = np.argsort(-in_batches(net, images)[0], axis=1)[:, :5]
    assert len(files) == 1000
    assert (best[:, 0] == labels).mean() == pytest.approx(0.841, abs=0.003)
    assert (best == labels[:, None]).any(1).mean() == pytest.approx(0.962, abs=0.003)


@pytest.mark.peers
def test_a_probe_on_our_features_does_what_scikit_learn_does_on_keras(weights, data_dir):
    keras = pytest.importorskip("keras")
    from sklearn.linear_model import LogisticRegression

    source = sources.load("flowers", str(data_dir / "flowers"), 128)
    net = pretrained.load("mobilenet_v2", "keras", weights, num_classes=0, image_size=128)
    ours = [in_batches(net, part.images)[0] for part in (source.train, source.test)]
    model = keras.applications.MobileNetV2(weights=None, input_shape=(128, 128, 3))
    model.load_weights(weights)
    trunk = keras.Model(model.input, model.layers[-2].output)
    theirs = [trunk.predict(part.images / 127.5 - 1, verbose=0) for part in (source.train, source.test)]
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-3)
    labels = source.train.labels, source.test.labels
    for c in (0.01, 1.0):
        reference = LogisticRegression(C=c, max_iter=3000).fit(theirs[0], labels[0]).score(theirs[1], labels[1])
        assert logistic_probe(ours[0], labels[0], c=c).accuracy(ours[1], labels[1]) > reference - 0.005
