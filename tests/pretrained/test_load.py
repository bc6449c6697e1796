"""Loading: files in the real formats with random weights, adapted heads, and errors that say what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.pretrained.fake import random_variables, torchvision_arrays, write_keras_h5
from tl_jax import models, pretrained
from tl_jax.config import schema
from tl_jax.models.registry import PretrainedSpec
from tl_jax.pretrained import formats
from tl_jax.pretrained.network import variable_shapes
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError
from tl_jax.utils.scaling import SCALINGS, Scaling, register_scaling

pytestmark = pytest.mark.fast
NAME = "resnet50_tiny"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One Keras file with a head of 6 classes, one without a head, one of torchvision, and the Keras variables."""
    folder = tmp_path_factory.mktemp("weights")
    variables = random_variables(variable_shapes(models.create(NAME, 6)))
    write_keras_h5(folder / "top.h5", variables)
    trunk = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "head"}}
    write_keras_h5(folder / "notop.h5", trunk)
    other = random_variables(variable_shapes(models.create(NAME, 6, layout="torchvision")))
    save_file({k: np.ascontiguousarray(v) for k, v in torchvision_arrays(other).items()}, folder / "torch.safetensors")
    return folder, variables


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_none_takes_what_the_file_has(files):
    folder, variables = files
    loaded = pretrained.load(NAME, "keras", folder / "top.h5")
    assert loaded.spec.num_classes == 6 and not loaded.new_head
    same(loaded.variables, variables)
    assert loaded.model.apply(loaded.variables, jnp.ones((2, 32, 32, 3)))[0].shape == (2, 6)
    bare = pretrained.load(NAME, "keras", folder / "notop.h5")
    out, end = bare.model.apply(bare.variables, jnp.ones((2, 32, 32, 3)))
    same(out, end["features"])


@pytest.mark.parametrize("file", ["top.h5", "notop.h5"])
def test_another_number_of_classes_draws_a_new_head(files, file):
    folder, variables = files
    loaded = pretrained.load(NAME, "keras", folder / file, num_classes=10)
    assert loaded.new_head and loaded.variables["params"]["head"]["kernel"].shape == (64, 10)
    same(loaded.variables["params"]["stage3"], variables["params"]["stage3"])
    other = pretrained.load(NAME, "keras", folder / file, num_classes=10, seed=1)
    assert np.any(other.variables["params"]["head"]["kernel"] != loaded.variables["params"]["head"]["kernel"])


def test_head_can_be_kept_renewed_or_left_out(files):
    folder, variables = files
    kept = pretrained.load(NAME, "keras", folder / "top.h5", num_classes=6, head="keep")
    same(kept.variables["params"]["head"], variables["params"]["head"])
    new = pretrained.load(NAME, "keras", folder / "top.h5", num_classes=6, head="new")
    assert np.any(new.variables["params"]["head"]["kernel"] != variables["params"]["head"]["kernel"])
    assert "head" not in pretrained.load(NAME, "keras", folder / "top.h5", num_classes=0).variables["params"]
    with pytest.raises(UserError, match=r"top.h5: the head has 6 classes, not 10; .*init.head=new"):
        pretrained.load(NAME, "keras", folder / "top.h5", num_classes=10, head="keep")


def test_wrong_weights_fail_before_the_data_are_read(files, tmp_path):
    from tl_jax.config import recipe
    from tl_jax.tasks.image_classification import ImageClassification

    (tmp_path / "cut.h5").write_bytes((files[0] / "top.h5").read_bytes()[:20_000])
    changes = (("model.name", NAME), ("init.path", str(tmp_path / "cut.h5")), ("data.dir", str(tmp_path / "absent")))
    with pytest.raises(UserError, match="cut.h5"):
        ImageClassification(schema.freeze(recipe.override(recipe.get_config(), changes)))


def test_another_architecture_lists_missing_and_extra_names(files):
    folder, _ = files
    with pytest.raises(UserError, match=r"missing: .*shape|wrong: .*shape"):
        pretrained.load("resnet50", "keras", folder / "top.h5")
    with pytest.raises(UserError, match=r"Check config.model.name.*missing: .*extra: "):
        pretrained.load(NAME, "torchvision", folder / "top.h5")


def test_round_trip_of_our_own_format(files, tmp_path):
    _, variables = files
    spec = PretrainedSpec(NAME, "tl_jax", {"widths": (8, 8, 16, 16)}, 6, scaling="caffe")
    formats.save_native(tmp_path / "m.safetensors", variables, spec, {"data": "nothing"})
    loaded = pretrained.load(NAME, "tl_jax", tmp_path / "m.safetensors")
    same(loaded.variables, variables)
    assert loaded.spec == spec
    with pytest.raises(UserError, match="holds 'resnet50_tiny', not 'resnet8'"):
        pretrained.load("resnet8", "tl_jax", tmp_path / "m.safetensors")


def test_a_scaling_of_ones_own_is_kept_and_replaces_no_other(files, tmp_path):
    with SCALINGS.temporary():
        register_scaling("halves", Scaling("rgb", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
        spec = PretrainedSpec(NAME, "tl_jax", {"widths": (8, 8, 16, 16)}, 6, scaling="halves")
        formats.save_native(tmp_path / "m.safetensors", files[1], spec, {})
        loaded = pretrained.load(NAME, "tl_jax", tmp_path / "m.safetensors", image_size=2)
        np.testing.assert_allclose(loaded.preprocess(np.full((1, 2, 2, 3), 255, np.uint8)), 1.0)
        register_scaling("torch", SCALINGS["torch"])  # the same numbers again are no error
        with pytest.raises(UserError, match="scaling 'torch' of tests.* choose another name"):
            register_scaling("torch", SCALINGS["halves"])
    with pytest.raises(UserError, match="m.safetensors: its spec: scaling is 'halves', not one of"):
        pretrained.load(NAME, "tl_jax", tmp_path / "m.safetensors")


def test_a_foreign_safetensors_file_is_named(files):
    with pytest.raises(UserError, match="not written by tl_jax"):
        pretrained.load(NAME, "tl_jax", files[0] / "torch.safetensors")


def test_a_missing_or_cut_file_says_so(files, tmp_path):
    with pytest.raises(UserError, match=r"no weights file at .*absent.h5"):
        pretrained.load(NAME, "keras", tmp_path / "absent.h5")
    whole = (files[0] / "top.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut.h5"):
        pretrained.load(NAME, "keras", tmp_path / "cut.h5")
    with pytest.raises(UserError, match="are published; pass config.init.path"):
        pretrained.load(NAME, "keras")


def test_preprocess_follows_the_spec_and_checks_its_input(files):
    loaded = pretrained.load(NAME, "keras", files[0] / "top.h5", image_size=20)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3)).astype(np.uint8)
    out = loaded.preprocess(images)
    assert out.shape == (2, 20, 20, 3) and out.dtype == jnp.float32
    square = np.full((1, 20, 20, 3), 100, np.uint8)
    np.testing.assert_allclose(
        loaded.preprocess(square)[0, 0, 0], [100 - 103.939, 100 - 116.779, 100 - 123.68], rtol=1e-5
    )
    with pytest.raises(UserError, match="float32"):
        loaded.preprocess(images.astype(np.float32))


def test_random_weights_depend_on_the_seed():
    a, b, c = (pretrained.random(NAME, 3, seed=s).variables for s in (0, 0, 1))
    same(a, b)
    flat = [tree.flatten(v)["params/stem/conv/kernel"] for v in (a, c)]
    assert np.any(flat[0] != flat[1])
