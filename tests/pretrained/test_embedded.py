"""The weights that ship with the package: small, described by their card, and as good as it says."""

import hashlib
import re

import jax
import numpy as np
import pytest

from configs import masked_words
from tl_jax import pretrained, training
from tl_jax.config import recipe
from tl_jax.data import tfds
from tl_jax.pretrained import catalog
from tl_jax.utils.errors import UserError


@pytest.mark.fast
@pytest.mark.parametrize("name", catalog.EMBEDDED_RESNET8)
def test_card_and_size(name):
    file = catalog.EMBEDDED_RESNET8[name]
    card = file.with_suffix(".md").read_text()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert file.stat().st_size <= 1.2e6
    for word in ("data", "command", "test accuracy", "licence", "run"):
        assert f"| {word} |" in card
    loaded = pretrained.load("resnet8", "tl_jax", name)
    assert not loaded.new_head and loaded.path == file
    assert f"{loaded.spec.num_classes} classes" in card
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded.variables))


@pytest.mark.fast
def test_one_is_the_default_and_another_name_is_refused():
    assert pretrained.load("resnet8", "tl_jax").path == catalog.EMBEDDED_RESNET8["cifar10"]
    with pytest.raises(UserError, match="no weights file at cifar.*use one of cifar10, mnist"):
        pretrained.load("resnet8", "tl_jax", "cifar")


@pytest.mark.slow
@pytest.mark.data
def test_accuracy_is_the_cards(data_dir):
    source = tfds.load("cifar10", str(data_dir / "tfds"))
    net = pretrained.load("resnet8", "tl_jax")
    predict = jax.jit(lambda images: net.model.apply(net.variables, net.preprocess(images))[0].argmax(-1))
    answers = np.concatenate([predict(source.test.inputs[i : i + 500]) for i in range(0, 10_000, 500)])
    stated = float(
        re.search(r"test accuracy \| ([\d.]+)%", catalog.EMBEDDED["resnet8"].with_suffix(".md").read_text())[1]
    )
    assert 100 * (answers == source.test.labels).mean() == pytest.approx(stated, abs=0.1)


@pytest.mark.slow
@pytest.mark.fast
def test_the_small_bert_guesses_words_of_texts_that_it_never_saw(tmp_path):
    assert sum(file.stat().st_size for file in catalog.EMBEDDED_BERT.iterdir()) < 5e6
    assert "nothing of SciPy" in (catalog.EMBEDDED_BERT / "card.md").read_text()
    known, usual = {}, masked_words.get_config("smoke")
    for source in ("tl_jax", "random"):
        config = recipe.override(usual, (("epochs", 0.0), ("init.source", source), ("data.test_examples", 200)))
        known[source] = training.train(config, tmp_path / source)["metrics"]["accuracy"]  # on docstrings of SciPy
    assert known["tl_jax"] > 0.25 and known["random"] < 0.02


@pytest.mark.fast
def test_the_small_bert_is_found_by_name():
    net = pretrained.load("bert", "tl_jax")
    tokens = net.tokenize(["Solve a linear system."])
    words, end = net.model.apply(net.variables, **tokens)
    assert (
        words.shape == (*tokens["input_ids"].shape, 4096)
        and end["features"].shape == (1, 128)
        and set(end) >= {"embeddings", "layer1", "layer4", "pooled"}
    )
