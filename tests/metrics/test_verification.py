"""Figures of verification and identification, against scikit-learn and against values worked by hand."""

import numpy as np
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn import metrics

from tl_jax.metrics import verification as v
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def scored(seed, n=400, ties=False):
    rng = np.random.default_rng(seed)
    same = rng.random(n) < 0.3
    scores = rng.normal(same, 1.0)
    return (np.round(scores, 1) if ties else scores), same, rng.integers(1, 4, n).astype(float)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_roc_and_auc_are_those_of_scikit_learn(ties, weighted):
    scores, same, weights = scored(0, ties=ties)
    weights = weights if weighted else None
    far, tar, thresholds = metrics.roc_curve(same, scores, sample_weight=weights, drop_intermediate=False)
    curve = v.roc_curve(scores, same, weights)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    np.testing.assert_allclose(curve.far, far, atol=1e-12)
    np.testing.assert_allclose(curve.tar, tar, atol=1e-12)
    assert v.auc(curve) == pytest.approx(metrics.roc_auc_score(same, scores, sample_weight=weights), abs=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_error_rate_is_where_scikit_learns_curve_meets_the_diagonal(seed):
    scores, same, _ = scored(seed)
    far, tar, _ = metrics.roc_curve(same, scores)
    expected = brentq(lambda x: 1 - x - interp1d(far, tar)(x), 0, 1)
    # Where the curve is vertical, interp1d has the upper end; elsewhere both are the same line.
    assert v.equal_error_rate(v.roc_curve(scores, same)) == pytest.approx(expected, abs=2e-3)


SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
SAME = np.array([1, 1, 0, 1, 1, 0, 0, 0], bool)


def test_eight_pairs_by_hand():
    curve = v.roc_curve(SCORES, SAME)
    assert curve.tar.tolist() == [0, 0.25, 0.5, 0.5, 0.75, 1, 1, 1, 1]
    assert curve.far.tolist() == [0, 0, 0, 0.25, 0.25, 0.25, 0.5, 0.75, 1]
    # Of 16 pairs (one person, two people) only 0.6 and 0.5 against 0.7 are the wrong way round.
    assert v.auc(curve) == 14 / 16
    assert [v.tar_at_far(curve, level) for level in (0.0, 0.2, 0.25, 1.0)] == [0.5, 0.5, 1.0, 1.0]
    assert v.equal_error_rate(curve) == 0.25  # at a threshold of 0.6: TAR 3/4, FAR 1/4
    assert v.best_threshold(SCORES, SAME) == pytest.approx(0.45)  # all of one person, and 0.7


def test_equal_error_between_two_points_is_interpolated():
    # From (0, 0) straight to (1, 1), as all scores are the same: the line meets TAR = 1 - FAR in the middle.
    assert v.equal_error_rate(v.roc_curve(np.ones(5), np.array([1, 0, 0, 1, 0], bool))) == 0.5


def test_both_kinds_count_half_whatever_their_numbers():
    scores = np.array([0.9, 0.6, *np.linspace(0.5, 0.65, 50)])
    same = np.arange(52) < 2
    # At 0.6 both of one person are accepted, and 17 of 50 others. At 0.9 most pairs would be right, 51 of 52.
    assert v.best_threshold(scores, same) == pytest.approx(0.599, abs=1e-3)
    assert v.accuracy(np.array([1, 0, *np.ones(50)], bool), same) == 0.75
    assert v.accuracy(np.array([1, 0, *np.ones(50)], bool), same, np.array([3.0, 1.0, *np.ones(50)])) == 0.875


def test_each_fold_is_decided_by_the_threshold_of_the_others():
    scores = np.array([0.9, 0.1, 0.5, 0.4])
    same, fold = np.array([1, 0, 1, 0], bool), np.array([0, 0, 1, 1])
    # Fold 1 gives 0.45, which is right in fold 0; fold 0 gives 0.5, which 0.5 reaches and 0.4 does not.
    assert v.fold_decisions(scores, same, fold).tolist() == [True] * 4
    scores = np.array([0.9, 0.1, 0.4, 0.3])  # 0.4 is below fold 0's 0.5
    assert v.fold_decisions(scores, same, fold).tolist() == [True, True, False, True]


def test_the_nearest_of_a_gallery():
    angles = np.radians([0, 10, 80, 90, 45.1, 85])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], 1)
    people = np.array([7, 7, 9, 9, 7, 9])
    probes, hits = v.rank_one(embeddings, people, 1)  # known: 0 degrees (7) and 80 degrees (9)
    assert probes.tolist() == [1, 3, 4, 5] and hits.tolist() == [True, True, False, True]
    probes, hits = v.rank_one(embeddings, people, 2)  # also 10 and 90: 45.1 is nearer to 80 than to 10 still
    assert probes.tolist() == [4, 5] and hits.tolist() == [False, True]
    assert len(v.rank_one(embeddings, people, 3)[1]) == 0


