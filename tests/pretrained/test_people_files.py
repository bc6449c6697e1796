"""Weights as people have them: training checkpoints, prefixes, other heads, layers around the network, cut networks."""

import argparse
import datetime
import re
from collections import OrderedDict, defaultdict
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.pretrained.fake import keras_arrays, random_variables, torchvision_arrays
from tests.pretrained.files import Hostile, Reduced, refuse, state_dict, write_h5, write_zip
from tests.pretrained.published import replace_spec
from tl_jax import models, pretrained
from tl_jax.export import frameworks
from tl_jax.pretrained import catalog, formats
from tl_jax.pretrained.network import variable_shapes
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
NAME = "resnet50_tiny"


@pytest.fixture(scope="module")
def torch():
    """Variables of a tiny ResNet with 6 classes, and the same under torchvision's names."""
    variables = random_variables(variable_shapes(models.create(NAME, 6, layout="torchvision")))
    arrays = {k: np.ascontiguousarray(v) for k, v in torchvision_arrays(variables).items()}
    return variables, {k: np.float32(v) if v.ndim else v for k, v in arrays.items()}


@pytest.fixture(scope="module")
def keras():
    """The same in Keras' layout."""
    variables = random_variables(variable_shapes(models.create(NAME, 6)))
    return variables, keras_arrays(variables)


def headless(arrays, head="fc."):
    return {name: array for name, array in arrays.items() if not name.startswith(head)}


def apart(tensors, name):
    """Return tensors with storages of their own beside those of another state dict."""
    for i, tensor in enumerate(tensors.values()):
        tensor.arguments[0].key = f"{name}{i}"
    return tensors


def same_trunk(net, variables):
    expected = {p: leaf for p, leaf in tree.flatten(variables).items() if "/head/" not in p}
    found = {p: leaf for p, leaf in tree.flatten(net.variables).items() if "/head/" not in p}
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def load(file, source="torchvision", **options):
    return pretrained.load(NAME, source, file, **options)


# ---- training checkpoints


@pytest.mark.parametrize("ending", [".pth", ".pth.tar", ".th", ".ckpt", ".bin"])
def test_every_ending_of_torch_files_is_read(torch, tmp_path, ending):
    write_zip(tmp_path / f"w{ending}", state_dict(torch[1]))
    assert set(formats.read_arrays(tmp_path / f"w{ending}")) == set(torch[1])


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "module", "my_own_word"])
def test_a_training_checkpoint_gives_its_network_and_skips_the_rest(torch, tmp_path, key):
    write_zip(
        tmp_path / "w.pth",
        {
            "args": argparse.Namespace(lr=0.1, out=Path("x")),
            "started": datetime.datetime(2024, 1, 1),
            "best": np.float64(80.0),
            "history": defaultdict(list, {"loss": [1.0]}),
            "shown": {"a", "b"},
            key: state_dict({f"module.{k}": v for k, v in torch[1].items()}),
            "optimizer": {"state": {0: apart(state_dict({"exp_avg": np.ones(3, np.float32)}), "o")}},
        },
    )
    net = load(tmp_path / "w.pth")
    jax.tree.map(np.testing.assert_array_equal, dict(net.variables), torch[0])
    assert any(f"used '{key}'" in note for note in net.notes)
    assert any("prefix 'module.'" in note for note in net.notes)


@pytest.mark.parametrize("average", ["ema", "state_dict_ema", "model_ema"])
def test_averaged_weights_are_preferred_as_timm_does_and_it_is_said(torch, tmp_path, average):
    last = {k: v + 1 for k, v in torch[1].items()}
    tree_of = {"model": apart(state_dict(last), "m"), average: state_dict(torch[1])}
    write_zip(tmp_path / "w.pth", tree_of)
    found, (note,) = formats.read_contents(tmp_path / "w.pth")
    assert set(found) == set(torch[1]) and np.array_equal(found["fc.bias"], torch[1]["fc.bias"])
    assert f"used '{average}', the averaged weights; dropped: 'model'" in note


