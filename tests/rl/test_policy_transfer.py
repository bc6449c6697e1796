"""What travels from one policy to another, what stays new, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.rl import envs, policy_transfer, ppo
from tl_jax.transfer import optimizer
from tl_jax.transfer.freeze import RECIPES
from tl_jax.transfer.optimizer import OptimSpec, make_optimizer
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
CARTPOLE, ACROBOT, PENDULUM = (envs.make_env(name) for name in ("CartPole-v1", "Acrobot-v1", "Pendulum-v1"))


def drawn(world, seed, normalize=True, **options):
    policy = ppo.make_policy(world, **{"widths": (8, 8), **options})
    variables = ppo.init_variables(world, policy, 2, normalize, jax.random.key(seed))
    if normalize:
        variables["batch_stats"]["observations"]["mean"] += 1.0 + seed
    return policy, variables


def saved(path, world, seed=0, **options):
    policy, variables = drawn(world, seed, **options)
    facts = {"world": world.name, "spaces": world.spaces}
    policy_transfer.save(path, variables, {"widths": list(policy.widths)}, facts)
    return policy_transfer.load(path), variables


def changed(before, after):
    """Return the top parts of the leaves that differ."""
    old = tree.flatten({"params": before["params"], "observations": before["batch_stats"]["observations"]})
    new = tree.flatten({"params": after["params"], "observations": after["batch_stats"]["observations"]})
    assert old.keys() == new.keys()
    return {path for path in old if not np.array_equal(old[path], new[path])}


def test_what_is_saved_is_loaded(tmp_path):
    found, variables = saved(tmp_path / "a.safetensors", CARTPOLE)
    assert found.world == "CartPole-v1" and found.spaces == {"observation": [4], "actions": 2}
    assert found.options == {"widths": (8, 8)}
    flat = tree.flatten({"params": variables["params"]})
    for path, leaf in flat.items():
        np.testing.assert_array_equal(found.leaves[path], leaf)
    assert not any("carry" in path for path in found.leaves)


@pytest.mark.parametrize(
    ("take", "prefixes"),
    [
        (("trunk",), ("params/layer",)),
        (("policy",), ("params/head/policy/",)),
        (("value",), ("params/head/value/",)),
        (("normalizer",), ("observations/",)),
        (policy_transfer.DEFAULT_COMPONENTS, ("params/", "observations/")),
    ],
)
def test_what_is_named_travels_and_nothing_else(tmp_path, take, prefixes):
    found, theirs = saved(tmp_path / "a.safetensors", CARTPOLE)
    _, mine = drawn(CARTPOLE, 1)
    after, new = policy_transfer.load_components(mine, found, take, False, CARTPOLE.spaces)
    for path in changed(mine, after):
        assert path.startswith(prefixes)
    for path in changed(theirs, after):
        assert not path.startswith(prefixes)
    assert bool(new) == (take != policy_transfer.DEFAULT_COMPONENTS)


def test_surgery_draws_the_border_anew_and_takes_the_rest(tmp_path):
    found, theirs = saved(tmp_path / "a.safetensors", CARTPOLE)
    _, mine = drawn(ACROBOT, 1)
    with pytest.raises(UserError, match=r"CartPole-v1: its spaces .*\[4\].*\[6\].*init.allow_shape_mismatch=True"):
        policy_transfer.load_components(mine, found, policy_transfer.DEFAULT_COMPONENTS, False, ACROBOT.spaces)
    after, new = policy_transfer.load_components(mine, found, policy_transfer.DEFAULT_COMPONENTS, True, ACROBOT.spaces)
    assert set(new) == {
        "params/layer1/actor/kernel", "params/layer1/critic/kernel", "params/head/policy/kernel",
        "params/head/policy/bias", "batch_stats/observations/mean", "batch_stats/observations/var",
        "batch_stats/observations/count",
    }  # fmt: skip
    np.testing.assert_array_equal(
        after["params"]["layer2"]["actor"]["kernel"], theirs["params"]["layer2"]["actor"]["kernel"]
    )
    np.testing.assert_array_equal(
        after["params"]["layer1"]["actor"]["kernel"], mine["params"]["layer1"]["actor"]["kernel"]
    )


def test_choices_to_values_needs_surgery_for_the_deviations_too(tmp_path):
    found, _ = saved(tmp_path / "a.safetensors", CARTPOLE)
    _, mine = drawn(PENDULUM, 1)
    _, new = policy_transfer.load_components(mine, found, ("trunk", "policy"), True, PENDULUM.spaces)
    assert "params/head/log_std" in new and "params/layer2/actor/kernel" not in new


@pytest.mark.parametrize(
    ("options", "take", "message"),
    [
        (
            {"widths": (16, 8)},
            ("trunk",),
            r"differs at params/layer2/actor/kernel \(\(8, 8\), here \(16, 8\)\).*widths",
        ),
        ({"widths": (8, 8, 8)}, ("trunk",), r"differs at params/layer3/actor/bias \(missing there"),
        ({}, ("trunks",), "unknown component 'trunks'; .*trunk"),
    ],
)
def test_networks_that_differ_are_refused(tmp_path, options, take, message):
    found, _ = saved(tmp_path / "a.safetensors", CARTPOLE)
    _, mine = drawn(CARTPOLE, 1, **options)
    with pytest.raises(UserError, match=message):
        policy_transfer.load_components(mine, found, take, True, CARTPOLE.spaces)


def test_a_file_without_a_policy_is_refused():
    from tl_jax import pretrained

    path = pretrained.load("resnet8", source="tl_jax").path
    with pytest.raises(UserError, match="holds the network 'resnet8', not a policy"):
        policy_transfer.load(path)


@pytest.mark.parametrize("spec", [OptimSpec("adam"), OptimSpec("adam", clip_norm=0.5, ema=0.9), OptimSpec("sgd")])
def test_moments_come_out_of_an_optimizer_and_go_into_another(spec):
    params = {"layer1": {"kernel": jnp.ones((2, 3))}, "head": {"bias": jnp.ones(3)}}
    made = make_optimizer(spec, RECIPES["all"])
    gradient = jax.tree.map(lambda leaf: 0.1 * leaf, params)
    state = made.init(params)
    for _ in range(3):
        state = made.update(gradient, state, params, rate=1e-3)[1]
    found = optimizer.adam_moments(state)
    again = optimizer.set_adam_moments(made.init(params), found)
    if spec.name == "sgd":
        assert found == {} and jax.tree.all(jax.tree.map(np.array_equal, again, made.init(params)))
        return
    assert int(found["count"]) == 3 and found["mu"].keys() == params.keys()
    np.testing.assert_allclose(found["mu"]["head"]["bias"], 0.1 * (1 - 0.9**3), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, optimizer.adam_moments(again), found)
    head = make_optimizer(spec, RECIPES["head"])
    part = optimizer.adam_moments(optimizer.set_adam_moments(head.init(params), found))
    assert part["mu"].keys() == {"head"} and int(part["count"]) == 3


def test_optimizer_state_travels_with_all_of_the_network_or_not_at_all(tmp_path):
    _, theirs = drawn(CARTPOLE, 0)
    state = make_optimizer(OptimSpec("adam"), RECIPES["all"]).init(theirs["params"])
    facts = {"world": CARTPOLE.name, "spaces": CARTPOLE.spaces}
    policy_transfer.save(tmp_path / "a.safetensors", theirs, {"widths": [8, 8]}, facts, optimizer.adam_moments(state))
    found, (bare, _) = policy_transfer.load(tmp_path / "a.safetensors"), saved(tmp_path / "b.safetensors", CARTPOLE)
    _, mine = drawn(CARTPOLE, 1)
    everything = (*policy_transfer.DEFAULT_COMPONENTS, "optimizer")
    after, new = policy_transfer.load_components(mine, found, everything, False, CARTPOLE.spaces)
    assert not new and jax.tree.structure(after["moments"]["mu"]) == jax.tree.structure(theirs["params"])
    assert (
        "moments"
        not in policy_transfer.load_components(mine, found, policy_transfer.DEFAULT_COMPONENTS, False, CARTPOLE.spaces)[
            0
        ]
    )
    with pytest.raises(UserError, match="params/head/policy/bias, .* would be new; add trunk, policy and value"):
        policy_transfer.load_components(mine, found, ("trunk", "optimizer"), False, CARTPOLE.spaces)
    with pytest.raises(UserError, match="no optimizer state of head/policy/bias.*; export a run"):
        policy_transfer.load_components(mine, bare, everything, False, CARTPOLE.spaces)