def people_of(k=12, each=6, noise=0.7, seed=0):
    rng = np.random.default_rng(seed)
    people = np.repeat(np.arange(k), each)
    x = rng.normal(size=(k, 8))[people] + noise * rng.normal(size=(k * each, 8))
    return x / np.linalg.norm(x, axis=1, keepdims=True), people


def test_every_pair_once():
    _, people = people_of(4, 3)
    pairs = v.all_pairs(people)
    assert len(pairs.same) == 66 and pairs.same.sum() == 4 * 3
    assert len(set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))) == 66
    assert (pairs.same == (people[pairs.first] == people[pairs.second])).all()
    assert np.bincount(pairs.fold, minlength=10).min() >= 6


@pytest.mark.parametrize("most", [20, 300])  # all pairs are listed, and then some drawn; or some drawn at once
def test_pairs_of_different_people_are_drawn_where_there_are_many(most):
    _, people = people_of(10, 12)
    pairs = v.all_pairs(people, max_pairs=most)
    assert pairs.same.sum() == 10 * 66 and (~pairs.same).sum() == most
    assert len(set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))) == 660 + most
    assert (pairs.same == (people[pairs.first] == people[pairs.second])).all() and (pairs.first < pairs.second).all()


def test_figures_of_a_trial():
    embeddings, people = people_of()
    pairs = v.all_pairs(people)
    found = v.compare(embeddings, people, pairs, 1)
    scores = (embeddings[pairs.first] * embeddings[pairs.second]).sum(1)
    values = v.verification_metrics(found)
    assert values["auc"] == pytest.approx(metrics.roc_auc_score(pairs.same, scores))
    assert set(values) == {"auc", "eer", "tar_at_1e-2", "tar_at_1e-3", "accuracy", "rank1"} and not v.missing_metrics(
        found
    )
    far, tar, _ = metrics.roc_curve(pairs.same, scores)
    assert values["tar_at_1e-2"] == tar[far <= 0.01].max()
    assert 0.7 < values["accuracy"] < 1 and 0.5 < values["rank1"] <= 1


def test_what_a_trial_is_too_small_for_has_a_reason():
    embeddings, people = people_of(3, 3)
    found = v.compare(embeddings, people, v.all_pairs(people), 3)
    assert v.missing_metrics(found) == {
        "tar_at_1e-2": "needs 100 pairs of different people; there are 27",
        "tar_at_1e-3": "needs 1,000 pairs of different people; there are 27",
        "accuracy": "needs 10 pairs of one person and 10 of different people",
        "rank1": "needs people with more images than the gallery has of each",
    }
    assert set(v.verification_metrics(found)) == {"auc", "eer"}


def test_weights_are_as_good_as_copies():
    embeddings, people = people_of(5, 4)
    found = v.compare(embeddings, people, v.all_pairs(people), 1)
    weights = np.array([2.0, 0, 1, 3, 1])
    one, other = found.pair_identities
    times = np.where(found.same, weights[one], weights[one] * weights[other]).astype(int)
    copies = np.repeat(np.arange(len(times)), times)
    by_weight = v.verification_metrics(found, weights)
    assert by_weight["auc"] == pytest.approx(metrics.roc_auc_score(found.same[copies], found.scores[copies]))
    hits = np.repeat(found.hits, weights[found.probe_identities].astype(int))
    assert by_weight["rank1"] == pytest.approx(hits.mean())


def test_intervals_are_over_people():
    embeddings, people = people_of(8, 10)
    pairs = v.all_pairs(people)
    found = v.compare(embeddings, people, pairs, 1)
    between, values = v.bootstrap_intervals(found, 200), v.verification_metrics(found)
    for name, (low, high) in between.items():
        assert low <= values[name] <= high, name
    # By the formula of Hanley and McNeil for independent pairs, the interval would be far narrower.
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(pairs.same), size=len(pairs.same)) for _ in range(100)]
    alone = [metrics.roc_auc_score(found.same[rows], found.scores[rows]) for rows in drawn]
    low, high = between["auc"]
    assert high - low > 2 * (np.quantile(alone, 0.975) - np.quantile(alone, 0.025))
    assert v.bootstrap_intervals(found, 200) == between
    few = v.compare(embeddings[:20], people[:20], v.all_pairs(people[:20]), 1)
    assert v.bootstrap_intervals(few) == {}


def test_one_kind_of_pairs_alone_is_refused():
    with pytest.raises(UserError, match="needs pairs of one person and pairs of different people"):
        v.roc_curve(np.ones(3), np.ones(3, bool))
