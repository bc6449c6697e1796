"""Moments against loops, whatever blocks and precision they are computed with, and scores of weighted examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.transferability import test_gbc, test_h_score, test_logme, test_transrate
from tests.transferability.inputs import CASES, draw
from tl_jax import transferability
from tl_jax.transferability import _statistics
from tl_jax.transferability.gbc import gbc_from
from tl_jax.transferability.h_score import h_score_from, regularized_h_score_from
from tl_jax.transferability.logme import logme_from
from tl_jax.transferability.sfda import sfda_from
from tl_jax.transferability.transrate import transrate_from

pytestmark = pytest.mark.fast
SCORES = (
    transferability.logme,
    transferability.h_score,
    transferability.regularized_h_score,
    transferability.transrate,
    transferability.gbc,
)
FROM = (
    logme_from,
    h_score_from,
    regularized_h_score_from,
    transrate_from,
    gbc_from,
)


@pytest.fixture
def doubles():
    with jax.enable_x64(True):
        yield


def rate(z):
    return 0.5 * np.linalg.slogdet(np.eye(len(z)) + z @ z.T / (len(z) * 1e-4))[1]


@pytest.mark.parametrize("name", ["random", "small classes", "tiny", "uneven"])
@pytest.mark.parametrize("block,panels", [(1024, 4), (7, 5)])
def test_they_are_what_loops_find(doubles, name, block, panels):
    x, y = CASES[name]
    classes = y.max() + 1
    longest = max(np.bincount(y)) + 3
    m = _statistics.weighted_moments(
        jnp.asarray(x), jnp.asarray(y), jnp.ones(len(x)), classes=classes, longest=longest, block=block, panels=panels
    )
    z = x - x.mean(0)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    close(m.counts, np.bincount(y))
    close(m.mean, x.mean(0))
    close(m.means, [x[y == c].mean(0) for c in range(classes)])
    close(m.variances, [x[y == c].var(0) for c in range(classes)])
    close(m.fourth, (np.linalg.norm(z, axis=1) ** 4).sum())
    close(m.scatter, z @ z.T if m.wide else z.T @ z)
    close(m.uncentred()[0], x @ x.T if m.wide else x.T @ x)
    close(m.uncentred()[1], np.eye(classes)[y] if m.wide else x.T @ np.eye(classes)[y])
    close(m.rates, [rate(z[y == c]) for c in range(classes)])
    assert m.wide == (name == "tiny")


@pytest.mark.slow
@pytest.mark.parametrize("n,d,classes,longest", [(3000, 24, 3, 1024), (600, 100, 10, 64)])  # both ways to the rates
def test_single_products_give_the_same_scores(doubles, n, d, classes, longest):
    x, y = (jnp.asarray(a) for a in draw(n, d, classes, seed=1))
    exact, single = (
        _statistics.weighted_moments(x, y, jnp.ones(n), classes=classes, longest=longest, single=single)
        for single in (False, True)
    )
    scores = [*FROM, lambda m: sfda_from(m, x, y, single=m is single)[0]]
    np.testing.assert_allclose([f(single) for f in scores], [f(exact) for f in scores], rtol=1e-5)
    assert 0 < np.abs(single.scatter - exact.scatter).max() < 1e-6 * exact.scatter.max()


def test_features_that_need_doubles_get_them(doubles, monkeypatch):
    x, y = draw(300, 6, 3)
    x[:, 5] = x[:, 0] + 1e-3 * x[:, 5] * (1 + y)
    x, y = jnp.asarray(x), jnp.asarray(y)
    exact = _statistics.compute_moments(x, y, 3).scatter
    monkeypatch.setattr(_statistics, "MAX_EXACT_PRODUCTS", 0)
    np.testing.assert_array_equal(_statistics.compute_moments(x, y, 3).scatter, exact)
    monkeypatch.setattr(_statistics, "MIN_TRUSTED_PIVOT", 0.0)
    assert np.abs(_statistics.compute_moments(x, y, 3).scatter - exact).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "tiny", "uneven"])
def test_weights_are_copies_of_examples(doubles, name):
    x, y = CASES[name]
    rng = np.random.default_rng(1)
    rows = np.concatenate([np.arange(len(x)) % (len(x) - 2), rng.integers(0, len(x) - 2, len(x))])
    rows = rows.reshape(2, -1)[:, rng.permutation(len(x))]
    if name == "uneven":  # a class without examples
        rows = np.where(y[rows] == 2, 0, rows)
    weights = jnp.asarray(np.stack([np.bincount(r, minlength=len(x)) for r in rows]).astype(float))

    def scores(w):
        m = _statistics.weighted_moments(jnp.asarray(x), jnp.asarray(y), w, classes=int(y.max()) + 1, longest=len(x))
        return jnp.stack([score(m) for score in FROM])

    found = jax.vmap(scores)(weights)
    for r, values in zip(rows, found, strict=True):
        a, b = x[r], y[r]
        np.testing.assert_allclose(values, [score(a, b) for score in SCORES], rtol=1e-6)


@pytest.mark.slow
def test_far_from_the_origin_nothing_is_lost():
    x, y = draw(80, 6, 3)
    for far in (x + 1e4, (x + 1000).astype(np.float32)):
        near = far.astype(float) - 1000
        assert transferability.h_score(far, y) == pytest.approx(test_h_score.literal(near, y), rel=1e-6)
        assert transferability.transrate(far, y) == pytest.approx(test_transrate.literal(near, y), rel=1e-6)
        assert transferability.gbc(far, y) == pytest.approx(test_gbc.literal(near, y), rel=1e-6)
    assert transferability.logme(x + 100, y) == pytest.approx(test_logme.literal(x + 100, y), rel=1e-5)


@pytest.mark.slow
def test_features_may_live_in_jax_and_in_few_bits():
    x, y = CASES["separable"]
    half = x.astype(np.float16)
    for score in SCORES:
        expected = score(half.astype(np.float32), y)
        assert score(jnp.asarray(half), jnp.asarray(y)) == expected == score(half, y.astype(np.int8))
        assert score(half.astype(float).tolist(), y.tolist()) == pytest.approx(expected, rel=1e-6)
        assert isinstance(expected, float)
        assert jnp.ones(2).dtype == jnp.float32  # double precision ends where the score does