def test_several_networks_without_a_usual_name_are_refused_by_name(tmp_path):
    small = {f"x{i}": np.ones(2, np.float32) for i in range(3)}
    write_zip(tmp_path / "w.pth", {"generator": state_dict(small), "discriminator": apart(state_dict(small), "d")})
    refuse(tmp_path / "w.pth", "'generator', 'discriminator'", "torch.save(")


def test_an_object_beside_the_tensors_is_never_run(torch, tmp_path):
    write_zip(tmp_path / "w.pth", {"state_dict": state_dict(torch[1]), "hook": Hostile(tmp_path / "trace")})
    assert set(formats.read_arrays(tmp_path / "w.pth")) == set(torch[1])
    assert not (tmp_path / "trace").exists()


def test_a_tensor_of_a_kind_that_is_not_read_is_refused_although_others_are_there(tmp_path):
    tensors = state_dict({"a": np.ones(2, np.float32)})
    write_zip(tmp_path / "w.pth", OrderedDict([*tensors.items(), ("b", Reduced("torch._utils._rebuild_qtensor", 1))]))
    refuse(tmp_path / "w.pth", "'b'", "quantized")


# ---- names


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "net.", "backbone.", "module._orig_mod.model."])
def test_a_prefix_that_all_names_share_is_taken_off(torch, tmp_path, prefix):
    save_file({prefix + k: v for k, v in torch[1].items()}, tmp_path / "w.safetensors")
    net = load(tmp_path / "w.safetensors", num_classes=6, head="keep")
    jax.tree.map(np.testing.assert_array_equal, dict(net.variables), torch[0])
    assert any(repr(prefix) in note for note in net.notes)
    assert load(tmp_path / "w.safetensors").notes == net.notes  # from the cache of converted files too


def test_networks_beside_the_one_with_the_prefix_are_named(torch, tmp_path):
    more = {"loss.centres": np.ones((3, 2), np.float32), "teacher.conv1.weight": np.ones(3, np.float32)}
    save_file({**{f"model.{k}": v for k, v in torch[1].items()}, **more}, tmp_path / "w.safetensors")
    net = load(tmp_path / "w.safetensors", num_classes=6, head="keep")
    assert "dropped: loss, teacher.conv1" in net.notes[0]


def test_a_file_that_holds_the_network_twice_is_refused_until_a_rename_rule_drops_one(torch, tmp_path):
    _, arrays = torch
    twice = {f"{who}.{k}": v + (who == "teacher") for who in ("student", "teacher") for k, v in arrays.items()}
    save_file({k: v.astype(np.float32) for k, v in twice.items()}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"'student\.' and as 'teacher\.'.*init.rename"):
        load(tmp_path / "w.safetensors", num_classes=5)
    net = load(tmp_path / "w.safetensors", num_classes=5, rename=((r"^teacher\..*", ""),))
    same_trunk(net, torch[0])


def test_rename_rules_make_foreign_names_known(torch, tmp_path):
    foreign = {re.sub(r"^layer(\d)\.", r"stages.\1.blocks.", k): v for k, v in torch[1].items()}
    save_file(foreign, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"init\.rename.*extra: .*stages\.1"):
        load(tmp_path / "w.safetensors", num_classes=5)
    same_trunk(load(tmp_path / "w.safetensors", rename=((r"^stages\.(\d)\.blocks\.", r"layer\1."),)), torch[0])


@pytest.mark.parametrize(
    "rules,message",
    [
        ((("nothing", "x"),), "'nothing' matches no name"),
        (((r"^bn1\..*", "same"),), "to 'same'; make"),
        ((("(", "x"),), "not a valid regex"),
        ((("a", r"\3"),), "not a valid regex"),
        (("ab",), "not a pair"),
    ],
)
def test_a_rename_rule_that_does_nothing_sensible_is_an_error(torch, tmp_path, rules, message):
    save_file(torch[1], tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=re.escape(message)):
        load(tmp_path / "w.safetensors", rename=rules)


def test_the_config_takes_rename_rules_and_refuses_them_where_they_do_nothing():
    from tl_jax.config import recipe
    from tl_jax.config.validate import validate

    rules = (("init.rename", ((r"^backbone\.", ""),)),)
    validate(recipe.override(recipe.get_config(), rules))
    with pytest.raises(UserError, match=r"init.rename has no effect with config.init.source=random"):
        validate(recipe.override(recipe.get_config(), (*rules, ("init.source", "random"))))
    with pytest.raises(UserError, match=r"not a valid regex"):
        validate(recipe.override(recipe.get_config(), (("init.rename", (("(", ""),)),)))


