"""Scores under jit and vmap: what the checking functions say, in the caller's precision."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax import transferability
from tl_jax.transferability import traceable
from tl_jax.utils.errors import UserError

CLASSES, KEY = 3, jax.random.key(0)


def sets(count=4, n=90, d=7):
    """Features (C, N, D) of several layers, labels (N,), and probabilities (C, N, 5)."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % CLASSES
    features = rng.normal(size=(count, n, d)) + 1.5 * np.eye(CLASSES, d)[labels]
    return features, labels, rng.dirichlet(np.ones(5), (count, n))


LABELLED = ("logme", "h_score", "regularized_h_score", "transrate", "gbc", "sfda")


def calls(labels):
    """Traceable and checking function of one set of features, by name."""

    def labelled(name):
        trace, check = getattr(traceable, name), getattr(transferability, name)
        return (lambda x, p: trace(x, labels, CLASSES)), (lambda x, p: check(x, labels))

    other = np.random.default_rng(1).normal(size=(40, 7)) + 1.0
    return {name: labelled(name) for name in LABELLED} | {
        "leep": (lambda x, p: traceable.leep(p, labels, CLASSES), lambda x, p: transferability.leep(p, labels)),
        "nce": (
            lambda x, p: traceable.nce(p.argmax(1), labels, 5, CLASSES),
            lambda x, p: transferability.nce(np.asarray(p).argmax(1), labels),
        ),
        "parc": (lambda x, p: traceable.parc(p, labels), lambda x, p: transferability.parc(p, labels)),
        "linear_cka": (lambda x, p: traceable.linear_cka(x, p), lambda x, p: transferability.linear_cka(x, p)),
        "debiased_cka": (
            lambda x, p: traceable.linear_cka(x, p, True), lambda x, p: transferability.linear_cka(x, p, True)
        ),
        "mmd": (lambda x, p: traceable.mmd(x, other), lambda x, p: transferability.mmd(x, other)),
        "mmd_rbf": (
            lambda x, p: traceable.mmd(x, other, "rbf", 2.0), lambda x, p: transferability.mmd(x, other, "rbf", 2.0)
        ),
        "energy": (lambda x, p: traceable.energy(x, other), lambda x, p: transferability.energy(x, other)),
        "sliced_wasserstein": (
            lambda x, p: traceable.sliced_wasserstein(x, other, KEY, 32),
            lambda x, p: transferability.sliced_wasserstein(x, other, KEY, 32),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", list(calls(None)))
def test_scores_of_many_layers_at_once_are_those_of_each(name, double):
    features, labels, probs = sets()
    trace, check = calls(labels)[name]
    right = [check(*pair) for pair in zip(features, probs, strict=True)]
    with warnings.catch_warnings(), jax.enable_x64(double):
        warnings.simplefilter("error")  # of types that are not there
        found = jax.jit(jax.vmap(trace))(jnp.asarray(features), jnp.asarray(probs))
    assert found.dtype == (np.float64 if double else np.float32) and found.shape == (4,)
    np.testing.assert_allclose(found, right, rtol=1e-7 if double else 2e-3, atol=1e-8 if double else 2e-4)
    assert len(set(np.round(right, 6))) == 4


def test_a_kernel_that_is_not_known_is_refused():
    with pytest.raises(UserError, match="unknown kernel 'linear'"):
        traceable.mmd(np.zeros((4, 2)), np.zeros((4, 2)), "linear")


@pytest.mark.parametrize("name", LABELLED)
def test_a_class_without_examples_changes_nothing(name):
    (features, *_), labels, _ = sets()
    score = getattr(traceable, name)
    with jax.enable_x64(True):
        assert float(score(features, labels, CLASSES + 2)) == pytest.approx(float(score(features, labels, CLASSES)))


@pytest.mark.parametrize("name", ["leep", "gbc", "linear_cka", "energy", "mmd"])
def test_scores_have_gradients(name):
    """Compared with differences of the checking functions."""
    (features, *_), labels, (probs, *_) = sets()
    trace, check = calls(labels)[name]
    which = 1 if name == "leep" else 0
    with jax.enable_x64(True):
        slope = jax.grad(trace, which)(jnp.asarray(features), jnp.asarray(probs))
    moved = np.random.default_rng(2).normal(size=slope.shape)
    moved -= moved.mean(1, keepdims=True) if which else 0.0  # rows keep their sum
    step = 1e-6
    parts = [(probs + s * step * moved) if which else (features + s * step * moved) for s in (1, -1)]
    sides = [check(features, part) if which else check(part, probs) for part in parts]
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(float((np.asarray(slope) * moved).sum()), rel=1e-3)
