"""A run that is told to stop saves where it is, and the next one ends as if nothing had been."""

import os
import signal

import pytest

from tests.train import tiny
from tests.train.test_loop import PACE, fit, rows
from tl_jax.train import loop, step
from tl_jax.train.preemption import defer_signals
from tl_jax.train.state import digest
from tl_jax.utils.errors import Preempted

pytestmark = pytest.mark.fast


@pytest.fixture
def told(monkeypatch):
    """Return what has a signal sent with the call that takes step ``at``, once."""

    def prepare(signum, at):
        sent = []

        def tells(self, state, first, stop):
            if first <= at < stop and not sent:
                sent.append(os.kill(os.getpid(), signum))
            return advance(self, state, first, stop)

        monkeypatch.setattr(step.Stepper, "advance", tells)

    advance = step.Stepper.advance
    return prepare


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder)


@pytest.mark.parametrize("signum, kind", [(signal.SIGTERM, Preempted), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("at", [1, 4, 5, 7, 9])
def test_a_run_told_to_stop_loses_nothing(whole, told, tmp_path, signum, kind, at):
    """Checkpoints come every third step, rows of metrics every second: most of these fall between."""
    told(signum, at)
    with pytest.raises(kind, match=r"stopped after step \d+; the state is saved"):
        loop.fit(tiny.task(), tiny.plan(), PACE, 0, tmp_path, verbose=False)
    resumed = fit(tmp_path)
    assert at <= resumed.resumed_from <= at + 2  # a call takes some steps at once
    assert digest(resumed.state.variables) == digest(whole[1].state.variables)
    assert rows(tmp_path, "train") == rows(whole[0], "train")  # also the row that the stop fell into
    assert rows(tmp_path, "validation") == rows(whole[0], "validation")


def test_stopped_twice_in_the_same_row(told, tmp_path, monkeypatch):
    pace = PACE._replace(log=6, save=6)
    monkeypatch.setattr(step, "MAX_STEPS", 2)  # of a call
    for at in (1, 2):
        told(signal.SIGTERM, at)
        with pytest.raises(Preempted):
            loop.fit(tiny.task(), tiny.plan(), pace, 0, tmp_path / "cut", verbose=False)
    for folder in ("cut", "one"):
        loop.fit(tiny.task(), tiny.plan(), pace, 0, tmp_path / folder, verbose=False).checkpoints.close()
    assert rows(tmp_path / "cut", "train") == rows(tmp_path / "one", "train")


def test_a_signal_at_the_very_end_is_not_lost():
    with pytest.raises(Preempted), defer_signals() as asked:
        assert asked() is None
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_second_ctrl_c_acts_at_once():
    with pytest.raises(KeyboardInterrupt), defer_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")
