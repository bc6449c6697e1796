"""No method by its defaults is worse than a probe of the same features, on images of which a probe knows four in five.

1,000 digits are tested, so that a difference of two points is more than what the choice of these examples makes.
"""

import numpy as np
import pytest
from sklearn.datasets import load_digits

import tl_jax
from tl_jax.transfer.methods import names_for_task

pytestmark = pytest.mark.slow
PER_CLASS, TEST = 10, 1000


@pytest.fixture(scope="module")
def digits():
    """Digits as images uint8 (N, 16, 16, 3) with labels: ten of each class, and others to test on."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * 15.9).astype(np.uint8).repeat(2, 1).repeat(2, 2)[..., None].repeat(3, 3)
    order = np.random.default_rng(0).permutation(len(labels))
    train = np.concatenate([order[labels[order] == k][:PER_CLASS] for k in range(10)])
    test = np.setdiff1d(order, train)[:TEST]
    return (pixels[train], labels[train]), (pixels[test], labels[test])


def accuracy(digits, method, folder):
    learner = tl_jax.fine_tune(digits, model="resnet8", image_size=16, method=method, workdir=folder)
    return learner.evaluate()["accuracy"]


@pytest.fixture(scope="module")
def probe(digits, tmp_path_factory):
    found = accuracy(digits, "logistic", tmp_path_factory.mktemp("probe"))
    assert 0.6 < found < 0.9
    return found


@pytest.mark.parametrize("method", [name for name in names_for_task("image") if name not in ("logistic", "scratch")])
def test_a_default_is_not_worse_than_the_probe(method, digits, probe, tmp_path):
    assert accuracy(digits, method, tmp_path) >= probe - 0.02
