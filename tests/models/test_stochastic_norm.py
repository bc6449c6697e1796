"""Stochastic normalisation: which statistics each channel sees, what is kept, and other contexts around it."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax import models
from tl_jax.models.ops.batch_norm import stochastic_norm
from tl_jax.transfer import freeze
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
X = np.random.default_rng(0).normal(2.0, 3.0, (6, 4, 4, 16)).astype(np.float32)


class Net(nn.Module):
    """Two BatchNorm layers; ``built`` says training or not when they are built, else when they are called."""

    built: bool = False

    @nn.compact
    def __call__(self, x, train):
        when = {"use_running_average": not train}
        for name in ("bn1", "bn2"):
            norm = nn.BatchNorm(momentum=0.9, name=name, **(when if self.built else {}))
            x = norm(x) if self.built else norm(x, not train) if name == "bn1" else norm(x, **when)
            x = x * 2 - 1
        return x


def variables_of(x=X):
    variables = Net().init(jax.random.key(0), x, train=True)
    noise = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(noise.uniform(0.5, 2.0, leaf.shape), jnp.float32), variables)


def run(net, variables, probability, seed=0, train=True, x=X, around=()):
    with contextlib.ExitStack() as stack:
        for context in around or (() if probability is None else (stochastic_norm(probability),)):
            stack.enter_context(context)
        rngs = {"stochastic_norm": jax.random.key(seed)}
        return net.apply(variables, x, train=train, mutable=["batch_stats"], rngs=rngs)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("built", [False, True])
def test_probability_0_is_training_and_1_the_outputs_of_evaluation(built):
    net, variables = Net(built), variables_of()
    plain, updated = run(net, variables, None)
    still, kept = run(net, variables, None, train=False)
    assert np.abs(plain - still).max() > 0.1
    same(kept["batch_stats"], variables["batch_stats"])
    for probability, expected in [(0, plain), (1.0, still)]:
        out, new = run(net, variables, probability)
        np.testing.assert_array_equal(out, expected)
        same(new["batch_stats"]["bn1"], updated["batch_stats"]["bn1"])  # from the batch, whatever is drawn


def one_layer(probability, seed, axis=-1):
    """Return outputs of one layer, and those with the batch's and the running statistics worked by hand."""
    net, move = nn.BatchNorm(axis=axis), lambda values: np.moveaxis(values, -1, axis)
    variables = {
        "params": {"scale": np.linspace(1, 2, 16, dtype=np.float32), "bias": np.linspace(-1, 1, 16, dtype=np.float32)},
        "batch_stats": {"mean": np.full(16, 0.5, np.float32), "var": np.linspace(0.1, 4, 16, dtype=np.float32)},
    }
    p, s = variables["params"], variables["batch_stats"]
    batch = (X - X.mean((0, 1, 2))) / np.sqrt(X.var((0, 1, 2)) + 1e-5) * p["scale"] + p["bias"]
    running = (X - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]
    rngs = {"stochastic_norm": jax.random.key(seed)}
    with stochastic_norm(probability):
        out, _ = net.apply(variables, move(X), use_running_average=False, mutable=["batch_stats"], rngs=rngs)
    return np.moveaxis(np.asarray(out), axis, -1), batch, running


@pytest.mark.parametrize("axis", [-1, 1])
def test_each_channel_is_wholly_one_or_the_other(axis):
    out, batch, running = one_layer(0.5, 0, axis)
    close = {"rtol": 1e-4, "atol": 1e-4}
    is_running = np.array([np.allclose(out[..., c], running[..., c], **close) for c in range(16)])
    is_batch = np.array([np.allclose(out[..., c], batch[..., c], **close) for c in range(16)])
    assert np.all(is_running ^ is_batch)
    assert 0 < is_running.sum() < 16


def test_channels_are_drawn_anew_with_the_probability():
    drawn = []
    for seed in range(40):
        out, batch, running = one_layer(0.25, seed)
        drawn.append(np.abs(out - running).max((0, 1, 2)) < np.abs(out - batch).max((0, 1, 2)))
    drawn = np.array(drawn)
    assert abs(drawn.mean() - 0.25) < 0.07  # 640 draws: four standard deviations
    assert np.all(drawn.any(0)) and not np.any(drawn.all(0))


