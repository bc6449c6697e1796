"""The report: every measure's own value, sensible intervals, and what it leaves out."""

import importlib

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tl_jax import transferability
from tl_jax.transferability import probes
from tl_jax.transferability.otdd import exact_is_cheap
from tl_jax.transferability.registry import MOMENTS, SCORES, measures
from tl_jax.utils.errors import UserError

report_module = importlib.import_module("tl_jax.transferability.report")  # its package has a function of that name
pytestmark = pytest.mark.slow
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def data():
    """Return features, labels, source probabilities, and features and labels of a source."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 12)
    x = (rng.normal(size=(48, 9)) + 0.8 * rng.normal(size=(4, 9))[y]).astype(np.float32)
    p = rng.dirichlet(np.ones(6), size=48)
    return x, y, p, (x[:40] + 0.5, y[:40])


@pytest.fixture(scope="module")
def report(data):
    x, y, p, source = data
    return transferability.report(x, y, p, source, KEY)


def test_values_are_those_of_each_measure_alone(data, report):
    x, y, p, (x1, y1) = data
    values = report.values()
    for name in ("logme", "h_score", "regularized_h_score", "transrate", "gbc", "sfda", "parc"):
        assert values[name] == pytest.approx(getattr(transferability, name)(x, y), rel=1e-9), name
    assert values["leep"] == pytest.approx(transferability.leep(p, y)) and values["nleep"] == transferability.nleep(
        x, y, KEY
    )
    assert values["nce"] == pytest.approx(transferability.nce(p.argmax(1), y))
    assert values["otdd"] == pytest.approx(transferability.otdd(x1, y1, x, y, "exact"))
    assert exact_is_cheap(500, 50) and not exact_is_cheap(2000, 1999)
    assert values["frechet"] == transferability.frechet(x1, x) and values["energy"] == transferability.energy(x1, x)
    assert values["mmd"] == transferability.mmd(x1, x) and values["mmd_rbf"] == transferability.mmd(x1, x, "rbf")
    assert values["proxy_a"] == transferability.proxy_a(x1, x, KEY)
    assert values["sliced_wasserstein"] == transferability.sliced_wasserstein(x1, x, KEY)


def test_intervals_hold_the_value_and_are_not_wide(report):
    rows = {row.name: row for row in report.rows}
    for name in ("logme", "h_score", "regularized_h_score", "transrate", "gbc", "leep", "nce", "knn", "ridge_probe"):
        row = rows[name]
        assert row.low < row.value < row.high and row.seconds >= 0, name
    for name in ("sfda", "nleep", "parc", "otdd", "frechet", "mmd", "energy", "sliced_wasserstein", "proxy_a"):
        row = rows[name]
        assert row.low < row.value < row.high and row.high - row.low < 2 * abs(row.value) + 1, name
    # Of a share of right answers the standard deviation is known.
    share = rows["knn"].value
    assert rows["knn"].high - share == pytest.approx(1.96 * np.sqrt(share * (1 - share) / 48), rel=0.3)
    text = str(report)
    assert text.splitlines()[0].split() == ["measure", "value", "95", "%", "interval", "seconds"] and "logme" in text


def test_what_is_not_given_is_left_out(data):
    x, y, *_ = data
    few = transferability.report(x, y, resamples=0)
    names = set(few.values())
    assert not names & {"leep", "nce", "otdd", "frechet"} and {"logme", "parc", "knn"} <= names
    assert all(np.isnan(row.low) for row in few.rows)


def test_many_examples_are_not_halved_unasked(monkeypatch):
    monkeypatch.setattr(importlib.import_module("tl_jax.transferability.report"), "MAX_HALVED", 20)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 3)), np.arange(24) % 2
    rows = {row.name: row for row in transferability.report(x, y).rows}
    assert np.isnan(rows["parc"].low) and rows["logme"].low < rows["logme"].value
    asked = {row.name: row for row in transferability.report(x, y, resamples=3).rows}
    assert asked["parc"].low < asked["parc"].value


def test_held_out_answers_are_scikit_learns(data):
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    x, y, *_ = data
    mine = probes.cross_validated_hits(SCORES["ridge_probe"].function, x, y, 4, seed=5).mean()
    parts = StratifiedKFold(4, shuffle=True, random_state=5)
    assert mine == pytest.approx(cross_val_score(RidgeClassifier(alpha=1.0), x, y, cv=parts).mean())


def test_more_parts_than_examples_are_refused(data):
    x, y, *_ = data
    with pytest.raises(UserError, match="folds=13: must be from 2 to 12"):
        transferability.report(x, y, folds=13, resamples=0)


def shapes_of_factorizations(jaxpr):
    """Yield the shapes of what LAPACK decomposes, in inner programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("cholesky", "eigh", "svd"):
            yield equation.invars[0].aval.shape
        for inner in jaxprs_in_params(equation.params):
            yield from shapes_of_factorizations(inner)


def test_resampled_scores_decompose_one_matrix_at_a_time(data):
    """Batches of matrices block both threads of a machine with two cores for ever: see ``report``."""
    x, y, *_ = map(jax.numpy.asarray, data[:2])
    weights = jax.numpy.ones((20, len(y)))

    def moments(weights):
        return report_module._map_weights(x, y, weights, 4, 12)

    shapes = list(shapes_of_factorizations(jax.make_jaxpr(moments)(weights).jaxpr))
    made = jax.eval_shape(moments, weights)
    for score in measures(MOMENTS).values():
        program = report_module._map_moments(score)
        shapes += shapes_of_factorizations(jax.make_jaxpr(program)(made).jaxpr)
    assert shapes and {len(shape) for shape in shapes} == {2}
