"""Folders of text networks: there and back, what padding changes (nothing), and what is refused."""

import json

import jax
import numpy as np
import pytest

from tests.text import SIZES, TEXTS, network
from tl_jax import models, pretrained
from tl_jax.config import recipe, schema
from tl_jax.pretrained import huggingface
from tl_jax.tasks import text as text_task
from tl_jax.tasks.run_record import RunRecord
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a network for sentences of three classes."""
    where = tmp_path_factory.mktemp("bert")
    huggingface.save(where, network(where, classes=3))
    return where


@pytest.fixture()
def copy(folder, tmp_path):
    """A copy of that folder, to be spoilt."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("output", ["text", "tokens", "masked"])
def test_what_was_written_is_read(tmp_path, kind, output):
    net = network(tmp_path, kind, 0 if output == "masked" else 3, output=output)
    huggingface.save(tmp_path, net)
    again = pretrained.load(kind, "huggingface", tmp_path)
    assert again.model == net.model and again.classes == net.classes and not again.new_head
    for path, leaf in tree.flatten(net.variables).items():
        np.testing.assert_array_equal(tree.flatten(again.variables)[path], leaf, err_msg=path)
    tokens = net.tokenize(TEXTS)
    for name, ids in again.tokenize(TEXTS).items():
        np.testing.assert_array_equal(ids, tokens[name])


def test_padding_changes_nothing(folder):
    net = huggingface.load("bert", folder)
    together = net.tokenize([TEXTS[0], TEXTS[6]])
    alone = net.tokenize([TEXTS[6]])
    assert alone["input_ids"].shape[1] < together["input_ids"].shape[1]
    one, end = net.model.apply(net.variables, **alone)
    both, ends = net.model.apply(net.variables, **together)
    np.testing.assert_allclose(both[1], one[0], atol=1e-6)
    np.testing.assert_allclose(ends["layer2"][1, : alone["input_ids"].shape[1]], end["layer2"][0], atol=1e-6)


def test_the_mean_is_that_of_what_is_no_padding(folder):
    net = huggingface.load("bert", folder, 0, pooling="mean")
    tokens = net.tokenize([TEXTS[0], TEXTS[6]])
    pooled, end = net.model.apply(net.variables, **tokens)
    length = int(tokens["attention_mask"][1].sum())
    np.testing.assert_allclose(pooled[1], end["layer2"][1, :length].mean(0), rtol=1e-5)


def test_a_row_of_padding_alone_is_finite(folder):
    net = huggingface.load("bert", folder)
    ids = np.zeros((2, 5), np.int32)
    logits, _ = net.model.apply(net.variables, ids, ids)
    assert np.isfinite(logits).all()


def test_heads_are_kept_drawn_or_insisted_on(folder):
    kept, wider = huggingface.load("bert", folder), huggingface.load("bert", folder, 5)
    assert not kept.new_head and kept.classes == ("class0", "class1", "class2")
    assert wider.new_head and wider.variables["params"]["head"]["kernel"].shape == (16, 5)
    new = huggingface.load("bert", folder, 3, head="new", seed=1)
    assert new.new_head and not np.array_equal(new.variables["params"]["head"]["kernel"], _kernel(kept))
    assert np.array_equal(_kernel(huggingface.load("bert", folder, 3, head="new", seed=1)), _kernel(new))
    with pytest.raises(UserError, match="no head for text with 5 classes; pass head='new'"):
        huggingface.load("bert", folder, 5, head="keep")
    assert huggingface.load("bert", folder, 3, output="tokens").new_head  # of another kind
    masked = huggingface.load("bert", folder, 0, output="masked")
    tokens = masked.tokenize(TEXTS[:2])
    assert masked.model.apply(masked.variables, **tokens)[0].shape == (*tokens["input_ids"].shape, 117)


def _kernel(net):
    return np.asarray(net.variables["params"]["head"]["kernel"])


def test_a_file_without_a_pooler_is_read_as_means(tmp_path):
    huggingface.save(tmp_path, network(tmp_path, classes=2, output="tokens", pooling="mean"))
    net = huggingface.load("bert", tmp_path, 2, output="text")
    assert net.model.pooling == "mean" and "mean pooling is used" in net.notes[0]
    huggingface.save(tmp_path / "again", net, ("no", "yes"))
    again = huggingface.load("bert", tmp_path / "again")
    assert (again.model.pooling, again.model.num_classes, again.classes) == ("mean", 2, ("no", "yes"))
    np.testing.assert_array_equal(_kernel(again), _kernel(net))
    assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == ["BertModel"]
    first = net._replace(model=net.model.clone(pooling="first"))
    with pytest.raises(UserError, match="pooling='first': not supported .*; train with 'pooler' or 'mean'"):
        huggingface.save(tmp_path / "first", first)
    drawn = huggingface.load("bert", tmp_path, 2, output="text", pooling="pooler")
    assert "pooler; it is randomly initialized" in drawn.notes[0]


