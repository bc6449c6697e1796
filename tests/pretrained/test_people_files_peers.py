"""Files that Keras and PyTorch wrote themselves, as people's scripts make them."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from tests.pretrained.fake import random_variables
from tl_jax import models, pretrained
from tl_jax.export import frameworks
from tl_jax.pretrained import catalog
from tl_jax.pretrained.network import variable_shapes
from tl_jax.utils import tree

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("nested", [True, False], ids=["in a Sequential", "in one Model"])
def test_an_application_of_keras_between_other_layers_loads_from_every_layout(tmp_path, nested):
    keras = pytest.importorskip("keras")

    base = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35)
    normalize = keras.layers.Normalization(mean=None)
    normalize.adapt(np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype(np.float32))
    top = [keras.layers.GlobalAveragePooling2D(), keras.layers.BatchNormalization(), keras.layers.Dense(16)]
    top += [keras.layers.Dropout(0.2), keras.layers.Dense(3)]
    if nested:
        model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 255), normalize, base, *top])
    else:
        x = base.output
        for layer in top:
            x = layer(x)
        model = keras.Model(base.input, x)
    for file in ("w.weights.h5", "w.h5", "w.keras"):
        (model.save_weights if file == "w.weights.h5" else model.save)(tmp_path / file)
        net = pretrained.load("mobilenet_v2_035", "keras", tmp_path / file, num_classes=4)
        kernel = base.get_layer("block_16_project").get_weights()[0]
        np.testing.assert_array_equal(net.variables["params"]["stage7"]["block1"]["project"]["conv"]["kernel"], kernel)
        moving = base.get_layer("bn_Conv1").get_weights()[2]
        np.testing.assert_array_equal(net.variables["batch_stats"]["stem"]["bn"]["mean"], moving)
        notes = " ".join(net.notes)
        assert net.new_head and "batch_normalization" in notes and "dense" in notes
        assert ("normalized the inputs" in notes) == nested


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_checkpoint_of_a_training_script_loads(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch")

    variables = random_variables(variable_shapes(models.create("resnet50_tiny", 6, layout="torchvision")))
    named = frameworks.named_arrays(variables, catalog.conversion_table("resnet50_tiny", "torchvision"))
    state = {f"module.{entry.name}": torch.tensor(entry.array) for entry in named}
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    content = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(out=Path("x"), device=torch.device("cpu"), sizes={1, 2}),
        "acc": np.float64(80.0),
        "rng": torch.get_rng_state(),
        "dtype": torch.float32,
        "relu": torch.nn.functional.relu,
    }
    how = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    torch.save(content, tmp_path / "checkpoint.pth.tar", **how)
    net = pretrained.load("resnet50_tiny", "torchvision", tmp_path / "checkpoint.pth.tar")
    for path, leaf in tree.flatten(variables).items():
        np.testing.assert_array_equal(tree.flatten(net.variables)[path], leaf)
    assert "used 'model'" in net.notes[0] and "'module.'" in net.notes[-1]
