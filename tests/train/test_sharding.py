"""State split over the devices, and batches computed in parts: the results of one device and of a whole batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train import tiny
from tl_jax.train import evaluate, loop, sharding
from tl_jax.train.state import initial_state, stream_key
from tl_jax.train.step import make_optimizer_init, make_train_step
from tl_jax.transfer.freeze import RECIPES
from tl_jax.transfer.optimizer import OptimSpec
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
COUNT = jax.device_count()
WIDE = 1024


def close(one, other, tolerance=1e-5):
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=str(path))


def wide_task():
    """Return the tiny task with a layer large enough to be split, and no BatchNorm or dropout."""

    def init(key):
        one, two = jax.random.split(key)
        layers = {"trunk": (one, (10, WIDE)), "head": (two, (WIDE, 3))}
        params = {n: {"kernel": 0.1 * jax.random.normal(k, s), "bias": jnp.zeros(s[1])} for n, (k, s) in layers.items()}
        return {"params": params, "batch_stats": {}}

    return tiny.task().replace(init=jax.jit(init), loss=_loss, metrics=_metrics)


def _metrics(variables, batch):
    p = variables["params"]
    hidden = jnp.tanh(batch["inputs"] @ p["trunk"]["kernel"] + p["trunk"]["bias"][None])
    logits = hidden @ p["head"]["kernel"] + p["head"]["bias"][None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]) * batch["mask"]
    hits = (logits.argmax(-1) == batch["label"]) * batch["mask"]
    return {"loss": (losses.sum(), batch["mask"].sum()), "accuracy": (hits.sum(), batch["mask"].sum())}


def _loss(variables, batch, key):
    sums = _metrics(variables, batch)
    return sums["loss"][0] / sums["loss"][1], ({}, sums)


def trained(optim, sharded=False, steps=4, recipe="all"):
    """Return the state after some steps of the wide task, and the rows."""
    task, rules, rows = wide_task(), RECIPES[recipe], []
    state = initial_state(task, 0, sharded)
    state = state.replace(opt_state=make_optimizer_init(optim, rules, sharded)(state.params))
    step = make_train_step(task.loss, optim, rules, "auto", sharded)
    stream = sharding.replicate(stream_key(0, "train"))
    for i in range(steps):
        state, row = step(
            state, sharding.shard_batch(task.train_batch(i)), stream, sharding.replicate(np.float32(1e-2))
        )
        rows.append(row)
    return state, rows


@pytest.mark.skipif(COUNT < 2, reason="one device has nothing to split")
@pytest.mark.parametrize(
    "optim", [OptimSpec("adam", weight_decay=0.1, clip_norm=0.5), OptimSpec("sgd", ema=0.9, sam=0.1)]
)
@pytest.mark.parametrize("recipe", ["all", "head"])
def test_a_split_state_comes_to_the_same_numbers(optim, recipe):
    whole, split = trained(optim, recipe=recipe), trained(optim, sharded=True, recipe=recipe)
    close(whole, split)
    assert not sharding.is_sharded(whole[0]) and sharding.is_sharded(split[0].params)
    assert split[0].params["trunk"]["kernel"].sharding.spec == jax.P(None, "data")  # and stays split, step after step
    assert sharding.bytes_per_device(split[0]) < 1.05 / COUNT * sharding.bytes_per_device(whole[0])


def test_what_is_on_no_device_is_not_split():
    assert not sharding.is_sharded({"kernel": np.ones((4, 4))})
    assert (sharding.to_host({"kernel": np.ones(3), "bias": jnp.ones(3)})["kernel"] == 1).all()


def test_layouts_split_the_longest_axis_that_divides():
    def spec(*shape):
        return sharding.leaf_sharding(shape).spec

    assert spec(3, 3, 64, 128 * COUNT) == jax.P(None, None, None, "data")
    assert spec(1000 * COUNT, 7) == jax.P("data", None)
    assert spec(512 * COUNT) == jax.P("data")
    assert spec(64, 64) == jax.P(None, "data")  # of equals the later
    assert spec() == spec(7) == spec(COUNT * 8 + 1, 4097) == jax.P()  # small, or odd


def test_a_whole_run_on_a_split_state_is_that_on_a_replicated_one(tmp_path):
    task, plan, fit = wide_task(), tiny.plan(), functools.partial(loop.fit, pace=loop.Pace(3, 2), seed=0, verbose=False)
    runs = [fit(task, plan, workdir=tmp_path / str(split), sharded=split) for split in (False, True)]
    values = [evaluate.evaluate(task, run.state.eval_variables, "test").values for run in runs]
    close(values[0], values[1])
    close(jax.device_get(runs[0].state.variables), jax.device_get(runs[1].state.variables))
    for run in runs:
        run.checkpoints.close()
    # A checkpoint of the one is a start for the other: here the whole run's, read by a split state at its last step.
    again = fit(task, plan, workdir=tmp_path / "False", sharded=True)
    again.checkpoints.close()
    assert again.resumed_from == 12 and sharding.is_sharded(again.state.params)
    np.testing.assert_array_equal(again.state.params["trunk"]["kernel"], runs[0].state.params["trunk"]["kernel"])


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts, sharded):
    optim = OptimSpec("sgd", momentum=0.9)
    whole, cut = trained(optim), trained(dataclasses.replace(optim, accumulate=parts), sharded)
    close(whole, cut)
    assert cut[1][0]["sums"]["loss"][1] == 8  # of all examples, counted once


def test_parts_of_a_batch_count_by_what_is_not_masked():
    """Where padding is uneven, the mean over the batch is no mean of the parts' means."""
    task, optim = wide_task(), OptimSpec("sgd", momentum=0.0)
    batch = {**task.train_batch(0), "mask": np.asarray([1, 0, 1, 0, 1, 1, 1, 0], np.float32)}
    updated = []
    for parts in (1, 2):
        state = initial_state(task, 0)
        one = dataclasses.replace(optim, accumulate=parts)
        state = state.replace(opt_state=make_optimizer_init(one, RECIPES["all"])(state.params))
        step = make_train_step(task.loss, one, RECIPES["all"], "auto")
        key, rate = sharding.replicate(stream_key(0, "train")), sharding.replicate(np.float32(1.0))
        updated.append(step(state, sharding.shard_batch(batch), key, rate)[0].params)
    close(*updated)


