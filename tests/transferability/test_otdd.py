"""OTDD against a literal version with a linear programme and matrix roots, and values by hand."""

import importlib

import numpy as np
import pytest
import scipy.optimize

from tests.transferability.sets import bures, draw, near
from tl_jax.transferability import otdd
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def costs(x1, y1, x2, y2):
    """Return |x - x'|^2 + W2^2(y, y') of every pair."""
    labels = {(i, j): bures(x1[y1 == i], x2[y2 == j]) for i in set(y1.tolist()) for j in set(y2.tolist())}
    rows = zip(x1, y1.tolist(), strict=True)
    return np.array(
        [[((a - b) ** 2).sum() + labels[i, j] for b, j in zip(x2, y2.tolist(), strict=True)] for a, i in rows]
    )


def literal(x1, y1, x2, y2):
    """Return the least mean of |x - x'|^2 + W2^2 by a linear programme over all plans."""
    cost = costs(x1, y1, x2, y2)
    n, m = cost.shape
    sums = np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    masses = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return scipy.optimize.linprog(cost.ravel(), A_eq=sums, b_eq=masses, method="highs").fun


def problem(kind, n1, n2):
    """Return two labelled sets; classes of the second are others than those of the first."""
    d, k1, k2 = {"tiny": (40, 3, 2)}.get(kind, (4, 3, 2))
    y1, y2 = np.arange(n1) % k1, np.arange(n2) % k2
    if kind == "single":  # one example per class
        y1, y2 = np.arange(n1), np.arange(n2)
    x1, x2 = draw(n1, d) + y1[:, None], draw(n2, d, 1) * 1.5 - y2[:, None] + 0.5
    if kind == "separable":
        x1, x2 = x1 + 20 * y1[:, None], x2 - 20 * y2[:, None]
    if kind == "flat":  # rank two of four
        x1[:, 2:], x2[:, 2:] = x1[:, :2], x2[:, :2]
    if kind == "far":
        x1, x2 = x1 + 1000, x2 + 1000
    return x1, y1, x2, y2


KINDS = ("random", "separable", "tiny", "flat", "single", "far")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n1,n2", [(18, 18), (12, 18), (18, 13)])  # assignment, with repeats, linear programme
def test_it_is_the_papers_equation(kind, n1, n2, monkeypatch):
    monkeypatch.setattr(importlib.import_module("tl_jax.transferability.otdd"), "MAX_ASSIGNMENT", 100)
    sets = problem(kind, n1, n2)
    assert otdd(*sets) == near(literal(*sets))
    assert otdd(*sets[2:], *sets[:2]) == near(otdd(*sets))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n1,n2", [(60, 60), (40, 60)])
def test_sinkhorn_is_within_a_percent(kind, n1, n2):
    sets = problem(kind, n1, n2)
    value = otdd(*sets, method="sinkhorn")
    assert value == pytest.approx(otdd(*sets), rel=0.01)
    assert otdd(*sets[2:], *sets[:2], method="sinkhorn") == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("epsilon", [0.01, 0.3])
def test_sinkhorn_is_a_divergence_of_entropic_plans(epsilon):
    x1, y1, x2, y2 = problem("random", 20, 30)

    def entropic(x1, y1, x2, y2, strength):
        cost = costs(x1, y1, x2, y2)
        f, g = np.zeros(len(x1)), np.zeros(len(x2))
        strength = strength or epsilon * cost.mean()
        for _ in range(3000):
            f = -strength * np.log(np.exp((g[None] - cost) / strength).mean(1))
            g = -strength * np.log(np.exp((f[:, None] - cost) / strength).mean(0))
        return f.mean() + g.mean(), strength

    between, strength = entropic(x1, y1, x2, y2, None)
    within = entropic(x1, y1, x1, y1, strength)[0] + entropic(x2, y2, x2, y2, strength)[0]
    value = otdd(x1, y1, x2, y2, method="sinkhorn", epsilon=epsilon, tolerance=1e-8)
    assert value == near(between - within / 2)