def test_mobilenet_loads_from_the_names_of_older_torch_files(tmp_path):
    variables = random_variables(variable_shapes(models.create("mobilenet_v2_tiny", 6, layout="torchvision")))
    table = catalog.conversion_table("mobilenet_v2_tiny", "torchvision")
    older = {}
    for entry in frameworks.named_arrays(variables, table):
        name = entry.name
        if m := re.fullmatch(r"(features\.(\d+)\.conv)\.(\d)(?:\.(\d))?\.(\w+)", name):
            block, number, unit, at, leaf = m[1], int(m[2]), int(m[3]), m[4], m[5]
            last = 1 if number == 1 else 2  # the first block expands nothing
            name = f"{block}.{3 * unit + int(at) if at else 3 * last + unit - last}.{leaf}"
        older[name] = entry.array
    assert "features.1.conv.3.weight" in older and "features.2.conv.7.running_var" in older
    trunk = {k: v for k, v in older.items() if not k.startswith("classifier")}
    save_file(trunk, tmp_path / "w.safetensors")
    net = pretrained.load("mobilenet_v2_tiny", "torchvision", tmp_path / "w.safetensors", num_classes=3)
    assert net.new_head
    same_trunk(net, variables)


# ---- heads, and layers around the network


@pytest.fixture(scope="module", params=["sequential", "wide", "no bias", "not finite"])
def other_head(request, torch, tmp_path_factory):
    """A file whose trunk is a ResNet's and whose head is not, and a word of it that the error must have."""
    _, arrays = torch
    trunk = headless(arrays)
    weight, bias = arrays["fc.weight"], arrays["fc.bias"]
    heads = {
        "sequential": ({"fc.1.weight": weight, "fc.1.bias": bias}, "fc.1.weight (6, 64)"),
        "wide": ({"fc.weight": np.tile(weight, (1, 2)), "fc.bias": bias}, r"(128, 6), the model needs (64, 6)"),
        "no bias": ({"fc.weight": weight}, "head/bias is missing"),
        "not finite": ({"fc.weight": weight * np.float32(np.nan), "fc.bias": bias}, "not finite"),
    }
    file = tmp_path_factory.mktemp("head") / "w.safetensors"
    save_file({**trunk, **heads[request.param][0]}, file)
    return file, heads[request.param][1]


def test_another_head_in_the_file_does_not_block_a_new_one_and_is_not_kept(torch, other_head):
    file, word = other_head
    for options in ({"head": "new"}, {"num_classes": 5}, {"num_classes": 0}, {"num_classes": 5, "head": "new"}):
        net = load(file, **options)
        same_trunk(net, torch[0])
        assert net.notes and (net.new_head or not net.spec.num_classes)
    for options in ({"head": "keep"}, {"num_classes": 6, "head": "keep"}, {}):
        with pytest.raises(UserError, match=re.escape(word)):
            load(file, **options)


@pytest.mark.parametrize(
    "layers",
    [
        {
            "normalization/mean": np.ones(3),
            "normalization/variance": np.full(3, 4.0),
            "normalization/count": np.ones(()),
        },
        {"dense_1/kernel": np.ones((64, 4)), "dense_1/bias": np.ones(4)},
        {f"batch_normalization/{leaf}": np.ones(64) for leaf in ("gamma", "beta", "moving_mean", "moving_variance")},
    ],
    ids=["Normalization", "a second Dense", "BatchNorm before the head"],
)
def test_keras_layers_around_the_network_are_left_out_and_named(keras, tmp_path, layers):
    variables, arrays = keras
    write_h5(tmp_path / "w.h5", {**arrays, **{k: np.float32(v) for k, v in layers.items()}})
    net = load(tmp_path / "w.h5", "keras", num_classes=5, head="new")
    same_trunk(net, variables)
    assert any(f"network: {next(iter(layers)).split('/')[0]}" in note for note in net.notes)
    assert any("normalized the inputs" in note for note in net.notes) == ("normalization/mean" in layers)
    with pytest.raises(
        UserError, match=rf"{next(iter(layers))} \(.*this network's head is \(64, classes\)"
    ):  # a head behind them is not this network's
        load(tmp_path / "w.h5", "keras", num_classes=6, head="keep")


