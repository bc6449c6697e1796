"""Keras and torchvision load what a bundle has in their names, by the code that its card shows, to the same outputs."""

import contextlib
import dataclasses
import sys
import types

import jax
import numpy as np
import pytest

from tests.models.test_vit import import_timm
from tests.pretrained import fake
from tl_jax import pretrained
from tl_jax.export import frameworks
from tl_jax.pretrained import network

pytestmark = [pytest.mark.peers, pytest.mark.slow]
pytestmark += [pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]  # Keras on NumPy 2


def net_of(name, source, size):
    """Return a network of five classes with random weights and statistics, for pictures of ``size``."""
    net = pretrained.random(name, 5, source)
    values = fake.random_variables(network.variable_shapes(net.model))
    return net._replace(variables=values, spec=dataclasses.replace(net.spec, image_size=size))


def both(folder, net, source, images):
    """Write the files, run the card's code there, and return what it leaves and our logits."""
    made = frameworks.write_weights(folder, net, source)
    assert made.file and (folder / made.file).is_file()
    found = {"images": images}
    with contextlib.chdir(folder):
        exec(made.code, found)
    logits, _ = jax.jit(net.model.apply)(net.variables, net.preprocess(images))
    return found, np.asarray(logits)


def pictures(size):
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)


@pytest.mark.parametrize("name,size", [("mobilenet_v2_035", 33), ("inception_v3", 75), ("vgg16", 32)])
def test_keras(name, size, tmp_path):
    pytest.importorskip("keras")
    found, logits = both(tmp_path, net_of(name, "keras", size), "keras", pictures(size))
    assert logits.std() > 1e-3
    np.testing.assert_allclose(found["output"], jax.nn.softmax(logits), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision(name, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from tests.references.torch_mobilenet import MobileNetV2
    from tests.references.torch_resnet import ResNet

    library = types.ModuleType("torchvision")  # the networks that ours are checked with, under its names
    library.models = types.SimpleNamespace(
        resnet18=lambda num_classes: ResNet(18, num_classes), mobilenet_v2=lambda num_classes: MobileNetV2(num_classes)
    )
    monkeypatch.setitem(sys.modules, "torchvision", library)
    found, logits = both(tmp_path, net_of(name, "torchvision", 64), "torchvision", pictures(64))
    assert logits.std() > 1e-3
    np.testing.assert_allclose(found["logits"][0].detach(), logits, atol=2e-5 * np.abs(logits).max())


@pytest.mark.parametrize(
    "name,size", [("vit_tiny16", 224), ("vit_tiny16", 64), ("clip_base32", 224), ("convnext_atto", 64)]
)
def test_timm(name, size, tmp_path):
    import_timm()
    found, logits = both(tmp_path, net_of(name, "timm", size), "timm", pictures(size))
    assert logits.std() > 1e-3
    np.testing.assert_allclose(found["logits"].detach(), logits, atol=2e-5 * max(1, np.abs(logits).max()))


def test_attributes_that_timm_lacks_are_named(tmp_path):
    net = net_of("vit_tiny16", "huggingface", 224)
    assert "timm's `vit_tiny16` differs in antialias, epsilon" in frameworks.write_weights(tmp_path, net, "").reason


@pytest.mark.parametrize(
    "name,source,size,why",
    [
        ("resnet8", "tl_jax", 32, "torchvision and timm have no `resnet8`"),
        ("resnet50_tiny", "keras", 32, "Keras has no `resnet50_tiny`"),
        ("mobilenet_v2_035", "keras", 16, "does not take 16 pixel images"),
    ],
)
def test_what_no_library_has_is_said(name, source, size, why, tmp_path):
    assert why in frameworks.write_weights(tmp_path, net_of(name, source, size), source).reason
    assert not list(tmp_path.iterdir())


def test_vgg_is_of_the_library_that_its_file_is_of(tmp_path):
    net = net_of("vgg16", "keras", 32)
    assert frameworks.write_weights(tmp_path, net, "keras").file == frameworks.KERAS_FILE
    assert frameworks.write_weights(tmp_path, net, "timm").file == frameworks.TORCHVISION_FILE
    assert "('6', torch.nn.Linear(512, 5))" in frameworks.write_weights(tmp_path, net, "torchvision").code