def spoil_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is damaged"),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json is damaged .no JSON object"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is damaged .maximum recursion"),
        (lambda f: spoil_config(f, model_type="roberta"), "model_type 'roberta'"),
        (lambda f: spoil_config(f, model_type="distilbert"), "holds a distilbert, not a bert"),
        (lambda f: spoil_config(f, is_decoder=True), "decoders"),
        (lambda f: spoil_config(f, hidden_size=24), "does not fit its config.json.*wrong"),
        (lambda f: spoil_config(f, num_hidden_layers=3), "does not fit its config.json.*missing: params/layer3"),
        (lambda f: spoil_config(f, num_hidden_layers=1), "does not fit its config.json.*extra: bert.encoder.layer.1"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights .model.safetensors, pytorch_model.bin"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 40), "model.safetensors"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "cannot read .*tokenizer.json as a tokenizer"),
        (lambda f: [(f / name).unlink() for name in ("tokenizer.json", "vocab.txt")], "neither tokenizer.json nor"),
        (lambda f: [(f / "tokenizer.json").unlink(), (f / "vocab.txt").write_text("a")], "not found in the vo"),
        (lambda f: [(f / "tokenizer.json").unlink(), longer(f)], "has 317 words, but the weights 117"),
    ],
)  # fmt: skip
def test_a_spoilt_folder_is_one_clear_error(copy, spoil, message):
    spoil(copy)
    with pytest.raises(UserError, match=message):
        huggingface.load("bert", copy)


def longer(folder):
    with (folder / "vocab.txt").open("a") as file:
        file.write("".join(f"word{i}\n" for i in range(200)))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "need a folder or a hub repository"),
        ("/nowhere/at/all", "not a folder"),
        (__file__, "not a folder"),
    ],
)
def test_no_folder_is_an_error(path, message):
    with pytest.raises(UserError, match=message):
        huggingface.load("bert", path)


def test_what_the_model_cannot_take_is_said():
    model = models.create("bert", 0, **SIZES)
    key = jax.random.key(0)
    with pytest.raises(UserError, match="41 tokens exceed the network's 40"):
        model.init(key, np.zeros((1, 41), np.int32))
    with pytest.raises(UserError, match="not token ids; pass int"):
        model.init(key, np.zeros((1, 4), np.float32))
    for option, value in (("pooling", "pool"), ("activation", "geluu"), ("output", "text_")):
        with pytest.raises(UserError, match=f"unknown {option} '{value}'"):
            models.create("bert", 0, **SIZES, **{option: value}).init(key, np.zeros((1, 4), np.int32))
    with pytest.raises(UserError, match="multiple of heads=3"):
        models.create("bert", 0, **{**SIZES, "heads": 3}).init(key, np.zeros((1, 4), np.int32))
    assert models.create("bert", 0, **SIZES).stage_names() == ("embeddings", "layer1", "layer2", "pooler")
    with pytest.raises(UserError, match="unknown stage 'layer9'"):
        models.create("bert", 0, **SIZES, endpoint="layer9").stage_names()


def test_a_network_trained_on_means_reads_means_but_for_a_head_that_reads_its_pooler(tmp_path):
    huggingface.save(tmp_path, network(tmp_path, classes=2), ("no", "yes"))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert huggingface.load("bert", tmp_path, 5).model.pooling == "mean"
    assert huggingface.load("bert", tmp_path, head="keep").model.pooling == "pooler"


def test_a_run_that_began_with_the_pooler_goes_on_with_it(tmp_path):
    huggingface.save(tmp_path, network(tmp_path))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    config = recipe.get_config("text")
    config.model.name, config.init.source, config.init.path = "bert", "huggingface", str(tmp_path)
    config = schema.freeze(config)
    new = text_task.load_network(config, ("a", "b"), "text")
    begun = text_task.load_network(config, ("a", "b"), "text", RunRecord({text_task.NETWORK: {"depth": 2}}))
    assert (new.model.pooling, begun.model.pooling) == ("mean", "pooler")
