"""Models from elsewhere, of several files: what they say is checked, field by field, before anything is built of it."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from tests.text import network
from tl_jax import models, pretrained
from tl_jax.data import tokenize
from tl_jax.pretrained import delta, formats, huggingface
from tl_jax.rl import policy_transfer as policies
from tl_jax.transfer import adapters
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
NAME = "vgg16_tiny"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a network for sentences of three classes, and a file of an image network."""
    where = tmp_path_factory.mktemp("models")
    huggingface.save(where / "bert", network(where / "bert", classes=3, width=8, depth=1, heads=2, hidden=8))
    net = pretrained.random(NAME, 3)
    formats.save_native(where / "own.safetensors", net.variables, net.spec, {"classes": ["a", "b", "c"]})
    return where


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the folder, to be spoilt."""
    return shutil.copytree(made / "bert", tmp_path / "bert")


def change(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


FIELDS = {
    "hidden_size": [0, -8, 10**9, 10**400, "evil", [1], 8.0, True, {}],
    "num_hidden_layers": [0, 10**9, "1", 1.5],
    "num_attention_heads": [0, 3, 10**12, None],
    "vocab_size": [0, 10**12, "x"],
    "max_position_embeddings": [0, 10**12, -1],
    "intermediate_size": [0, 10**12, []],
    "type_vocab_size": [-1, 10**6, "2"],
    "layer_norm_eps": ["nan", float("nan"), float("inf"), -1, True],
    "hidden_dropout_prob": [1.5, -0.1, "0"],
    "hidden_act": [5, ["gelu"], "swishy"],
    "architectures": [5, [5], "BertModel", {}],
    "id2label": [["a"], {"0": 5}, "a", {"0": "\ud800"}],
    "model_type": [5, ["bert"], {}, "gpt"],
}


@pytest.mark.parametrize("field,value", [(field, value) for field, values in FIELDS.items() for value in values])
def test_each_field_of_a_config_has_a_type_and_a_range(folder, field, value):
    change(folder / "config.json", **{field: value})
    for read in (lambda: huggingface.load("bert", folder), lambda: huggingface.random("bert", folder)):
        with pytest.raises(UserError, match=rf"config.json.*{field}"):
            read()


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"num_hidden_layers": 900}, "arrays for num_hidden_layers=900; copy both again"),
        ({"hidden_size": 90_000}, "word_embeddings.weight has the wrong shape .* hidden_size=90000; copy"),
        ({"vocab_size": 9_000_000}, "wrong shape .* for vocab_size=9000000 and"),
        ({"max_position_embeddings": 900_000}, "wrong shape .* max_position_embeddings=900000"),
        ({"intermediate_size": 900_000}, "wrong shape .* intermediate_size=900000"),
    ],
)
def test_a_config_is_compared_with_the_arrays_before_anything_is_built(folder, monkeypatch, changes, words):
    monkeypatch.setattr(models, "create", lambda *_, **__: pytest.fail("a network was built"))
    change(folder / "config.json", **changes)
    with pytest.raises(UserError, match=words):
        huggingface.load("bert", folder)


@pytest.mark.parametrize("options", [{"hidden": 10**6, "width": 10**5}, {"positions": 10**7, "width": 10**6}])
def test_random_weights_that_no_memory_holds_are_refused(folder, options):
    with pytest.raises(UserError, match=r"GB of weights, but .* lower config.model.options"):
        huggingface.random("bert", folder, **options)


OPTIONS = [
    ("bert", {"width": "8"}, "option width is '8', not a whole number"),
    ("bert", {"depth": 10**6}, "1,000,000 blocks are more than 1,000"),
    ("bert", {"epsilon": float("nan")}, "option epsilon is nan, not a number"),
    ("bert", {"hidden": 10**12}, "option hidden is 1000000000000, not a whole number"),
    ("resnet8", {"widths": (10**9,)}, "option widths is a tuple, not a tuple such as"),
    ("resnet8", {"widths": (8,)}, "differ in length"),
    ("resnet8", {"depths": (10**6, 1, 1)}, "blocks are more than"),
    ("resnet8", {"depths": [1, 1, 1]}, "option depths is a list, not a tuple such as"),
    ("resnet8", {"depths": (1, "1", 1)}, "option depths is a tuple, not a tuple such as"),
    ("resnet8", {"bottleneck": 1}, "option bottleneck is 1, not True or False"),
    ("mobilenet_v2", {"stages": ((1, 2), (1, 2))}, "option stages is a tuple, not a tuple such as"),
]


@pytest.mark.parametrize("name,options,words", OPTIONS)
def test_options_of_a_network_have_types_and_ranges(name, options, words):
    with pytest.raises(UserError, match=words):
        models.create(name, 0, **options)


def shard(folder, weight_map):
    """Let an index name the files of the weights instead."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "weight_map",
    [
        [],
        5,
        None,
        {},
        {"a": 5},
        {"a": ["b"]},
        {"a": "x" * 300},
        {"a": "é" * 200},
        {"a": "../x"},
        {"a": "\ud800"},
        {"a": ""},
    ],
)
def test_an_index_names_files_beside_it(folder, weight_map):
    shard(folder, weight_map)
    with pytest.raises(UserError, match=r"index.json"):
        huggingface.load("bert", folder)


