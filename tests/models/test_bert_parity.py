"""Text networks against transformers: every layer, heads, tokens, and folders that go there and back."""

import numpy as np
import pytest

from tests.text import TEXTS, write_vocabulary
from tl_jax import pretrained
from tl_jax.pretrained import huggingface
from tl_jax.utils import tree

torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))

pytestmark = [pytest.mark.peers, pytest.mark.slow]

TINY = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
BASE = {"num_hidden_layers": 12}
DISTIL = {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 96}


def made(folder, kind, how, sizes, **more):
    """Write a random network of transformers with its vocabulary; return it."""
    write_vocabulary(folder)
    vocabulary = len((folder / "vocab.txt").read_text().splitlines())
    family = {"bert": "Bert", "distilbert": "DistilBert"}[kind]
    config = getattr(transformers, f"{family}Config")(vocab_size=vocabulary, **sizes, **more)
    torch.manual_seed(0)
    net = getattr(transformers, f"{family}{how}")(config).eval()
    with torch.no_grad():  # as drawn, biases are zero and norms one: a mix-up of them would go unseen
        for leaf in net.parameters():
            leaf.add_(0.05 * torch.randn_like(leaf))
    net.save_pretrained(folder)
    return net


def theirs(net, tokens, kind):
    with torch.no_grad():
        given = {k: torch.tensor(v).long() for k, v in tokens.items() if kind == "bert" or k != "token_type_ids"}
        return net(**given, output_hidden_states=True)


def assert_same(mine, other, tokens, what):
    there = tokens["attention_mask"].astype(bool)
    mine, other = np.asarray(mine), other.numpy()
    if mine.ndim == 3:
        mine, other = mine[there], other[there]
    np.testing.assert_allclose(mine, other, atol=1e-4, rtol=1e-4, err_msg=what)


@pytest.mark.parametrize(
    ("kind", "sizes"), [("bert", TINY), ("bert", BASE), ("distilbert", DISTIL)], ids=["tiny", "base", "distilbert"]
)
def test_every_layer_is_that_of_transformers(tmp_path, kind, sizes):
    peer = made(tmp_path, kind, "Model", sizes)
    net = pretrained.load(kind, "huggingface", tmp_path)
    tokens = net.tokenize(TEXTS)
    assert not tokens["attention_mask"].all()  # there is padding
    _, end = net.model.apply(net.variables, **tokens)
    out = theirs(peer, tokens, kind)
    names = ["embeddings", *(f"layer{i + 1}" for i in range(net.model.depth))]
    assert len(names) == len(out.hidden_states)
    for name, hidden in zip(names, out.hidden_states, strict=True):
        assert_same(end[name], hidden, tokens, name)
    if kind == "bert":
        assert_same(end["pooled"], out.pooler_output, tokens, "pooled")


def test_what_sentence_transformers_trained_on_means_reads_means(minilm):
    """The mean of tokens that are no padding, as its 1_Pooling/config.json says; in float64, by hand."""
    net = pretrained.load("bert", "huggingface", minilm)
    assert net.model.pooling == "mean" and not any("no pooler" in note for note in net.notes)
    tokens = net.tokenize(TEXTS, max_length=128)
    _, end = net.model.apply(net.variables, **tokens)
    peer = transformers.BertModel.from_pretrained(minilm).eval()
    hidden = np.asarray(theirs(peer, tokens, "bert").hidden_states[-1], np.float64)
    mask = np.asarray(tokens["attention_mask"], np.float64)[..., None]
    np.testing.assert_allclose(end["pooled"], (hidden * mask).sum(1) / mask.sum(1), atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("how", ["ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"])
def test_heads_are_those_of_transformers_there_and_back(tmp_path, kind, how):
    sizes = TINY if kind == "bert" else DISTIL
    peer = made(tmp_path, kind, how, sizes, **({} if how == "ForMaskedLM" else {"num_labels": 5}))
    net = huggingface.load(kind, tmp_path)
    assert not net.new_head
    tokens = net.tokenize([("a film", "the plot is good"), ("bad", "the acting")] if kind == "bert" else TEXTS)
    logits, _ = net.model.apply(net.variables, **tokens)
    assert_same(logits, theirs(peer, tokens, kind).logits, tokens, how)
    huggingface.save(tmp_path / "again", net)
    auto = {"ForMaskedLM": "AutoModelForMaskedLM"}.get(how, f"AutoModel{how}")
    again, report = getattr(transformers, auto).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert set(report["unexpected_keys"]) <= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert_same(logits, theirs(again.eval(), tokens, kind).logits, tokens, "written back")


def test_ids_are_those_of_transformers(tmp_path):
    made(tmp_path, "bert", "Model", TINY)
    net = huggingface.load("bert", tmp_path)
    huggingface.save(tmp_path / "again", net)
    for folder in (tmp_path, tmp_path / "again"):
        peer = transformers.BertTokenizerFast.from_pretrained(folder)
        theirs = peer(TEXTS, padding=True, truncation=True, max_length=20)
        for name, ids in net.tokenize(TEXTS, max_length=20).items():
            np.testing.assert_array_equal(ids, theirs[name], err_msg=name)


@pytest.mark.parametrize("old", ["gamma", "bin"])
def test_old_names_and_files_are_read(tmp_path, old):
    peer = made(tmp_path, "bert", "Model", TINY)
    expected = tree.flatten(huggingface.load("bert", tmp_path).variables)
    state = {f"bert.{name}": leaf for name, leaf in peer.state_dict().items()}
    if old == "gamma":
        renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, before in renamed.items():
            state = {name.replace(new, before): leaf for name, leaf in state.items()}
    state["bert.embeddings.position_ids"] = torch.arange(512)[None]
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    found = tree.flatten(huggingface.load("bert", tmp_path).variables)
    assert set(found) == set(expected)
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_minilm(minilm):
    peer = transformers.BertModel.from_pretrained(minilm).eval()
    net = pretrained.load("bert", "huggingface", minilm, pooling="pooler")
    tokens = net.tokenize(TEXTS, max_length=128)
    theirs_tokens = transformers.AutoTokenizer.from_pretrained(minilm)(
        TEXTS, padding=True, truncation=True, max_length=128
    )
    np.testing.assert_array_equal(tokens["input_ids"], theirs_tokens["input_ids"])
    _, end = net.model.apply(net.variables, **tokens)
    out = theirs(peer, tokens, "bert")
    for name, hidden in zip(["embeddings", *(f"layer{i + 1}" for i in range(6))], out.hidden_states, strict=True):
        assert_same(end[name], hidden, tokens, name)
    assert_same(end["pooled"], out.pooler_output, tokens, "pooled")
