"""Many steps in a call: the results of as many calls, and the same bits wherever the calls begin."""

import numpy as np
import pytest

from tests.train import tiny
from tl_jax.data.loader import Stream
from tl_jax.train import loop, step
from tl_jax.train.state import digest
from tl_jax.utils import tree

pytestmark = pytest.mark.fast


def fit(folder, save=12, log=12, plan=None, task=None):
    fitted = loop.fit(task or tiny.task(), plan or tiny.plan(), loop.Pace(save, log), 0, folder, verbose=False)
    fitted.checkpoints.close()
    return fitted.state


def test_results_are_those_of_single_steps(tmp_path, monkeypatch):
    many = fit(tmp_path / "many")
    monkeypatch.setattr(step, "MAX_SENT_BYTES", 0)
    single = fit(tmp_path / "single")
    for path, leaf in tree.flatten(single.variables).items():
        np.testing.assert_allclose(leaf, tree.flatten(many.variables)[path], rtol=1e-5, atol=1e-6)
    rows = [(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("many", "single")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("save", "log"), [(1, 1), (3, 2), (5, 4), (12, 5)])
def test_bits_do_not_depend_on_where_calls_begin(tmp_path, save, log):
    assert digest(fit(tmp_path / "a", save, log).variables) == digest(fit(tmp_path / "b").variables)


def test_one_call_takes_as_many_as_may_be(tmp_path, monkeypatch):
    counts = []
    advance = step.Stepper.advance

    def counted(self, state, first, stop):
        counts.append(stop - first)
        return advance(self, state, first, stop)

    monkeypatch.setattr(step.Stepper, "advance", counted)
    monkeypatch.setattr(step, "MAX_STEPS", 4)
    fit(tmp_path, save=5, log=100)
    assert counts == [4, 1, 1, 4, 2]  # phases end at 6 and 12, a checkpoint is due at 5 and 10


def test_rows_are_those_of_the_batches():
    task = tiny.task()
    stream = task.train_batch
    assert isinstance(stream, Stream)
    for at in (0, 5, 17):
        np.testing.assert_array_equal(stream(at)["inputs"], stream.inputs[stream.rows(at)])
        np.testing.assert_array_equal(stream(at)["label"], stream.labels[stream.rows(at)])
