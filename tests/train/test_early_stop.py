"""Early stopping counts evaluations since the best, also across a stop and a resumption."""

import pytest

from tests.train import tiny
from tl_jax.train import loop
from tl_jax.train.loop import is_exhausted
from tl_jax.train.state import digest

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    "scores,patience,expected",
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.4], 1, True),
        ([0.5, 0.5], 1, True),  # equal is not better
        ([0.5, 0.6, 0.55, 0.58], 2, True),
        ([0.5, 0.6, 0.55, 0.61], 2, False),
        ([0.9, 0.1, 0.1], 0, False),  # off
    ],
)
def test_patience(scores, patience, expected):
    assert is_exhausted(scores, patience) is expected


def fit(folder, patience=2, task=None):
    fitted = loop.fit(task or tiny.task(), plan(), loop.Pace(2, 5, patience), 0, folder, verbose=False)
    fitted.checkpoints.close()
    return fitted


def plan():
    """The tiny plan with a second phase that is too fast to improve."""
    head, both = tiny.plan(first=6, second=60)
    return head, both._replace(rate=both.rate._replace(lr=30.0))


def test_a_run_that_no_longer_improves_ends_and_stays_ended(tmp_path):
    first = fit(tmp_path / "a")
    step = int(first.state.step)
    assert 6 + 2 * 2 < step < 60 and (step - 6) % 2 == 0
    again = fit(tmp_path / "a", task=tiny.task().replace(train_batch=None))  # any step would fail
    assert int(again.state.step) == step and digest(again.state.variables) == digest(first.state.variables)


def test_a_resumed_run_stops_where_an_unbroken_one_does(tmp_path):
    whole = fit(tmp_path / "a")
    task = tiny.task()

    class Cut(Exception):
        pass

    def batch(step):
        if step == 9:
            raise Cut
        return task.train_batch(step)

    with pytest.raises(Cut):
        fit(tmp_path / "b", task=task.replace(train_batch=batch))
    resumed = fit(tmp_path / "b")
    assert resumed.resumed_from == 8
    assert int(resumed.state.step) == int(whole.state.step)
    assert digest(resumed.state.variables) == digest(whole.state.variables)


def test_patience_counts_in_the_last_phase_only(tmp_path):
    head, both = plan()
    slow = head._replace(stop=20, rate=head.rate._replace(steps=20, lr=0.0))
    both = both._replace(start=20, stop=24, rate=both.rate._replace(steps=4, lr=1e-4))
    fitted = loop.fit(tiny.task(), [slow, both], loop.Pace(2, 5, 3), 0, tmp_path, verbose=False)
    fitted.checkpoints.close()
    assert int(fitted.state.step) == 24