def test_layers_draw_on_their_own():
    """Two layers with the same statistics and inputs must not choose the same channels."""

    class Twins(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [nn.BatchNorm(use_running_average=False, name=name)(x) for name in ("a", "b")]

    stats = {"mean": jnp.zeros(16), "var": jnp.ones(16)}
    params = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
    variables = {"params": {"a": params, "b": params}, "batch_stats": {"a": stats, "b": stats}}
    with stochastic_norm(0.5):
        (a, b), _ = Twins().apply(variables, X, mutable=["batch_stats"], rngs={"stochastic_norm": jax.random.key(0)})
    differ = np.any(np.asarray(a) != np.asarray(b), (0, 1, 2))
    assert 0 < differ.sum() < 16


def test_evaluation_is_untouched_and_needs_no_stream():
    variables = variables_of()
    expected = Net().apply(variables, X, train=False)
    with stochastic_norm(0.5):
        np.testing.assert_array_equal(Net().apply(variables, X, train=False), expected)
        same(Net().init(jax.random.key(0), X, train=True), Net().init({"params": jax.random.key(0)}, X, train=False))
        with pytest.raises(Exception, match="stochastic_norm"):
            Net().apply(variables, X, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("stochastic_first", [False, True])
def test_layers_held_still_stay_still_in_either_nesting(built, stochastic_first):
    net, variables = Net(built), variables_of()
    around = [freeze.use_running_statistics(frozenset({"bn1"})), stochastic_norm(0.5)]
    out, new = run(net, variables, None, around=around[::-1] if stochastic_first else around)
    same(new["batch_stats"]["bn1"], variables["batch_stats"]["bn1"])
    assert np.any(new["batch_stats"]["bn2"]["mean"] != variables["batch_stats"]["bn2"]["mean"])
    held, _ = run(net, variables, None, around=[freeze.use_running_statistics(frozenset({"bn1"}))])
    both, _ = run(net, variables, None, around=[freeze.use_running_statistics(frozenset({"bn1", "bn2"}))])
    channels = np.array([[np.allclose(out[..., c], e[..., c], atol=1e-4) for c in range(16)] for e in (held, both)])
    assert np.all(channels[0] ^ channels[1]) and channels[0].any() and channels[1].any()  # bn2 alone is drawn


def test_gradients_treat_running_statistics_as_constants():
    net, variables = nn.BatchNorm(use_running_average=False), {"batch_stats": {"mean": 2 * jnp.ones(16)}}
    variables["batch_stats"]["var"] = 4 * jnp.ones(16)
    variables["params"] = {"scale": 3 * jnp.ones(16), "bias": jnp.zeros(16)}

    @jax.jit
    def slope(x):
        def total(x):
            rngs = {"stochastic_norm": jax.random.key(0)}
            return net.apply(variables, x, mutable=["batch_stats"], rngs=rngs)[0].sum()

        with stochastic_norm(1.0):
            return jax.grad(total)(x)

    np.testing.assert_allclose(slope(X), 3 / 2, rtol=1e-4)  # scale / sqrt(var); through the batch's it would be 0
    assert np.all(np.isfinite(slope(np.ones_like(X))))


def test_a_model_of_this_package_runs_under_jit():
    model = models.create("resnet8", 3, dtype=jnp.bfloat16)
    x = jnp.asarray(X[..., :3])
    variables = jax.jit(model.init)(jax.random.key(0), x)

    @jax.jit
    def step(seed):
        with stochastic_norm(0.5):
            rngs = {"stochastic_norm": jax.random.key(seed)}
            return model.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)

    (first, end), new = step(0)
    assert end["stem"].dtype == jnp.bfloat16
    assert jax.tree.structure(new["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    np.testing.assert_array_equal(first, step(0)[0][0])
    assert np.any(first != step(1)[0][0])


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_probabilities_outside_0_to_1_are_refused(probability):
    with pytest.raises(UserError, match="out of range"), stochastic_norm(probability):
        pass