def test_a_layer_inside_the_trunk_is_still_refused(torch, tmp_path):
    save_file({**torch[1], "layer1.0.se.weight": np.ones(3, np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"1 extra: layer1\.0\.se\.weight"):
        load(tmp_path / "w.safetensors", num_classes=5, head="new")


def test_automatic_names_of_keras_are_told_apart_from_a_norm_and_dense_layers_of_the_user(tmp_path):
    from tests.models.test_keras_names import automatic, variables

    expected = variables("inception_v3_tiny")
    arrays = {k: v for k, v in automatic(expected, 0).items() if not k.startswith("predictions")}
    width = next(leaf.shape[0] for p, leaf in tree.flatten(expected).items() if p == "params/head/kernel")
    norms = {f"batch_normalization_99/{leaf}": np.ones(width) for leaf in ("beta", "moving_mean", "moving_variance")}
    dense = {"dense/kernel": np.ones((width, 4)), "dense/bias": np.ones(4), "answer/kernel": np.ones((4, 2))}
    write_h5(tmp_path / "w.h5", {k: np.float32(v) for k, v in {**arrays, **norms, **dense}.items()})
    net = pretrained.load("inception_v3_tiny", "keras", tmp_path / "w.h5", num_classes=5)
    same_trunk(net, expected)
    assert net.new_head and any("batch_normalization_99" in note for note in net.notes)


# ---- networks saved up to a layer


def test_a_network_saved_up_to_a_part_loads_with_that_endpoint_or_one_before_it(torch, tmp_path):
    cut = {k: v for k, v in headless(torch[1]).items() if not k.startswith(("layer3", "layer4"))}
    save_file(cut, tmp_path / "w.safetensors")
    for endpoint in ("stage2", "stage1", "stage2"):
        net = load(tmp_path / "w.safetensors", num_classes=5, endpoint=endpoint)
        assert net.model.stage_names()[-1] == endpoint and net.new_head
        found = tree.flatten(net.variables)
        for path, leaf in tree.flatten(torch[0]).items():
            if path in found and "/head/" not in path:
                np.testing.assert_array_equal(found[path], leaf)
    for endpoint in ("", "stage3"):
        with pytest.raises(UserError, match=r"model\.endpoint=stage2"):
            load(tmp_path / "w.safetensors", num_classes=5, endpoint=endpoint)


def test_a_part_that_is_not_whole_is_no_endpoint(torch, tmp_path):
    cut = {k: v for k, v in headless(torch[1]).items() if not k.startswith(("layer3.0.conv2", "layer4"))}
    save_file(cut, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"model\.endpoint=stage2.*missing: \w+/stage3"):
        load(tmp_path / "w.safetensors", num_classes=5, endpoint="stage3")


def test_a_cut_inception_with_automatic_names_and_a_head_of_the_users(tmp_path):
    from tests.models.test_keras_names import automatic, variables

    expected = variables("inception_v3_tiny")
    behind = {"mixed4", "mixed5", "predictions"}
    full = automatic(expected, 0)
    kept = {}
    leaves = tree.flatten(expected)
    for name, array in full.items():
        owner = next(p for p, leaf in leaves.items() if leaf is array)
        if owner.split("/")[1] not in behind and not name.startswith("predictions"):
            kept[name] = array
    parts = models.create("inception_v3_tiny", 0).stage_names()
    last = [part for part in parts if part not in behind][-1]
    dense = {"dense/kernel": np.ones((9, 4)), "dense/bias": np.ones(4), "dense_1/kernel": np.ones((4, 2))}
    write_h5(tmp_path / "w.h5", {**kept, **{k: np.float32(v) for k, v in dense.items()}})
    net = pretrained.load("inception_v3_tiny", "keras", tmp_path / "w.h5", num_classes=5, endpoint=last)
    found = {p: leaf for p, leaf in tree.flatten(net.variables).items() if "/head/" not in p}
    jax.tree.map(np.testing.assert_array_equal, found, {p: leaves[p] for p in found})
    with pytest.raises(UserError, match=f"model.endpoint={last}"):
        pretrained.load("inception_v3_tiny", "keras", tmp_path / "w.h5", num_classes=5)


# ---- facts


def test_a_file_of_ones_own_is_not_given_the_published_licence_and_accuracy(tmp_path, monkeypatch):
    import dataclasses
    import hashlib

    variables = random_variables(variable_shapes(models.create(NAME, 6, layout="torchvision")))
    save_file(
        {k: np.ascontiguousarray(v) for k, v in torchvision_arrays(variables).items()}, tmp_path / "w.safetensors"
    )
    spec = dataclasses.replace(catalog.CATALOG["resnet50", "torchvision"], model=NAME)
    replace_spec(spec, monkeypatch)
    own = load(tmp_path / "w.safetensors").spec
    assert not (own.licence or own.url or own.digest or own.top1 or own.top5 or own.parameters)
    assert own.scaling == spec.scaling and own.image_size == spec.image_size
    digest = "sha256:" + hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()[:8]
    published = dataclasses.replace(spec, digest=digest)
    replace_spec(published, monkeypatch)
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    assert load(tmp_path / "w.safetensors").spec.licence == spec.licence


# ---- texts


@pytest.fixture
def sharded(tmp_path):
    """The small BERT that ships, its weights in two files with an index."""
    import json
    import shutil

    from safetensors.numpy import load_file

    from tl_jax.pretrained import huggingface

    source = Path(huggingface.resolve_folder("tl_jax", ""))
    folder = tmp_path / "shards"
    shutil.copytree(source, folder)
    arrays = load_file(source / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {k: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, k in enumerate(sorted(arrays))}
    for shard in set(where.values()):
        save_file({k: v for k, v in arrays.items() if where[k] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return source, folder


def test_text_weights_in_several_files_are_those_in_one(sharded):
    from tl_jax.pretrained import huggingface

    source, folder = sharded
    one, several = huggingface.load("bert", source, 3), huggingface.load("bert", folder, 3)
    jax.tree.map(np.testing.assert_array_equal, one.variables, several.variables)
    assert len(several.sha256) == 64


def test_a_missing_or_wrong_shard_of_text_weights_is_named(sharded, tmp_path):
    from tl_jax.pretrained import huggingface

    _, folder = sharded
    shard = folder / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    save_file({"other": np.ones(2, np.float32)}, shard)
    with pytest.raises(UserError, match="00002-of-00002.safetensors: '"):
        huggingface.load("bert", folder, 3)
    shard.unlink()
    with pytest.raises(UserError, match="names model-00002-of-00002.safetensors, which is missing"):
        huggingface.load("bert", folder, 3)
    (tmp_path / "elsewhere.safetensors").write_bytes(content)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002-of-00002", "../elsewhere"))
    with pytest.raises(UserError, match=r"'\.\./elsewhere\.safetensors', which is not a file next to it"):
        huggingface.load("bert", folder, 3)


def test_text_weights_with_a_prefix_and_a_head_of_another_task(tmp_path):
    import shutil

    from safetensors.numpy import load_file

    from tl_jax.pretrained import huggingface

    source = Path(huggingface.resolve_folder("tl_jax", ""))
    shutil.copytree(source, tmp_path / "text")
    arrays = load_file(source / "model.safetensors")
    other = {f"module.{k}": v for k, v in arrays.items() if not k.startswith("classifier")}
    save_file({**other, "module.qa_outputs.weight": np.ones((2, 3), np.float32)}, tmp_path / "text/model.safetensors")
    write_zip(tmp_path / "text/pytorch_model.bin", state_dict({"x": np.ones(2, np.float32)}))
    plain, net = (
        huggingface.load("bert", source, 3, head="new"),
        huggingface.load("bert", tmp_path / "text", 3, head="new"),
    )
    jax.tree.map(np.testing.assert_array_equal, plain.variables, net.variables)
    notes = " ".join(net.notes)
    assert "'module.'" in notes and "qa_outputs" in notes and "not pytorch_model.bin" in notes
