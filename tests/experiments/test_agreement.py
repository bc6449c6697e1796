"""Rank correlations of scores with gains: known orders, intervals that hold what they should, and the paired test."""

import numpy as np
import pytest
from scipy import stats

from experiments.transferability.report import Group, agreements

pytestmark = pytest.mark.fast


def drawn(count: int, noise: float, seed: int = 0, size: int = 7) -> list[Group]:
    """Return groups in which ``good`` is the gain with noise, ``opposite`` its negative, ``chance`` nothing to it."""
    rng = np.random.default_rng(seed)
    groups = []
    for _ in range(count):
        gains = rng.normal(size=size)
        scores = {"chance": rng.normal(size=size), "good": gains + noise * rng.normal(size=size), "opposite": -gains}
        groups.append(Group(gains, scores))
    return groups


def test_an_exact_score_is_first_and_its_opposite_last():
    found = agreements(drawn(6, 0.0), resamples=200)
    assert [one.score for one in found] == ["good", "chance", "opposite"]
    good, chance, opposite = found
    assert good.tau == good.spearman == 1 and good.behind == 0 and good.p == 1
    assert opposite.tau == pytest.approx(-1) and opposite.p == 0
    assert chance.low < 0 < chance.high and chance.p < 0.05
    assert good.needed == np.inf and opposite.needed < 42


def test_tau_and_spearman_are_scipys_means_over_groups():
    groups = drawn(3, 1.0)
    for one in agreements(groups, resamples=50):
        each = [stats.weightedtau(group.scores[one.score], group.gains).statistic for group in groups]
        assert one.tau == pytest.approx(np.mean(each))
        each = [stats.spearmanr(group.scores[one.score], group.gains).statistic for group in groups]
        assert one.spearman == pytest.approx(np.mean(each))


def test_a_little_better_is_not_told_apart_by_few_pairs():
    rng = np.random.default_rng(1)
    groups = []
    for _ in range(3):
        gains = rng.normal(size=5)
        noisy = {name: gains + noise * rng.normal(size=5) for name, noise in (("a", 1.0), ("b", 1.2))}
        groups.append(Group(gains, noisy))
    _, second = agreements(groups, resamples=200)
    assert second.p > 0.05 and second.needed > 15


def test_the_same_seed_gives_the_same_numbers():
    assert agreements(drawn(4, 1.0), seed=3, resamples=50) == agreements(drawn(4, 1.0), seed=3, resamples=50)


def test_a_score_that_is_the_same_for_all_is_last_and_says_nothing():
    groups = [Group(g.gains, {"same": np.full(7, 9.0), **g.scores}) for g in drawn(4, 0.1)]
    found = agreements(groups, resamples=50)
    assert [one.score for one in found] == ["good", "chance", "opposite", "same"]
    assert np.isnan(found[-1][1:7]).all() and found[-1].needed == np.inf
    assert found[:3] == agreements(drawn(4, 0.1), resamples=50)


def test_where_a_score_ranks_nothing_it_counts_as_nothing():
    """Else one that is right in the few groups where it varies, and silent in the others, would come out on top."""
    groups = drawn(4, 0.0)
    rare = [group.scores["good"] if i == 0 else np.full(7, 9.0) for i, group in enumerate(groups)]
    found = agreements(
        [Group(g.gains, {"rare": r, **g.scores}) for g, r in zip(groups, rare, strict=True)], resamples=50
    )
    taus = {one.score: one.tau for one in found}
    assert taus["rare"] == pytest.approx(1 / 4) and taus["good"] == 1


def test_a_group_without_differences_in_gain_counts_for_no_score():
    groups = drawn(3, 1.0)
    still = Group(np.zeros(7), groups[0].scores)
    for one, other in zip(agreements([*groups, still], resamples=20), agreements(groups, resamples=20), strict=True):
        assert (one.score, one.tau) == (other.score, pytest.approx(other.tau))
