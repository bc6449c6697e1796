"""The weights that ship with the package: small, described by their card, and as good as it says."""

import hashlib
import re

import jax
import numpy as np
import pytest

from tl_jax import pretrained
from tl_jax.data import sources
from tl_jax.weights import catalog


@pytest.mark.fast
@pytest.mark.parametrize("name", catalog.EMBEDDED)
def test_card_and_size(name):
    file = catalog.EMBEDDED[name]
    card = file.with_suffix(".md").read_text()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    assert file.stat().st_size <= 1.2e6
    for word in ("data", "command", "test accuracy", "licence", "run"):
        assert f"| {word} |" in card
    loaded = pretrained.load(name, "tl_jax")
    assert not loaded.new_head and loaded.spec.num_classes == 10 and loaded.path == file


@pytest.mark.slow
@pytest.mark.data
def test_accuracy_is_the_cards(data_dir):
    source = sources.load("cifar10", str(data_dir / "tfds"))
    net = pretrained.load("resnet8", "tl_jax")
    predict = jax.jit(lambda images: net.model.apply(net.variables, net.preprocess(images))[0].argmax(-1))
    answers = np.concatenate([predict(source.test.images[i : i + 500]) for i in range(0, 10_000, 500)])
    stated = float(
        re.search(r"test accuracy \| ([\d.]+)%", catalog.EMBEDDED["resnet8"].with_suffix(".md").read_text())[1]
    )
    assert 100 * (answers == source.test.labels).mean() == pytest.approx(stated, abs=0.1)