def test_statistics_pass_through_all_parts():
    """BatchNorm sees one part after another: its mean after both is that of two steps of half a batch."""
    task, optim = tiny.task(), OptimSpec("sgd", momentum=0.0, accumulate=2)
    state = initial_state(task, 0)
    state = state.replace(opt_state=make_optimizer_init(optim, RECIPES["all"])(state.params))
    batch, key = task.train_batch(0), sharding.replicate(stream_key(0, "train"))
    kernel, bias = (np.asarray(state.params["trunk"][name]) for name in ("kernel", "bias"))
    means = [(batch["inputs"][i::2] @ kernel + bias).mean(0) for i in (0, 1)]
    expected = 0.9 * (0.1 * means[0]) + 0.1 * means[1]
    step = make_train_step(task.loss, optim, RECIPES["all"], "auto")
    new, _ = step(state, sharding.shard_batch(batch), key, sharding.replicate(np.float32(0.1)))
    np.testing.assert_allclose(new.batch_stats["bn"]["mean"], expected, rtol=1e-5, atol=1e-6)


def test_sizes_that_do_not_divide_are_refused_with_one_that_does():
    sharding.check_batch("batch_size", 8 * COUNT, 4)
    with pytest.raises(UserError, match=rf"batch_size={6 * COUNT} is not divisible .* optim.accumulate=4; use \d+"):
        sharding.check_batch("batch_size", 6 * COUNT, 4)
