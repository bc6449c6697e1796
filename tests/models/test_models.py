"""Shapes, names, parameter counts, and what every model must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained.fake import random_variables
from tl_jax import models
from tl_jax.models.convnext import ConvNeXt
from tl_jax.models.registry import MODELS
from tl_jax.models.vit import ViT
from tl_jax.pretrained import network
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast

# Values with 1,000 classes, BatchNorm statistics included: Keras' published counts where Keras has the model.
COUNTS = {
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg16_bn": 138_374_440,
    "vgg19_bn": 143_689_256,
    "resnet18": 11_699_112,
    "resnet34": 21_814_696,
    "resnet50": 25_636_712,
    "resnet101": 44_707_176,
    "resnet152": 60_419_944,
    "resnet50v2": 25_613_800,
    "inception_v3": 23_851_784,
    "mobilenet_v2": 3_538_984,
    "mobilenet_v2_035": 1_691_208,
    "mobilenet_v2_050": 1_987_224,
    "mobilenet_v2_075": 2_663_064,
    "mobilenet_v2_130": 5_431_048,
    "mobilenet_v2_140": 6_156_712,
    "efficientnet_lite0": 4_694_024,
    "efficientnet_lite1": 5_470_344,
    "efficientnet_lite2": 6_150_168,
    "efficientnet_lite3": 8_273_768,
    "efficientnet_lite4": 13_118_936,
    "resnet8": 437_704,
    "vgg16_tiny": 64_240,
    "vgg16_bn_tiny": 64_480,
    "resnet50_tiny": 87_544,
    "resnet50v2_tiny": 92_776,
    "inception_v3_tiny": 167_480,
    "mobilenet_v2_tiny": 73_096,
    "efficientnet_lite0_tiny": 85_368,
}
STAGES = {"vgg16_tiny": 5, "vgg16_bn_tiny": 5, "resnet50_tiny": 4, "resnet50v2_tiny": 4, "mobilenet_v2_tiny": 4}
STAGES["efficientnet_lite0_tiny"] = 4
TINY = [*STAGES, "inception_v3_tiny", "resnet8", "vit_nano8", "convnext_tiny_test"]


def shapes(model):
    return network.variable_shapes(model)


def outputs(model, height, width):
    x = jax.ShapeDtypeStruct((2, height, width, model.channels), jnp.float32)
    return jax.eval_shape(lambda v, x: model.apply(v, x), shapes(model), x)


def test_every_model_has_a_count():
    elsewhere = {
        name for name in models.names() if MODELS[name].cls in (ConvNeXt, ViT)
    }  # test_every_published_count_is_ours
    assert set(COUNTS) == set(models.names()) - elsewhere


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    assert tree.count(shapes(models.create(name, 1000))) == COUNTS[name]


def test_torchvision_layouts_have_no_conv_biases():
    for name in ("resnet50_tiny", "inception_v3_tiny", "mobilenet_v2_tiny"):
        params = tree.flatten(shapes(models.create(name, 5, layout="torchvision"))["params"])
        assert not [p for p in params if p.split("/")[-2].startswith(("conv", "shortcut_conv")) and p.endswith("bias")]


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("size", [32, 33, 97])
def test_endpoints_at_any_size(name, size):
    model = models.create(name, 7)
    logits, end = outputs(model, size, size + 3)
    assert logits.shape == (2, 7)
    assert {f"stage{i}" for i in range(1, STAGES[name] + 1)} < set(end)
    last = end["final" if "final" in end else f"stage{STAGES[name]}"]
    assert end["features"].shape == (2, last.shape[-1])
    if name == "resnet50_tiny":
        assert set(end) == {"stem", "stage1", "stage2", "stage3", "stage4", "features"}
        assert end["stage1"].shape == (2, -(-size // 4), -(-(size + 3) // 4), 32)


def test_inceptions_maps_are_those_of_the_paper():
    _, end = outputs(models.create("inception_v3", 1000, aux=True), 299, 299)
    sides = {name: end[name].shape[1:] for name in ("stem", "stage1", "mixed3", "stage2", "mixed8", "stage3")}
    assert sides == {
        "stem": (35, 35, 192),
        "stage1": (35, 35, 288),
        "mixed3": (17, 17, 768),
        "stage2": (17, 17, 768),
        "mixed8": (8, 8, 1280),
        "stage3": (8, 8, 2048),
    }
    assert end["aux_logits"].shape == (2, 1000)
    assert outputs(models.create("inception_v3_tiny", 3), 75, 97)[0].shape == (2, 3)


@pytest.mark.parametrize("name", TINY)
def test_without_a_head_the_output_is_features(name):
    model = models.create(name, 0)
    v = shapes(model)
    assert not {"head", "fc1", "aux"} & set(v["params"])
    if name == "resnet8":
        v = random_variables(v)
        out, end = jax.jit(model.apply)(v, jnp.ones((2, 32, 32, 3)))
        np.testing.assert_array_equal(out, end["features"])
    else:
        out, end = outputs(model, model.min_size, model.min_size + 1)
        assert out.shape == end["features"].shape


@pytest.mark.parametrize("name", TINY)
def test_an_endpoint_ends_the_network(name):
    whole, cut = models.create(name, 5), models.create(name, 5, endpoint="stage1" if name in STAGES else "")
    if name not in STAGES:
        cut = models.create(name, 5, endpoint="layer1" if name == "vit_nano8" else "stem")
    logits, end = outputs(cut, 96, 96)
    assert logits.shape == (2, 5)
    width = end[cut.endpoint].shape[-1]
    assert end["features"].shape == (2, width) == (2, outputs(whole, 96, 96)[1][cut.endpoint].shape[-1])
    assert tree.count(shapes(cut)) < tree.count(shapes(whole))


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(UserError, match="unknown stage 'stage9'.*did you mean 'stage"):
        shapes(models.create("resnet50_tiny", 5, endpoint="stage9"))
    with pytest.raises(UserError, match="32x40 pixels are too small: .* needs at least 75x75; raise config.input.size"):
        outputs(models.create("inception_v3_tiny", 5), 32, 40)
    with pytest.raises(UserError, match=r"images \(2, 32, 32, 1\): the network takes \(N, H, W, 3\)"):
        model = models.create("resnet8", 5)
        jax.eval_shape(lambda v, x: model.apply(v, x), shapes(model), jnp.zeros((2, 32, 32, 1)))
    with pytest.raises(UserError, match="auxiliary head needs images of 299x299"):
        outputs(models.create("inception_v3_tiny", 5, aux=True), 128, 128)


def test_parts_are_named_in_order_without_being_made():
    assert models.create("resnet50", 5).stage_names() == ("stem", "stage1", "stage2", "stage3", "stage4")
    assert models.create("mobilenet_v2", 5).stage_names()[-2:] == ("stage7", "final")
    assert models.create("inception_v3", 5, endpoint="mixed1").stage_names() == ("stem", "mixed0", "mixed1")
    for name in TINY:
        model = models.create(name, 5)
        assert {*model.stage_names(), "head"} <= {*shapes(model)["params"], "fc1", "fc2"}


def test_options_rebuild_a_model():
    model = models.create("mobilenet_v2_050", 5, layout="torchvision", endpoint="stage3", dtype=jnp.bfloat16)
    options = models.model_options("mobilenet_v2_050", model)
    assert options == {"layout": "torchvision", "endpoint": "stage3"}
    assert models.create("mobilenet_v2_050", 5, **options, dtype=jnp.bfloat16) == model
    assert models.model_options("resnet18", models.create("resnet18", 3)) == {}


@pytest.mark.parametrize("name", ["vgg16_tiny", "mobilenet_v2_tiny"])
def test_dropout_acts_in_training_only(name):
    options = {"dropout": 0.5} if name.startswith("mobile") else {}
    model = models.create(name, 5, **options)
    v = random_variables(shapes(model))
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def train(key):
        return model.apply(v, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})[0][0]

    first, again, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and np.any(first != other)
    jax.eval_shape(model.apply, v, x)  # needs no key where nothing is dropped


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        models.create("resnet5", 10)
    with pytest.raises(UserError, match="did you mean 'layout'"):
        models.create("resnet50", 10, layot="keras")
    with pytest.raises(UserError, match="did you mean 'keras'"):
        models.create("resnet50", 10, layout="kera")


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model = models.create("resnet8", 10, dtype=jnp.bfloat16)
    v = shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(v)} == {jnp.dtype("float32")}
    logits, end = jax.eval_shape(model.apply, v, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    assert end["stage1"].dtype == jnp.bfloat16 and logits.dtype == jnp.float32
