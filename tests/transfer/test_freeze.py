"""Freezing: which leaves, which BatchNorm layers, and no backward work for the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tl_jax import models
from tl_jax.transfer import freeze
from tl_jax.transfer.optimizer import OptimSpec, RateSpec, learning_rates, make_optimizer
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
HEAD = freeze.RECIPES["head"]
RATE = jnp.float32(0.1)


@pytest.fixture(scope="module")
def net():
    model = models.create("resnet8", 3)
    return model, model.init(jax.random.key(0), jnp.ones((1, 16, 16, 3)))


def test_head_recipe_trains_the_head_only(net):
    mask = tree.flatten(freeze.trainable(net[1]["params"], HEAD))
    assert {path for path, trains in mask.items() if trains} == {"head/kernel", "head/bias"}


def test_rules_that_freeze_everything_are_refused(net):
    with pytest.raises(UserError, match="freeze every leaf"):
        freeze.trainable(net[1]["params"], ((".*", "frozen"),))


@pytest.mark.parametrize("rules", [[("head/.*",)], [("(", "train")], [("a", 3)]])
def test_malformed_rules_are_refused(rules):
    with pytest.raises(UserError, match="freeze rule"):
        freeze.check_rules(rules)


@pytest.mark.slow
def test_frozen_leaves_have_zero_gradients_and_no_backward_flops(net):
    model, v = net
    x = jnp.ones((4, 16, 16, 3))

    def flops(rules):
        mask = freeze.trainable(v["params"], rules)

        def loss(params):
            params = freeze.stop_frozen(params, mask)
            out, _ = model.apply({**v, "params": params}, x, train=False)
            return (out**2).sum()

        grads = jax.grad(loss)(v["params"])
        compiled = jax.jit(lambda p: freeze.trained_leaves(jax.grad(loss)(p), mask)).lower(v["params"]).compile()
        return grads, compiled.cost_analysis()["flops"]

    forward = jax.jit(lambda p: model.apply({**v, "params": p}, x)[0]).lower(v["params"]).compile()
    grads, head_flops = flops(HEAD)
    _, all_flops = flops(freeze.RECIPES["all"])
    frozen = {p: g for p, g in tree.flatten(grads).items() if not p.startswith("head/")}
    assert all(not np.any(g) for g in frozen.values())
    assert np.any(grads["head"]["kernel"])
    assert head_flops < 1.05 * forward.cost_analysis()["flops"]
    assert all_flops > 2 * head_flops


def test_optimizer_state_holds_trained_leaves_only(net):
    params = net[1]["params"]
    state = make_optimizer(OptimSpec("adam"), HEAD).init(params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * tree.count(params["head"])


@pytest.mark.parametrize("mode,expected", [("auto", 1), ("frozen", 2), ("train", 0)])
def test_batch_norm_follows_its_own_layer(mode, expected):
    mask = {"a": {"bn": {"scale": False}}, "b": {"bn": {"scale": True}}, "head": {"kernel": True}}
    stats = {"a": {"bn": {"mean": 0}}, "b": {"bn": {"mean": 0}}}
    still = freeze.frozen_batch_norms(mask, stats, mode)
    assert len(still) == expected
    assert mode != "auto" or still == {"a/bn"}


@pytest.mark.slow
def test_running_statistics_hold_still_where_named_and_move_elsewhere(net):
    model, v = net
    x = jax.random.normal(jax.random.key(1), (8, 16, 16, 3)) * 3 + 1
    still = frozenset({"stem/bn"})
    with freeze.use_running_statistics(still):
        (_, end), new = model.apply(v, x, train=True, mutable=["batch_stats"])
    before, after = tree.flatten(v["batch_stats"]), tree.flatten(new["batch_stats"])
    moved = {p.rpartition("/")[0] for p in before if np.any(np.asarray(before[p]) != np.asarray(after[p]))}
    assert "stem/bn" not in moved and "stage1/block1/bn1" in moved
    np.testing.assert_allclose(end["stem"], model.apply(v, x)[1]["stem"], rtol=1e-6)


def test_decay_and_clipping_touch_trained_leaves_only():
    params = {"trunk": {"kernel": jnp.full((2, 2), 5.0)}, "head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    grads = jax.tree.map(jnp.ones_like, params)
    grads["trunk"]["kernel"] = jnp.full((2, 2), 100.0)  # as if a frozen leaf had a gradient after all
    spec = OptimSpec("sgd", weight_decay=0.5, momentum=0.0, clip_norm=1.0)
    tx = make_optimizer(spec, HEAD)
    updates, _ = tx.update(grads, tx.init(params), params, rate=RATE)
    assert not np.any(updates["trunk"]["kernel"])
    norm = 6**0.5  # of the six trained ones
    np.testing.assert_allclose(updates["head"]["bias"], -0.1 / norm, rtol=1e-6)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1 * (1 / norm + 0.5), rtol=1e-6)


def test_adam_equals_optax_on_the_trained_leaves(net):
    params = net[1]["params"]
    grads = jax.tree.map(lambda p: jnp.sin(p + 1), params)
    tx, peer = make_optimizer(OptimSpec("adam"), HEAD), optax.adam(0.1)
    updates, _ = tx.update(grads, tx.init(params), params, rate=RATE)
    expected, _ = peer.update(grads["head"], peer.init(params["head"]))
    np.testing.assert_allclose(updates["head"]["kernel"], expected["kernel"], rtol=1e-6)


def test_weight_decay_shrinks_weights_when_gradients_are_zero():
    params = {"head": {"kernel": jnp.ones((2, 2))}}
    for name in ("sgd", "adam"):
        tx = make_optimizer(OptimSpec(name, weight_decay=0.01), freeze.RECIPES["all"])
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, rate=RATE)
        np.testing.assert_allclose(updates["head"]["kernel"], -0.1 * 0.01, rtol=1e-5)


def test_cosine_with_warm_up():
    rates = learning_rates(RateSpec(2.0, 100, schedule="cosine", warmup=0.1))
    np.testing.assert_allclose(rates[[0, 5, 10, 55]], [0.2, 1.2, 2.0, 1.0], atol=1e-6)
    rest = optax.cosine_decay_schedule(2.0, 90)
    np.testing.assert_allclose(rates[10:], [rest(i) for i in range(90)], atol=1e-6)
    assert learning_rates(RateSpec(2.0, 1, warmup=1.0)).tolist() == [2.0]


def test_linear_and_constant_rates():
    peer = optax.warmup_constant_schedule(0.0, 1.0, 4)
    rates = learning_rates(RateSpec(1.0, 20, warmup=0.2))
    np.testing.assert_allclose(rates, [peer(i + 1) for i in range(20)], rtol=1e-6)
    falling = learning_rates(RateSpec(1.0, 10, schedule="linear"))
    np.testing.assert_allclose(falling, [optax.linear_schedule(1.0, 0.0, 10)(i) for i in range(10)], rtol=1e-6)
