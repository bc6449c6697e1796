"""What is made of loaded weights: other heads, channels, shorter trunks; and the cache of converted files."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.pretrained.fake import random_variables, torchvision_arrays, write_keras_h5
from tl_jax import models, pretrained
from tl_jax.models.registry import PretrainedSpec
from tl_jax.pretrained import formats, network
from tl_jax.utils import download, tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def store(folder, name, classes=6, **options):
    """Write random weights of a model in our own format; return the file and the variables."""
    model = models.create(name, classes, **options)
    variables = random_variables(network.variable_shapes(model))
    spec = PretrainedSpec(name, "tl_jax", models.model_options(name, model), classes, image_size=32, scaling="tf")
    formats.save_native(folder / f"{name}.safetensors", variables, spec, {})
    return folder / f"{name}.safetensors", variables


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def apply(net, x):
    return jax.jit(net.model.apply)(net.variables, x)


def test_an_endpoint_keeps_what_lies_before_it(tmp_path):
    file, variables = store(tmp_path, "resnet50_tiny")
    whole = pretrained.load("resnet50_tiny", "tl_jax", file)
    cut = pretrained.load("resnet50_tiny", "tl_jax", file, endpoint="stage2")
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    out, end = apply(cut, x)
    np.testing.assert_allclose(out, apply(whole, x)[1]["stage2"].mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert set(cut.variables["params"]) == {"stem", "stage1", "stage2"} and "stage3" not in end
    assert cut.spec.options == {"endpoint": "stage2"} and cut.spec.num_classes == 0
    assert pretrained.load("resnet50_tiny", "tl_jax", file, 3, endpoint="stage1").variables["params"]["head"][
        "kernel"
    ].shape == (32, 3)
    with pytest.raises(UserError, match="the head is missing; pass config.init.head=new"):
        pretrained.load("resnet50_tiny", "tl_jax", file, 6, head="keep", endpoint="stage1")
    with pytest.raises(UserError, match="unknown stage 'stag1'"):
        pretrained.load("resnet50_tiny", "tl_jax", file, endpoint="stag1")


@pytest.mark.parametrize("name", ["resnet50_tiny", "vgg16_tiny", "mobilenet_v2_tiny"])
def test_grey_pictures_give_what_their_three_equal_channels_gave(tmp_path, name):
    file, _ = store(tmp_path, name)
    rgb, grey = (pretrained.load(name, "tl_jax", file, fc=False) if name.startswith("vgg") else
                 pretrained.load(name, "tl_jax", file) for _ in (0, 1))  # fmt: skip
    grey = network.with_channels(grey, 1)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1)).astype(np.uint8)
    assert grey.model.channels == 1 and len(grey.notes) == 1 and "summed" in grey.notes[0]
    expected, _ = apply(rgb, rgb.preprocess(pictures))
    actual, _ = apply(grey, grey.preprocess(pictures))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    assert grey.preprocess(np.repeat(pictures, 3, -1)).shape == (2, 32, 32, 1)  # colour becomes grey


def test_more_channels_repeat_the_kernels(tmp_path):
    file, variables = store(tmp_path, "resnet50_tiny")
    net = pretrained.load("resnet50_tiny", "tl_jax", file, channels=5)
    old, new = variables["params"]["stem"]["conv"]["kernel"], net.variables["params"]["stem"]["conv"]["kernel"]
    np.testing.assert_allclose(new, old[:, :, [0, 1, 2, 0, 1]] * 0.6, rtol=1e-6)
    assert apply(net, np.ones((1, 32, 32, 5), np.float32))[0].shape == (1, 6) and "5 channels" in net.notes[0]


def test_vgg_keeps_its_hidden_layers_with_its_head_or_when_asked(tmp_path):
    file, variables = store(tmp_path, "vgg16_tiny")
    whole = pretrained.load("vgg16_tiny", "tl_jax", file)
    assert whole.model.fc and not whole.new_head
    same(whole.variables, variables)
    assert apply(whole, np.ones((1, 64, 48, 3), np.float32))[0].shape == (1, 6)  # averaged to 7x7 at other sizes
    new = pretrained.load("vgg16_tiny", "tl_jax", file, num_classes=3)
    assert not new.model.fc and new.new_head and new.variables["params"]["head"]["kernel"].shape == (16, 3)
    asked = pretrained.load("vgg16_tiny", "tl_jax", file, num_classes=3, fc=True)
    assert asked.variables["params"]["head"]["kernel"].shape == (32, 3)
    same(asked.variables["params"]["fc2"], variables["params"]["fc2"])
    with pytest.raises(UserError, match="no weights for fc=True"):
        bare, _ = store(tmp_path, "vgg16_tiny", 6, fc=False)
        pretrained.load("vgg16_tiny", "tl_jax", bare, 3, fc=True)


def test_inceptions_auxiliary_head_stays_when_asked(tmp_path):
    file, variables = store(tmp_path, "inception_v3_tiny", aux=True)
    plain = pretrained.load("inception_v3_tiny", "tl_jax", file)
    assert "aux" not in plain.variables["params"] and not plain.new_head
    asked = pretrained.load("inception_v3_tiny", "tl_jax", file, num_classes=3, aux=True)
    aux = asked.variables["params"]["aux"]
    assert aux["head"]["kernel"].shape[1] == 3
    same(aux["conv1"], variables["params"]["aux"]["conv1"])


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(tmp_path):
    file, _ = store(tmp_path, "mobilenet_v2_tiny")
    half = pretrained.load("mobilenet_v2_tiny", "tl_jax", file, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.variables)} == {jnp.dtype("float32")}
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    logits, end = apply(half, x)
    exact = apply(pretrained.load("mobilenet_v2_tiny", "tl_jax", file), x)[0]
    assert end["stage1"].dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_an_export_of_a_changed_network_is_loaded_as_it_was(tmp_path):
    file, _ = store(tmp_path, "resnet50_tiny")
    net = pretrained.load("resnet50_tiny", "tl_jax", file, 3, endpoint="stage2", channels=1)
    formats.save_native(tmp_path / "again.safetensors", net.variables, net.spec, {})
    again = pretrained.load("resnet50_tiny", "tl_jax", tmp_path / "again.safetensors")
    assert again.model == net.model
    same(again.variables, net.variables)


@pytest.fixture
def foreign(tmp_path):
    variables = random_variables(network.variable_shapes(models.create("resnet50_tiny", 6)))
    write_keras_h5(tmp_path / "resnet.h5", variables)
    return tmp_path / "resnet.h5", variables


def test_a_file_is_converted_once(foreign, tmp_path, monkeypatch):
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    file, variables = foreign
    first = pretrained.load("resnet50_tiny", "keras", file)
    monkeypatch.setattr(formats, "read_arrays", lambda path: pytest.fail("read again"))
    monkeypatch.setattr(
        importlib.import_module("tl_jax.pretrained.load"), "read_foreign", lambda *args: pytest.fail("converted again")
    )
    second = pretrained.load("resnet50_tiny", "keras", file)
    same(second.variables, first.variables)
    same(second.variables, variables)
    assert (second.spec, second.path, second.sha256) == (first.spec, file, first.sha256) and len(first.sha256) == 64
    monkeypatch.undo()
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    write_keras_h5(file, jax.tree.map(lambda x: x * 2, variables))  # other weights under the same name
    assert np.any(
        pretrained.load("resnet50_tiny", "keras", file).variables["params"]["head"]["kernel"]
        != second.variables["params"]["head"]["kernel"]
    )
    assert len(list((tmp_path / "cache" / "converted").glob("*.safetensors"))) == 2


def test_another_converter_converts_anew(foreign, tmp_path, monkeypatch):
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    pretrained.load("resnet50_tiny", "keras", foreign[0])
    module = importlib.import_module("tl_jax.pretrained.load")
    assert len(module.converter_digest("resnet8")) == 64
    monkeypatch.setattr(module, "converter_digest", lambda name: "another")
    pretrained.load("resnet50_tiny", "keras", foreign[0])
    assert len(list((tmp_path / "cache" / "converted").glob("*.safetensors"))) == 2


def test_a_damaged_cache_is_made_anew(foreign, tmp_path, monkeypatch):
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    pretrained.load("resnet50_tiny", "keras", foreign[0])
    (cached,) = download.cache_dir().glob("converted/*.safetensors")
    cached.write_bytes(cached.read_bytes()[:5000])
    same(pretrained.load("resnet50_tiny", "keras", foreign[0]).variables, foreign[1])
    assert cached.stat().st_size > 5000


def test_a_cache_that_cannot_be_written_is_done_without(foreign, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "file" / "cache"))
    same(pretrained.load("resnet50_tiny", "keras", foreign[0]).variables, foreign[1])


def test_own_files_hold_what_was_saved_whatever_its_type(tmp_path):
    rng = np.random.default_rng(0)
    leaves = {
        "params": {"a": {"kernel": rng.normal(size=(3, 5)), "bias": rng.normal(size=(7,))}, "b": {"x": np.float32(2)}}
    }
    leaves = jax.tree.map(lambda x: np.asarray(x, np.float32), leaves)
    for dtype in ("float32", "float16", "bfloat16"):
        formats.save_native(tmp_path / "f.safetensors", leaves, PretrainedSpec("resnet8", "tl_jax"), {"k": 1}, dtype)
        arrays = formats.read_native(tmp_path / "f.safetensors")
        reference = formats.read_safetensors(tmp_path / "f.safetensors")  # the library's own reader
        assert {k: (v.dtype, v.tolist()) for k, v in arrays.items()} == {
            k: (v.dtype, v.tolist()) for k, v in reference.items()
        }
        assert set(arrays) == set(tree.flatten(leaves)) and formats.read_spec(tmp_path / "f.safetensors")[1] == {"k": 1}


def test_timms_file_is_torchvisions_with_other_facts(tmp_path):
    variables = random_variables(network.variable_shapes(models.create("resnet50_tiny", 6, layout="torchvision")))
    arrays = {k: np.ascontiguousarray(v) for k, v in torchvision_arrays(variables).items()}
    save_file(arrays, tmp_path / "model.safetensors")
    nets = [pretrained.load("resnet50_tiny", s, tmp_path / "model.safetensors") for s in ("torchvision", "timm")]
    same(nets[0].variables, nets[1].variables)
    assert nets[0].spec.interpolation == nets[1].spec.interpolation == "bilinear"
    assert pretrained.spec_of("resnet50", "timm").interpolation == "bicubic"
