"""Training: frozen means frozen, resuming changes nothing, every example counts once."""

import json

import jax
import numpy as np
import pytest

from tests.train import tiny
from tl_jax.train import evaluate, loop, step
from tl_jax.train.checkpoint import Checkpoints
from tl_jax.train.state import digest, initial_state
from tl_jax.transfer import freeze
from tl_jax.transfer.freeze import RECIPES
from tl_jax.transfer.optimizer import OptimSpec, RateSpec
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
PACE = loop.Pace(save=3, log=2)


def fit(folder, plan=None, pace=PACE, **kwargs):
    fitted = loop.fit(tiny.task(**kwargs), plan or tiny.plan(), pace, 0, folder, verbose=False)
    fitted.checkpoints.close()
    return fitted


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder)


def rows(folder, split):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def test_it_learns(whole):
    before = evaluate.evaluate(tiny.task(), initial_state(tiny.task(), 0).variables, "test")
    after = evaluate.evaluate(tiny.task(), whole[1].state.variables, "test")
    assert after.examples == 33
    assert after.values["loss"] < before.values["loss"]


def test_frozen_leaves_and_statistics_keep_their_bits(tmp_path):
    (head, _) = tiny.plan(first=9)
    start = jax.device_get(initial_state(tiny.task(), 0))
    end = jax.device_get(fit(tmp_path, [head]).state)
    before, after = tree.flatten(start.variables), tree.flatten(end.variables)
    same = {p for p in before if before[p].tobytes() == after[p].tobytes()}
    assert same == {p for p in before if not p.startswith("params/head/")}
    slots = [leaf for leaf in jax.tree.leaves(end.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in slots) == 2 * tree.count(start.params["head"])


def test_negative_zero_survives_freezing(tmp_path):
    (head, _) = tiny.plan()
    task = tiny.task()

    def init(key):
        variables = tiny.functions()[0](key)
        variables["params"]["trunk"]["bias"] = -0.0 * variables["params"]["trunk"]["bias"]
        return variables

    fitted = loop.fit(task.replace(init=jax.jit(init)), [head], PACE, 0, tmp_path, verbose=False)
    fitted.checkpoints.close()
    assert np.signbit(fitted.state.params["trunk"]["bias"]).all()


def test_auto_moves_statistics_of_trained_layers(whole):
    start = initial_state(tiny.task(), 0)
    assert np.any(np.asarray(start.batch_stats["bn"]["mean"]) != np.asarray(whole[1].state.batch_stats["bn"]["mean"]))


@pytest.mark.parametrize("stop", [2, 3, 5, 6, 7, 9, 11])
def test_a_run_cut_short_ends_with_the_same_bits(whole, tmp_path, monkeypatch, stop):
    """Steps 3, 6 (the boundary of the phases), 9 and 12 have checkpoints; work since the last one is lost."""

    class Cut(Exception):
        pass

    def cuts(self, state, first, last):
        if first <= stop < last:
            raise Cut
        taken.extend(range(first, last))
        return advance(self, state, first, last)

    advance, taken = step.Stepper.advance, []
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(step.Stepper, "advance", cuts)
        loop.fit(tiny.task(), tiny.plan(), PACE, 0, tmp_path, verbose=False)
    resumed = fit(tmp_path)
    assert stop - 2 <= max(taken) < stop
    assert resumed.resumed_from == 3 * (stop // 3)
    assert digest(resumed.state.variables) == digest(whole[1].state.variables)
    assert rows(tmp_path, "train") == rows(whole[0], "train")
    assert rows(tmp_path, "validation") == rows(whole[0], "validation")


def test_a_finished_run_is_not_trained_again(whole, tmp_path):
    folder, first = whole
    task = tiny.task().replace(train_batch=None)  # any step would fail
    again = loop.fit(task, tiny.plan(), PACE, 0, folder, verbose=False)
    again.checkpoints.close()
    assert digest(again.state.variables) == digest(first.state.variables)


def test_checkpoints_keep_the_last_two_and_the_best(whole):
    folder, _ = whole
    kept = sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    validated = {row["step"]: row["accuracy"] for row in rows(folder, "validation")}
    best = max(validated, key=lambda step: (validated[step], step))
    assert set(kept) == {9, 12, best}
    checkpoints = Checkpoints(folder / "checkpoints", tiny.task())
    assert checkpoints.best() in kept and validated[checkpoints.best()] == validated[best]
    checkpoints.close()


def test_checkpoints_rest_but_for_better_ones_and_the_ends_of_phases(whole, tmp_path, monkeypatch):
    """With all the time in the world to wait for, only those that matter are written; training is the same."""
    saved, save = [], Checkpoints.save
    scores = iter([0.3, 0.2, 0.5, 0.4, 0.5, 0.1, 0.4, 0.6, 0.5, 0.3, 0.2, 0.1])  # after each of the twelve steps
    found = lambda *_, **__: evaluate.EvalResult({"accuracy": next(scores)}, 10, 0.0)  # noqa: E731
    monkeypatch.setattr(evaluate, "evaluate", found)
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, state, m: (saved.append(int(state.step)), save(self, state, m))
    )
    fitted = loop.fit(tiny.task(), tiny.plan(), loop.Pace(save=1, log=2, min_interval=1e9), 0, tmp_path, verbose=False)
    fitted.checkpoints.close()
    assert saved == [1, 3, 5, 6, 8, 12]  # better or as good, and 6 and 12, where phases end
    assert digest(fitted.state.variables) == digest(whole[1].state.variables)


def test_a_loss_that_is_not_finite_names_step_and_checkpoint(tmp_path):
    bad = tiny.data()
    bad.inputs[tiny.loader.train_indices(0, 45, 8, 4)[0]] = np.nan  # first met in step 5 (or earlier, see below)
    first = next(i for i in range(12) if np.isnan(tiny.task(train=bad).train_batch(i)["inputs"]).any()) + 1
    with pytest.raises(UserError, match=rf"step {first} .*: loss is nan") as error:
        fit(tmp_path, train=bad)
    expected = "no checkpoint" if first <= 3 else f"step {3 * ((first - 1) // 3)}"
    assert expected in str(error.value)


@pytest.mark.parametrize("validated", [True, False])
def test_weights_that_an_update_destroys_are_never_saved(tmp_path, validated):
    """The loss of the step itself is finite; what comes after it is not."""
    (head, _) = tiny.plan(first=1)
    wild = head._replace(optim=OptimSpec("sgd"), rate=RateSpec(3e38, 1))
    task = tiny.task()
    task = task if validated else task.replace(sizes={**task.sizes, "validation": 0})
    with pytest.raises(UserError, match="no checkpoint was written"):
        loop.fit(task, [wild], loop.Pace(1, 1), 0, tmp_path, verbose=False)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_the_seed_decides(tmp_path):
    a = fit(tmp_path / "a", seed=0)
    b = fit(tmp_path / "b", seed=1)  # another order of examples
    assert digest(a.state.variables) != digest(b.state.variables)


def test_every_example_counts_once_whatever_the_batch(whole):
    variables = whole[1].state.variables
    task = tiny.task()
    values, n, _, _ = evaluate.evaluate(task, variables, "test")
    by_one = task.replace(eval_batches=lambda part: tiny.loader.eval_batches(tiny.data(33, 2), 2))
    again, m, _, _ = evaluate.evaluate(by_one, variables, "test")
    assert n == m == 33
    assert values["accuracy"] == again["accuracy"]
    assert values["loss"] == pytest.approx(again["loss"], rel=1e-6)


def test_the_table_counts_what_trains(whole):
    assert whole[1].parameters["frozen"] == 0
    params = initial_state(tiny.task(), 0).params
    split = freeze.count_split(params, freeze.trainable(params, RECIPES["head"]))
    assert split == {"trainable": 8 * 3 + 3, "frozen": 10 * 8 + 8 + 2 * 8}
