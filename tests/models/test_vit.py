"""Vision transformers: the outputs of transformers, timm and OpenCLIP from their own files, at sizes of any kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained.fake import random_variables
from tl_jax import models, pretrained
from tl_jax.models import vit
from tl_jax.models.rules import split_arrays
from tl_jax.models.vit_tables import make_table
from tl_jax.pretrained.convert import convert, merge
from tl_jax.pretrained.network import variable_shapes
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

WIDTHS = {"width": 32, "depth": 2, "heads": 4, "hidden": 64, "patch": 8, "grid": 4}
THEIRS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
THEIRS |= {"image_size": 32, "patch_size": 8}
SIZES = ((32, 32), (40, 48), (51, 70))  # native, of whole patches, and of incomplete ones
TOLERANCE = 2e-5
SWIGLU = {"activation": "swiglu", "layer_scale": 1.0}
TOWER = {"class_token": False, "class_position": False, "pooling": "attention"}
# Layout -> model and configuration of transformers, and our attributes.
HUGGINGFACE = {
    "vit": ("ViTForImageClassification", "ViTConfig", {"num_labels": 5}, {"epsilon": 1e-12}),
    "dinov2": ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True}, {**SWIGLU, "hidden": 88}),
    "dinov2_reg": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        {},
        {"registers": 4, "antialias": True, "layer_scale": 1.0, "hidden": 128},
    ),
    "dinov3": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        {"num_register_tokens": 3, "use_gated_mlp": True, "hidden_act": "silu"},
        {**SWIGLU, "registers": 3, "grid": 0, "rotary_base": 100.0, "epsilon": 1e-5, "key_bias": False},
    ),
    "clip": (
        "CLIPVisionModel",
        "CLIPVisionConfig",
        {},
        {"patch_bias": False, "first_norm": True, "activation": "quick_gelu", "epsilon": 1e-5},
    ),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", {}, {**TOWER, "activation": "gelu_pytorch_tanh"}),
}


def fill(torch, net):
    """Give a network of torch random weights; norms are about one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in net.named_parameters():
            is_scale = ("norm" in name or "ln_" in name) and name.endswith("weight")
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1 + is_scale)
    return net.eval()


def state(net):
    return {name: value.numpy() for name, value in net.state_dict().items()}


def convert_arrays(arrays, layout, model):
    table = make_table(layout, model.depth)
    return merge(variable_shapes(model), convert(split_arrays(arrays, table), table))


def images(size):
    return np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)


