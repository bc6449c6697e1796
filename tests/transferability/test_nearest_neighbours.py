"""Nearest neighbours against scikit-learn, a literal version, and values by hand."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from tl_jax.transferability import knn, probes
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def problem(classes, n=200, m=90, d=8, seed=0):
    """Return examples of overlapping clusters, their labels, and queries."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    labels[:classes] = np.arange(classes)
    centres = rng.normal(size=(classes, d))
    draw = lambda y: (centres[y] + rng.normal(size=(len(y), d)) + 1).astype(np.float32)  # noqa: E731
    return draw(labels), labels, draw(rng.integers(0, classes, m))


def literal(x, y, queries, k, metric):
    """Return the classes, and whether several had the most votes, query by query in double precision."""
    x, queries = x.astype(np.float64), queries.astype(np.float64)
    found, tied = [], []
    for q in queries:
        if metric == "cosine":
            far = 1 - x @ q / (np.linalg.norm(x, axis=1) * np.linalg.norm(q))
        else:
            far = np.linalg.norm(x - q, axis=1)
        near = y[np.argsort(far, kind="stable")[:k]]
        votes = {label: int((near == label).sum()) for label in near}  # in the order of their nearest members
        best = [label for label, count in votes.items() if count == max(votes.values())]
        found.append(best[0])
        tied.append(len(best) > 1)
    return np.array(found), np.array(tied)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 4, 7, 200])
def test_it_is_the_definition_and_scikit_learns(metric, k):
    x, y, q = problem(4)
    ours = np.asarray(knn(x, y, q, k, metric))
    expected, tied = literal(x, y, q, k, metric)
    np.testing.assert_array_equal(ours, expected)
    reference = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(x, y)
    np.testing.assert_array_equal(ours[~tied], reference.predict(q)[~tied])
    assert tied.any() == (k in (4, 7))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("block", [1, 7, 90, 1000])  # blocks of 1, of 7 with a rest, of all, and more than there are
def test_blocks_change_nothing(monkeypatch, metric, block):
    x, y, q = problem(3, seed=1)
    expected = np.asarray(knn(x, y, q, 5, metric))
    monkeypatch.setattr(probes, "QUERY_BLOCK", block * (len(x) + 25))
    probes._vote.clear_cache()  # the block is no argument of the compiled function
    try:
        np.testing.assert_array_equal(knn(x, y, q, 5, metric), expected)
    finally:
        probes._vote.clear_cache()


def test_equal_votes_go_to_the_class_with_the_nearest_member():
    x, y = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([1, 0, 0, 1])
    assert knn(x, y, [[0.0]], k=4, metric="euclidean").tolist() == [1]  # two each; 1 is the nearer
    assert knn(x, y, [[5.0]], k=4, metric="euclidean").tolist() == [1]
    assert knn(x, y, [[2.2]], k=4, metric="euclidean").tolist() == [0]
    assert knn(x, y, [[0.0]], k=3, metric="euclidean").tolist() == [0]  # the majority, although farther


def test_angles_are_not_distances():
    x, y = np.array([[10.0, 0.1], [0.0, 1.0]]), np.array([0, 1])
    q = np.array([[1.0, 0.2]])
    assert knn(x, y, q, k=1).tolist() == [0] and knn(x, y, q, k=1, metric="euclidean").tolist() == [1]
    with_zero = np.concatenate([x, np.zeros((1, 2))])
    assert knn(with_zero, [0, 1, 2], -x[:1], k=1).tolist() == [2]  # a right angle beats the opposite direction


def test_far_from_the_origin_distances_keep_their_order():
    x, y, q = problem(4)
    near = knn(x, y, q, 5, "euclidean")
    assert (np.asarray(knn(x + 500, y, q + 500, 5, "euclidean")) == np.asarray(near)).mean() > 0.98


def test_no_queries_have_no_classes():
    x, y, q = problem(3)
    assert knn(x, y, q[:0]).shape == (0,)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"queries": np.zeros((2, 3))}, r"queries: shape \(2, 3\) does not match \(M, 8\)"),
        ({"queries": np.zeros(8)}, r"queries: shape \(8,\)"),
        ({"queries": np.full((2, 8), np.inf)}, "queries: values are not finite"),
        ({"features": np.full((200, 8), np.nan)}, "features: values are not finite"),
        ({"labels": np.zeros(3, int)}, r"features \(200, 8\) and labels \(3,\)"),
        ({"metric": "cosin"}, "unknown metric 'cosin'; did you mean 'cosine'"),
        ({"k": 0}, "k=0: out of range; it must be from 1 to 200, the number of examples"),
        ({"k": 201}, "k=201: out of range; it must be from 1 to 200"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    x, y, q = problem(3)
    with pytest.raises(UserError, match=message):
        knn(**{"features": x, "labels": y, "queries": q, **changes})


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12])
def test_the_size_of_the_features_changes_no_neighbour(metric, size):
    x, y, q = problem(3)
    np.testing.assert_array_equal(knn(x * size, y, q * size, metric=metric), knn(x, y, q, metric=metric))


def test_queries_that_are_no_real_numbers_are_refused():
    x, y, q = problem(3)
    with pytest.raises(UserError, match="queries: must be real numbers, not complex64"):
        knn(x, y, q + np.complex64(1j))
