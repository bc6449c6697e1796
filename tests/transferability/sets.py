"""What the tests of distances between two sets share."""

import numpy as np
import pytest
import scipy.linalg


def draw(n, d, seed=0):
    """Return standard normal (N, D)."""
    return np.random.default_rng(seed).normal(size=(n, d))


def near(value):
    """Return what equals ``value`` to 1e-5 of it."""
    return pytest.approx(value, rel=1e-5)


def root(a):
    """Return the root of a positive semidefinite matrix. sqrtm alone does not go through where it is singular."""
    values, vectors = np.linalg.eigh(a)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def bures(x1, x2):
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2), the inner root by SciPy where it is regular."""
    d = x1.shape[1]
    s1, s2 = (np.cov(x.T).reshape(d, d) if len(x) > 1 else np.zeros((d, d)) for x in (x1, x2))
    middle = root(s1) @ s2 @ root(s1)
    regular = np.linalg.matrix_rank(middle) == d
    inner = scipy.linalg.sqrtm(middle).real if regular else root(middle)
    return ((x1.mean(0) - x2.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * inner)