def assert_near(ours, theirs):
    theirs = theirs.numpy()
    assert np.abs(np.asarray(ours) - theirs).max() <= TOLERANCE * max(1.0, np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", HUGGINGFACE)
def test_endpoints_are_those_of_transformers(name, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from safetensors.numpy import load_file

    model_name, config_name, extra, options = HUGGINGFACE[name]
    net = fill(torch, getattr(transformers, model_name)(getattr(transformers, config_name)(**THEIRS, **extra)))
    net.save_pretrained(tmp_path)  # under the published names, which those in memory differ from
    model = vit.ViT(extra.get("num_labels", 0), **{**WIDTHS, **options})
    variables = convert_arrays(load_file(tmp_path / "model.safetensors"), name.removesuffix("_reg"), model)
    net, apply = net.double(), jax.jit(model.apply)
    resize = {"interpolate_pos_encoding": True} if name in ("vit", "clip", "siglip") else {}
    for size in SIZES:
        x = images(size)
        output, endpoints = apply(variables, x)
        with torch.no_grad():
            pixels = torch.from_numpy(x).permute(0, 3, 1, 2).double()
            theirs = net(pixel_values=pixels, output_hidden_states=True, **resize)
        for stage, value in zip(("embeddings", "layer1", "layer2"), theirs.hidden_states, strict=True):
            assert_near(endpoints[stage], value)
        assert_near(output, theirs.logits if name == "vit" else theirs.pooler_output)


TIMM = {  # arguments of timm's network, and our attributes
    "class": ({}, {}),
    "registers": (
        {"pre_norm": True, "no_embed_class": True, "reg_tokens": 4, "init_values": 1.0, "qk_norm": True},
        {"first_norm": True, "patch_bias": False, "class_position": False, "registers": 4, "layer_scale": 1.0}
        | {"head_norm": True},
    ),
    "attention": ({"class_token": False, "global_pool": "map"}, TOWER),
    "mean": ({"class_token": False, "global_pool": "avg", "fc_norm": False}, {**TOWER, "pooling": "mean"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_outputs_are_those_of_timm(name):
    torch, timm = import_timm()
    theirs, ours = TIMM[name]
    options = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8, "mlp_ratio": 2}
    options |= {"num_classes": 5, "dynamic_img_size": True, "weight_init": "skip"}
    net = fill(torch, timm.models.vision_transformer.VisionTransformer(**options, **theirs))
    model = vit.ViT(5, antialias=True, **{**WIDTHS, **ours})
    variables = convert_arrays(state(net), "timm", model)
    net, apply = net.double(), jax.jit(model.apply)
    for size in ((32, 32), (40, 48), (24, 72)):
        x = images(size)
        with torch.no_grad():
            pixels = torch.from_numpy(x).permute(0, 3, 1, 2).double()
            tokens, logits = net.forward_features(pixels), net(pixels)
        if min(size) < model.min_size:
            continue
        output, endpoints = apply(variables, x)
        assert_near(output, logits)
        assert_near(endpoints["norm"], tokens)


def import_timm():
    """Return torch and timm; a torchvision without compiled operators, which nothing here calls, is made to import."""
    torch = pytest.importorskip("torch")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pytest.skip("torchvision is not installed")
    except RuntimeError:
        LIBRARIES.append(library := torch.library.Library("torchvision", "FRAGMENT"))
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return torch, pytest.importorskip("timm")


LIBRARIES = []  # what they define ends with them


@pytest.mark.slow
def test_the_image_tower_is_that_of_openclip():
    torch, _ = import_timm()
    open_clip = pytest.importorskip("open_clip")
    tower = open_clip.model.CLIPVisionCfg(layers=2, width=64, head_width=16, patch_size=8, image_size=32, mlp_ratio=2.0)
    texts = open_clip.model.CLIPTextCfg(context_length=8, vocab_size=50, width=32, heads=2, layers=1)
    net = fill(torch, open_clip.model.CLIP(16, tower, texts, quick_gelu=True))
    model = vit.ViT(0, **{**WIDTHS, **HUGGINGFACE["clip"][3], "width": 64, "hidden": 128})
    variables = convert_arrays(state(net), "openclip", model)
    output, _ = jax.jit(model.apply)(variables, x := images((32, 32)))
    projection = net.visual.proj.detach().numpy()
    with torch.no_grad():
        assert_near(
            np.asarray(output) @ projection, net.double().encode_image(torch.from_numpy(x).permute(0, 3, 1, 2).double())
        )


@pytest.mark.fast
@pytest.mark.parametrize("antialias", [False, True])
def test_positions_are_interpolated_as_by_torch(antialias):
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=(1, 49, 3))
    square = torch.from_numpy(values).reshape(1, 7, 7, 3).permute(0, 3, 1, 2)
    for grid in ((7, 7), (3, 12), (1, 30), (8, 6)):
        theirs = torch.nn.functional.interpolate(square, grid, mode="bicubic", antialias=antialias)
        ours = vit.resize_positions(jnp.asarray(values, jnp.float32), vit.Grid(*grid), antialias)
        np.testing.assert_allclose(ours[0], theirs[0].permute(1, 2, 0).reshape(-1, 3), atol=2e-6)


@pytest.mark.fast
@pytest.mark.parametrize("name", ["rotary", "learned"])
def test_a_network_that_starts_at_a_stage_is_the_rest(name):
    """Features of any layer can be cached, also those whose positions are rotations in every layer."""
    options = {"rotary": {"grid": 0, "rotary_base": 100.0, "registers": 2}, "learned": {}}[name]
    model = vit.ViT(5, **{**WIDTHS, **options})
    variables = random_variables(variable_shapes(model))
    output, endpoints = jax.jit(model.apply)(variables, images((48, 48)))
    rest = model.clone(start="layer1")
    again, _ = jax.jit(rest.apply)(variables, endpoints["layer1"])
    np.testing.assert_allclose(again, output, atol=1e-5)


@pytest.mark.fast
def test_a_file_of_larger_images_sets_the_grid(tmp_path):
    from safetensors.numpy import save_file

    model = models.create("vit_nano8", 3, grid=6)
    arrays = {path: np.array(leaf) for path, leaf in tree.flatten(random_variables(variable_shapes(model))).items()}
    positions = arrays["params/embeddings/positions"]
    file = tmp_path / "vit.safetensors"
    save_file(timm_arrays(arrays, model.depth), file)
    net = pretrained.load("vit_nano8", "timm", file)
    assert net.spec.image_size == 48 and net.spec.options["grid"] == 6 and net.spec.num_classes == 3
    np.testing.assert_array_equal(net.variables["params"]["embeddings"]["positions"], positions)
    images = np.random.default_rng(0).integers(0, 255, (2, 60, 60, 3), np.uint8)
    assert net.preprocess(images).shape == (2, 48, 48, 3)


def timm_arrays(leaves, depth):
    """Return our leaves under timm's names, with queries, keys and values in one array."""
    from tl_jax.export.frameworks import named_arrays

    table = make_table("timm", depth)
    arrays = {entry.name: entry.array for entry in named_arrays(tree.unflatten(leaves), table)}
    for i in range(depth):
        for leaf in ("weight", "bias"):
            parts = [arrays.pop(f"blocks.{i}.attn.{part}.{leaf}") for part in "qkv"]
            arrays[f"blocks.{i}.attn.qkv.{leaf}"] = np.concatenate(parts)
    return arrays


@pytest.mark.fast
@pytest.mark.parametrize(
    "options, message",
    [
        ({"heads": 5}, "width=48: not a multiple of heads=5"),
        ({"pooling": "class", "class_token": False}, "pooling='class' needs class_token=True"),
        ({"pooling": "max"}, "unknown pooling 'max'"),
        ({"activation": "gelo"}, "unknown activation 'gelo'; did you mean 'gelu'"),
        ({"rotary_base": 100.0, "heads": 8}, "rotary positions need a multiple of 4 a head"),
    ],
)
def test_attributes_that_contradict_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        models.create("vit_nano8", 5, **options).stage_names()
