"""ConvNeXt: the outputs of transformers and timm from their own files, at sizes of any kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.test_vit import assert_near, fill, images, import_timm, state
from tl_jax import models
from tl_jax.models import convnext
from tl_jax.pretrained.convert import convert, merge
from tl_jax.pretrained.network import variable_shapes

SHAPE = {"depths": (1, 1, 2, 1), "widths": (8, 16, 24, 32)}
THEIRS = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
V2 = {"layer_scale": 0.0, "response_norm": True}
SIZES = ((64, 64), (96, 64), (101, 75))  # whole positions in each stage, and a border that is cropped
HUGGINGFACE = {
    "huggingface": ("ConvNextForImageClassification", "ConvNextConfig", {"final_epsilon": 1e-12}),
    "v2": ("ConvNextV2ForImageClassification", "ConvNextV2Config", {**V2, "final_epsilon": 1e-12}),
    "dinov3": ("DINOv3ConvNextModel", "DINOv3ConvNextConfig", {}),
}


def convert_arrays(arrays, layout, model):
    return merge(variable_shapes(model), convert(arrays, convnext.make_table(layout, model.depths)))


@pytest.mark.slow
@pytest.mark.parametrize("name", HUGGINGFACE)
def test_endpoints_are_those_of_transformers(name, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from safetensors.numpy import load_file

    model_name, config_name, options = HUGGINGFACE[name]
    labels = {} if name == "dinov3" else {"num_labels": 5}
    net = fill(torch, getattr(transformers, model_name)(getattr(transformers, config_name)(**THEIRS, **labels)))
    net.save_pretrained(tmp_path)
    model = convnext.ConvNeXt(5 if labels else 0, **SHAPE, **options)
    layout = "dinov3" if name == "dinov3" else "huggingface"
    variables = convert_arrays(load_file(tmp_path / "model.safetensors"), layout, model)
    net, apply = net.double(), jax.jit(model.apply)
    for size in SIZES:
        output, endpoints = apply(variables, x := images(size))
        with torch.no_grad():
            theirs = net(torch.from_numpy(x).permute(0, 3, 1, 2).double(), output_hidden_states=True)
        if labels:
            stages = ("stage1", "stage2", "stage3", "stage4")
            for stage, value in zip(stages, theirs.hidden_states[-4:], strict=True):
                assert_near(endpoints[stage], value.permute(0, 2, 3, 1))
        assert_near(output, theirs.logits if labels else theirs.pooler_output)


@pytest.mark.slow
@pytest.mark.parametrize("response_norm", [False, True])
def test_outputs_are_those_of_timm(response_norm):
    torch, timm = import_timm()
    options = {"use_grn": True, "ls_init_value": None} if response_norm else {}
    net = timm.models.convnext.ConvNeXt(num_classes=5, depths=SHAPE["depths"], dims=SHAPE["widths"], **options)
    model = convnext.ConvNeXt(5, **SHAPE, **(V2 if response_norm else {}))
    variables = convert_arrays(state(fill(torch, net)), "timm", model)
    apply, net = jax.jit(model.apply), net.double()
    for size in SIZES:
        output, endpoints = apply(variables, x := images(size))
        with torch.no_grad():
            pixels = torch.from_numpy(x).permute(0, 3, 1, 2).double()
            assert_near(output, net(pixels))
            assert_near(endpoints["stage4"], net.forward_features(pixels).permute(0, 2, 3, 1))


@pytest.mark.slow
def test_outputs_are_those_of_torchvision():
    torch, _ = import_timm()
    from torchvision.models import convnext as theirs

    widths, depths = SHAPE["widths"], SHAPE["depths"]
    settings = [
        theirs.CNBlockConfig(width, following, depth)
        for width, following, depth in zip(widths, (*widths[1:], None), depths, strict=True)
    ]
    net = fill(torch, theirs.ConvNeXt(settings, num_classes=5))
    model = convnext.ConvNeXt(5, **SHAPE)
    variables = convert_arrays(state(net), "torchvision", model)
    output, _ = jax.jit(model.apply)(variables, x := images((96, 64)))
    with torch.no_grad():
        assert_near(output, net.double()(torch.from_numpy(x).permute(0, 3, 1, 2).double()))


@pytest.mark.fast
def test_images_of_one_color_have_finite_gradients():
    model = models.create("convnext_tiny_test", 3, **V2)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    gradient = jax.jit(jax.grad(lambda v: model.apply(v, jnp.zeros((2, 32, 32, 3)))[0].sum()))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
