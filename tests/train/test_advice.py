"""What is said of learning curves."""

import numpy as np
import pytest

from tl_jax.train.advice import advise, advise_norms, advise_probe, norm_shift


def rows(train_loss, train_accuracy, held_loss=(), held_accuracy=()):
    train = [{"split": "train", "loss": a, "accuracy": b} for a, b in zip(train_loss, train_accuracy, strict=True)]
    held = [{"split": "validation", "loss": a, "accuracy": b} for a, b in zip(held_loss, held_accuracy, strict=True)]
    return [*train, *held]


FLAT = np.full(20, 0.3)


@pytest.mark.parametrize("accuracy,count,says", [(0.86, 400, True), (0.98, 50, False)])  # the latter by one example
def test_what_was_learned_by_heart(accuracy, count, says):
    found = advise(rows(FLAT, np.linspace(0.5, 1.0, 20), [0.5, 0.5], [0.8, accuracy]), "accuracy", count)
    assert ([text for text in found if "overfits" in text] != []) is says


def test_a_run_that_was_too_short():
    falling = rows(np.geomspace(2.0, 0.2, 20), np.linspace(0.2, 0.8, 20), [2.0, 1.0, 0.5], [0.2, 0.5, 0.7])
    (text,) = advise(falling, "accuracy", 100)
    assert "still fell" in text and "more epochs" in text
    worse = rows(np.geomspace(2.0, 0.2, 20), np.linspace(0.2, 0.8, 20), [0.5, 0.4, 0.45], [0.5, 0.6, 0.6])
    assert advise(worse, "accuracy", 100) == []  # validation has had enough


def test_a_run_that_went_on_too_long():
    text = " ".join(advise(rows(FLAT, FLAT, [0.5, 0.4, 0.6, 0.8], [0.6, 0.8, 0.7, 0.6]), "accuracy", 100))
    assert "best (0.8000) at evaluation 2 of 4" in text and "config.eval_checkpoint=best" in text


@pytest.mark.parametrize(
    "curves",
    [
        [],
        rows(FLAT, np.full(20, 0.8), [0.5, 0.4, 0.4, 0.4], [0.7, 0.8, 0.8, 0.8]),
        [{"split": "train", "loss": -1.0}] * 20,  # of a kind without accuracy
        [{"split": "train", "loss": 1.0 - i / 20, "episode_return": 500.0} for i in range(20)],  # PPO's loss
    ],
)
def test_nothing_is_said_of_curves_as_they_should_be(curves):
    assert advise(curves, "accuracy", 100) == []


def test_the_shift_of_statistics_is_that_of_means_and_spreads():
    start = {"bn": {"mean": np.zeros(4), "var": np.full(4, 3.999)}, "other": {"count": np.ones(4)}}
    moved = {"bn": {"mean": np.full(4, 2.0), "var": np.full(4, 15.999)}, "other": {"count": np.zeros(4)}}
    assert norm_shift(start, moved) == pytest.approx(1.0 + 1.0)  # one deviation, and twice the deviation
    assert norm_shift(start, start) == norm_shift({}, {}) == 0.0


def test_statistics_of_few_examples_that_moved_are_named():
    (text,) = advise_norms(0.3, 100)
    assert "shifted by 0.30" in text and "freeze.batch_stats=frozen" in text
    assert advise_norms(0.3, 50_000) == advise_norms(0.0, 100) == []


@pytest.mark.parametrize(
    "after,examples,says", [(0.6, 400, True), (0.6, 20, False), (0.79, 4000, False), (0.9, 400, False)]
)
def test_training_that_lost_to_the_fitted_head(after, examples, says):
    start, end = rows([], [], [0.5], [0.8]), rows(FLAT, FLAT, [0.9, 0.9], [0.7, after])
    assert bool(advise_probe(start, end, "accuracy", examples)) == says
    assert advise_probe([], end, "accuracy", examples) == []


def test_the_checkpoint_that_was_tested_is_compared_with_the_head():
    start, end = rows([], [], [0.5], [0.8]), rows(FLAT, FLAT, [0.9, 0.9], [0.9, 0.5])
    assert advise_probe(start, end, "accuracy", 400, is_best=True) == []
    (text,) = advise_probe(start, end, "accuracy", 400, mixes=False)
    assert "to 0.500" in text and "wise_ft" not in text
