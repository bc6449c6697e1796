"""Rates by group and depth, running averages: against optax and against values worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tl_jax import models
from tl_jax.transfer import freeze
from tl_jax.transfer.freeze import FROZEN
from tl_jax.transfer.optimizer import OptimSpec, averaged_params, leaf_rates, make_optimizer
from tl_jax.utils import tree

pytestmark = pytest.mark.fast
PARAMS = {
    "stem": {"kernel": jnp.full((2, 2), 2.0)},
    "stage1": {"block1": {"conv1": {"kernel": jnp.full((2, 2), 3.0)}}},
    "stage2": {"bias": jnp.ones(2)},
    "head": {"kernel": jnp.ones((2, 2))},
}
PARTS = ("stem", "stage1", "stage2")
ALL = freeze.RECIPES["all"]


def test_rates_fall_with_the_distance_from_the_head():
    rates = leaf_rates(PARAMS, OptimSpec("sgd", layer_decay=0.5, stages=PARTS), ALL)
    expected = {"head/kernel": 1.0, "stage2/bias": 0.5, "stage1/block1/conv1/kernel": 0.25, "stem/kernel": 0.125}
    assert rates == expected


def test_what_lies_below_the_head_has_its_own_factor_and_adapters_there_have_not():
    params = {**PARAMS, "stage1": {"conv": {"kernel": jnp.ones((2, 2)), "lora_a": jnp.ones((2, 1))}}}
    rates = leaf_rates(params, OptimSpec("sgd", backbone_lr_scale=0.1, stages=PARTS), ALL)
    expected = {"head/kernel": 1.0, "stage2/bias": 0.1, "stage1/conv/kernel": 0.1, "stem/kernel": 0.1}
    assert rates == {**expected, "stage1/conv/lora_a": 1.0}
    assert set(leaf_rates(params, OptimSpec("sgd", stages=PARTS), ALL).values()) == {1.0}  # 0 stands for no factor


def test_groups_have_their_own_rates_and_frozen_leaves_none():
    rules = (("stem/.*", FROZEN), ("stage.*", "trunk"), (".*", "head"))
    spec = OptimSpec("sgd", momentum=0.0, lr_multipliers=(("trunk", 0.1),), layer_decay=0.5, stages=PARTS)
    assert set(leaf_rates(PARAMS, spec, rules)) == {"head/kernel", "stage2/bias", "stage1/block1/conv1/kernel"}
    tx = make_optimizer(spec, rules)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, PARAMS), tx.init(PARAMS), PARAMS, rate=jnp.float32(2.0))
    got = {path: float(leaf.ravel()[0]) for path, leaf in tree.flatten(updates).items()}
    assert got == pytest.approx(
        {"stem/kernel": 0.0, "stage1/block1/conv1/kernel": -0.05, "stage2/bias": -0.1, "head/kernel": -2.0}
    )


def test_a_leaf_with_half_the_rate_moves_as_optax_with_half_the_rate():
    """Moments and decoupled decay included: ten steps of AdamW."""
    spec = OptimSpec("adam", weight_decay=0.1, layer_decay=0.5, stages=PARTS)
    tx, peer = make_optimizer(spec, ALL), optax.adamw(0.5 * 0.25 * 0.01, weight_decay=0.1)
    params, mine = PARAMS, PARAMS["stem"]["kernel"]
    state, peers = tx.init(params), peer.init(mine)
    for i in range(10):
        grads = jax.tree.map(lambda p, i=i: jnp.sin(p + i), params)
        peer_updates, peers = peer.update(jnp.sin(mine + i), peers, mine)
        mine = mine + peer_updates
        updates, state = tx.update(grads, state, params, rate=jnp.float32(0.01))
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["stem"]["kernel"], mine, rtol=1e-6)
    assert not np.allclose(mine, 2.0)


def test_the_running_average_is_that_of_the_weights_after_each_step():
    rules = (("head/.*", "train"), (".*", FROZEN))
    tx = make_optimizer(OptimSpec("sgd", momentum=0.0, ema=0.5), rules)
    params, state = PARAMS, tx.init(PARAMS)
    average = value = 1.0
    for t in range(1, 5):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params, rate=jnp.float32(1.0))
        params = optax.apply_updates(params, updates)
        value -= 1.0
        keep = min(0.5, (1 + t) / (10 + t))
        average = keep * average + (1 - keep) * value
    tested = averaged_params(params, state)
    np.testing.assert_allclose(params["head"]["kernel"], value)
    np.testing.assert_allclose(tested["head"]["kernel"], average, rtol=1e-6)
    assert tested["stem"]["kernel"] is params["stem"]["kernel"]


def test_without_an_average_the_weights_themselves_are_tested():
    state = make_optimizer(OptimSpec("adam"), ALL).init(PARAMS)
    assert averaged_params(PARAMS, state) is PARAMS and averaged_params(PARAMS, ()) is PARAMS


@pytest.mark.parametrize("name", ["resnet50_tiny", "mobilenet_v2_tiny", "vgg16_tiny", "inception_v3_tiny"])
def test_recipes_train_what_their_names_say(name):
    model = models.create(name, 3, **({"fc": False} if name.startswith("vgg") else {}))
    side = 75 if name.startswith("inception") else 32
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, 3))))["params"]
    parts = model.stage_names()

    def trained(recipe, stages=1):
        mask = freeze.trainable(params, freeze.recipe_rules(recipe, parts, stages))
        return {path for path, trains in tree.flatten(mask).items() if trains}

    everything, head = set(tree.flatten(params)), {"head/kernel", "head/bias"}
    last = {path for path in everything if path.split("/")[0] in (*parts[-2:], "head")}
    assert trained("all") == everything and trained("head") == head
    assert trained("last_n_stages", 2) == last
    assert trained("last_n_stages", len(parts)) == everything
    assert trained("bias_only") == head | {path for path in everything if path.endswith("bias")}
    norms = trained("norm_only") - head
    assert {path.rpartition("/")[2] for path in norms} <= {"scale", "bias"}
    scales = {path for path in everything if path.endswith("scale")}
    assert scales <= norms and not any(path.rpartition("/")[0] + "/kernel" in everything for path in norms)
