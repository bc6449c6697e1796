"""The strength of the head that fine-tuning starts from, against scikit-learn's logistic regression."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from tl_jax.tasks.probe_strength import START_LOSS, start_strength


def digits(n):
    images, labels = load_digits(return_X_y=True)
    return (images[:n] / 16).astype(np.float32), labels[:n]


def loss_of(strength, features, labels):
    model = LogisticRegression(C=strength, max_iter=5000).fit(features, labels)
    return log_loss(labels, model.predict_proba(features))


@pytest.mark.fast
@pytest.mark.parametrize("n", [60, 600])
def test_fine_tuning_starts_from_the_strongest_head_that_is_little_better_than_a_guess(n):
    features, labels = digits(n)
    guess = log_loss(labels, np.tile(np.bincount(labels) / n, (n, 1)))
    strength = start_strength(features, labels, START_LOSS)
    assert loss_of(1.0, features, labels) < 0.5 * guess
    assert loss_of(strength, features, labels) >= START_LOSS * guess > loss_of(10 * strength, features, labels)


@pytest.mark.fast
def test_a_head_that_is_a_guess_is_not_weakened():
    features, labels = digits(100)
    assert start_strength(np.zeros_like(features), labels, START_LOSS) == 1.0