def test_a_tokenizer_without_its_unknown_token_is_refused_before_it_is_used(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[CLS]\n[SEP]\na\n")
    with pytest.raises(UserError, match=r"vocab.txt cannot tokenize texts .*\[UNK\].*; copy it again"):
        tokenize.read_tokenizer(tmp_path)


def spoil_ids(content):
    content["model"]["vocab"]["film"] = 10**6


def spoil_special(content):
    content["post_processor"]["sep"] = ["[SEP]", 10**6]


@pytest.mark.parametrize("spoil", [spoil_ids, spoil_special])
def test_ids_beyond_the_embeddings_are_refused(folder, spoil):
    content = json.loads((folder / "tokenizer.json").read_text())
    spoil(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="has ids up to 1,000,000 .* copy the tokenizer"):
        huggingface.load("bert", folder)


def test_a_head_of_another_rank_is_no_head(folder):
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    for shape in ((), (3, 1)):
        changed = {**arrays, "classifier.bias": np.zeros(shape, np.float32)}
        safetensors.numpy.save_file(changed, folder / "model.safetensors")
        with pytest.raises(UserError, match="no head for text"):
            huggingface.load("bert", folder, 3, head="keep")


# ---- our own files


SPECS = {
    "deep": "[" * 100_000,
    "number": "5",
    "without a model": json.dumps({"source": "tl_jax"}),
    "unknown field": json.dumps({"model": NAME, "source": "tl_jax", "evil": 1}),
    **{
        f"{field} {value}": json.dumps({"model": NAME, "source": "tl_jax", field: value})
        for field, value in (
            ("options", [1]), ("options", {"widths": [10**9] * 5}), ("options", {"widths": [1]}), ("options", {"a": 1}),
            ("options", {"depths": [400, 1, 1, 1, 1]}), ("num_classes", 10**9), ("num_classes", "3"),
            ("image_size", 10**9), ("image_size", -1), ("crop", float("nan")), ("crop", 0), ("scaling", "x"),
            ("interpolation", 5), ("licence", ["MIT"]), ("model", ["vgg"]), ("model", None), ("top1", "best"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_is_checked_before_a_network_is_built(made, tmp_path, spec):
    arrays = safetensors.numpy.load_file(made / "own.safetensors")
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", {"spec": SPECS[spec], "facts": "{}"})
    with pytest.raises(UserError, match="a.safetensors.*(again|config.model.name)"):
        pretrained.load(NAME, "tl_jax", tmp_path / "a.safetensors")


@pytest.mark.parametrize("facts", ["[]", '{"classes": 5}', '{"classes": [5]}', '{"notes": 5}', "[" * 100_000])
def test_facts_are_checked(made, tmp_path, facts):
    spec, _ = formats.read_spec(made / "own.safetensors")
    arrays = safetensors.numpy.load_file(made / "own.safetensors")
    safetensors.numpy.save_file(
        arrays, tmp_path / "a.safetensors", {"spec": json.dumps(spec.to_dict()), "facts": facts}
    )
    with pytest.raises(UserError, match="its facts.*again"):
        formats.class_names(tmp_path / "a.safetensors")


def test_a_policy_without_a_world_is_refused(tmp_path):
    variables = {"params": {"a": np.zeros(1)}, "batch_stats": {}}
    policies.save(tmp_path / "a.safetensors", variables, {}, {"spaces": {}})
    with pytest.raises(UserError, match="name no environment or no spaces; export the run again"):
        policies.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "facts,words",
    [
        ({"base": {"sha256": 5}}, "its facts: base"),
        ({"base": {"source": "x"}}, "name no base weights"),
        ({"base": {"sha256": "a"}, "adapters": {"rank": 10**9}}, "adapters: rank is"),
        ({"base": {"sha256": "a"}, "adapters": {"evil": 1}}, "name no base weights"),
    ],
)
def test_facts_of_a_delta_are_checked(made, tmp_path, facts, words):
    spec, _ = formats.read_spec(made / "own.safetensors")
    formats.save_native(tmp_path / "delta.safetensors", {"params": {"a": np.zeros(1)}}, spec, facts)
    with pytest.raises(UserError, match=words):
        delta.read_delta(tmp_path / "delta.safetensors")


LORA = {"a": (10**6, 2), "b": (2, 10**6)}


@pytest.mark.parametrize(
    "leaves,words",
    [
        ({f"params/conv/lora_{side}": shape for side, shape in LORA.items()}, "do not fit the kernel"),
        ({f"params/lora_{side}": shape for side, shape in LORA.items()}, "the kernel that it updates is missing"),
        ({"params/conv/lora_a": (18, 2)}, "params/conv/lora_b is missing|an adapter needs both"),
        ({"params/other": (3,)}, "params/other is not in the base weights"),
        ({"params/conv/kernel": (3,)}, "the shape of"),
    ],
)
def test_a_delta_adds_nothing_that_the_network_does_not_have(tmp_path, leaves, words):
    variables = {"params": {"conv": {"kernel": np.zeros((3, 3, 2, 4), np.float32)}}}
    arrays = {path: np.zeros(shape, np.float32) for path, shape in leaves.items()}
    facts = {"adapters": adapters.AdapterConfig("lora", 2).to_dict()}
    with pytest.raises(UserError, match=words):
        delta.apply_delta(variables, arrays, facts, tmp_path / "delta.safetensors")


def test_a_delta_is_put_on_top():
    variables = {"params": {"conv": {"kernel": np.zeros((3, 3, 2, 4), np.float32)}}}
    arrays = {f"params/conv/lora_{s}": np.ones(shape, np.float32) for s, shape in {"a": (18, 2), "b": (2, 4)}.items()}
    found = delta.apply_delta(
        variables, arrays, {"adapters": adapters.AdapterConfig("lora", 2, 2.0).to_dict()}, "delta"
    )
    assert np.all(tree.flatten(found)["params/conv/kernel"] == 2)
    facts = {"adapters": {"kind": "lora", "rank": 2, "alpha": None, "targets": ".*"}}  # null stands for the default
    found = delta.apply_delta(variables, arrays, facts, "delta")
    assert np.all(tree.flatten(found)["params/conv/kernel"] == 2 * adapters.AdapterConfig.alpha / 2)


def test_options_of_a_policy_have_types_and_ranges():
    from configs import cartpole_ppo
    from tl_jax.config import recipe
    from tl_jax.tasks import reinforcement

    for widths in ((10**9,), ("8",)):
        config = recipe.override(cartpole_ppo.get_config(), (("model.options", {"widths": widths}),))
        with pytest.raises(UserError, match="model 'policy': option widths is a tuple"):
            reinforcement.make_policy(config, None)  # before the world is asked