def test_by_hand():
    # Classes {0, 2} and {10, 14}: means 1 and 12, variances 2 and 8, so W2^2 = 121 + (sqrt 8 - sqrt 2)^2 = 123. The
    # plan is monotone: (10^2 + 12^2) / 2.
    x1, x2 = np.array([[0.0], [2.0]]), np.array([[14.0], [10.0]])
    assert otdd(x1, [3, 3], x2, [0, 0]) == pytest.approx(122 + 123)
    # One example per class is a point: the label costs what the example does.
    assert otdd(x1, [0, 1], x2, [0, 1]) == pytest.approx(2 * 122)
    # Half of the one example goes to each of two: (14^2 + 10^2) / 2, and as much again for the labels.
    assert otdd(x1[:1], [0], x2, [0, 1]) == pytest.approx(100 + 196)


@pytest.mark.parametrize("method,slack", [("exact", 1e-9), ("sinkhorn", 1e-4)])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_sets_are_at_zero_in_any_order(method, slack, kind):
    x, y, *_ = problem(kind, 24, 24)
    order = np.random.default_rng(0).permutation(24)
    assert otdd(x, y, x, y, method) == pytest.approx(0, abs=slack * x.var())
    assert otdd(x, y, x[order], y[order], method) == pytest.approx(0, abs=slack * x.var())


@pytest.mark.parametrize("method", ["exact", "sinkhorn"])
def test_names_of_labels_are_of_no_matter(method):
    x1, y1, x2, y2 = problem("random", 18, 12)
    gaps = np.array([4, 900, 2])
    assert otdd(x1, gaps[y1], x2, 7 * y2.astype(np.float32), method) == pytest.approx(otdd(x1, y1, x2, y2, method))


def test_all_in_one_place():
    x, y = np.ones((4, 2)), [0, 0, 1, 1]
    assert otdd(x, y, x, y) == otdd(x, y, x, y, method="sinkhorn") == 0.0


def test_what_is_too_large_says_what_to_do(monkeypatch):
    x, y = draw(7, 2), np.zeros(7, int)
    monkeypatch.setattr(importlib.import_module("tl_jax.transferability.otdd"), "MAX_ASSIGNMENT", 10)
    monkeypatch.setattr(importlib.import_module("tl_jax.transferability.otdd"), "MAX_VARIABLES", 20)
    with pytest.raises(UserError, match="7 and 5 examples are too many; pass equal numbers on both sides"):
        otdd(x, y, x[:5], y[:5])
    monkeypatch.setattr(importlib.import_module("tl_jax.transferability.otdd"), "MAX_PAIRS", 36)
    with pytest.raises(UserError, match=r"7 and 7 examples: 4.9e\+01 pairs are too many; pass at most 6 each"):
        otdd(x, y, x, y)
    with pytest.raises(UserError, match="7 and 2 examples"):
        otdd(x, y, x[:2], y[:2], method="sinkhorn")


X, Y = draw(4, 2), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    "sets,how,message",
    [
        ((X, Y, X, Y), {"method": "sinkhron"}, "unknown method 'sinkhron'; did you mean 'sinkhorn'"),
        ((X, Y, X, Y), {"epsilon": 0.0}, "epsilon=0.0: out of range"),
        ((X, Y, X, Y), {"method": "sinkhorn", "steps": 1, "tolerance": 1e-9}, "not converged in 1 steps"),
        ((X, Y, X[:, :1], Y), {}, "x1 has 2 features and x2 has 1; take both from the same layer"),
        ((X[0], Y, X, Y), {}, r"x1: must be features \(N, D\) of real numbers, not \(2,\)"),
        ((X, Y, X * np.nan, Y), {}, "features x2: values are not finite"),
        ((X, Y[:3], X, Y), {}, r"y1: labels of 4 examples must be \(4,\), not \(3,\)"),
        ((X, Y, X, Y - 1), {}, "labels y2: -1 is negative"),
        ((X, Y, X, Y + 0.5), {}, "labels y2: must be whole numbers, not 0.5"),
        ((X, Y, X, np.array(list("abab"))), {}, "labels y2: must be whole numbers, not <U1"),
    ],
)
def test_what_is_no_pair_of_sets_is_refused(sets, how, message):
    with pytest.raises(UserError, match=message):
        otdd(*sets, **how)
