"""Stochastic depth: its rates, its expectation, its independence, and that nothing is there without it."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pretrained.fake import random_variables, write_keras_h5
from tl_jax import models, pretrained
from tl_jax.models.layers import DropPath, linear_drop_rates
from tl_jax.pretrained import network
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
TINY = ("resnet50_tiny", "resnet50v2_tiny", "mobilenet_v2_tiny", "efficientnet_lite0_tiny", "resnet8")


def program(model, train, **kwargs):
    """Return what is computed, as text."""
    more = {"mutable": ["batch_stats"]} if train else {}
    x = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    run = jax.jit(lambda v, x: model.apply(v, x, train=train, **more, **kwargs))
    return run.lower(network.variable_shapes(model), x).as_text()


def rates_of(model):
    """Return the rates of a model's DropPath layers in the order in which they are called."""
    found = []

    def see(call, args, kwargs, context):
        if isinstance(context.module, DropPath) and context.method_name == "__call__":
            found.append(context.module.rate)
        return call(*args, **kwargs)

    shapes = network.variable_shapes(model)
    with nn.intercept_methods(see):
        jax.eval_shape(lambda v, x: model.apply(v, x), shapes, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    return found


class Linear(nn.Module):
    """A residual block whose branch is linear, so that its expectation is its value in evaluation."""

    rate: float

    @nn.compact
    def __call__(self, x, train):
        return x + DropPath(self.rate)(nn.Dense(3, use_bias=False, name="branch")(x), train)


def test_rates_rise_linearly_to_the_last_block():
    rates = linear_drop_rates(0.2, (1, 3, 1))
    np.testing.assert_allclose(np.concatenate(rates), [0.04, 0.08, 0.12, 0.16, 0.2])
    assert [len(stage) for stage in rates] == [1, 3, 1] and rates[-1][-1] == 0.2
    assert linear_drop_rates(0.0, (2, 1)) == [(0.0, 0.0), (0.0,)]


@pytest.mark.parametrize("name,blocks", [("resnet50", 16), ("resnet18", 8), ("resnet50v2", 16), ("mobilenet_v2", 10)])
def test_every_residual_block_of_a_model_has_its_rate(name, blocks):
    rates = rates_of(models.create(name, 5, drop_path=0.3))
    np.testing.assert_allclose(rates, [0.3 * i / blocks for i in range(1, blocks + 1)])
    assert rates[-1] == 0.3


def test_a_first_block_with_a_shortcut_counts():
    # At this width the stem and the first stage have 8 channels both, so that even the first block is residual.
    assert rates_of(models.create("mobilenet_v2_tiny", 5, width=0.1, drop_path=0.5)) == [0.25, 0.5]
    assert rates_of(models.create("mobilenet_v2_tiny", 5, drop_path=0.5)) == [0.5]


def test_an_endpoint_leaves_the_rates_of_what_remains():
    whole = rates_of(models.create("resnet50_tiny", 5, drop_path=0.5))
    assert rates_of(models.create("resnet50_tiny", 0, drop_path=0.5, endpoint="stage2")) == whole[:3]


def test_the_expectation_is_the_evaluation():
    block, x = Linear(0.3), jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    v = block.init(jax.random.key(1), x, False)
    draw = jax.jit(jax.vmap(lambda key: block.apply(v, x, True, rngs={"dropout": key})))
    draws = draw(jax.random.split(jax.random.key(2), 4000))
    expected = block.apply(v, x, False)
    # Five standard errors of the mean of x * kept / 0.7, of variance x^2 * 0.3 / 0.7.
    bound = 5 * np.abs(expected - x) * np.sqrt(0.3 / 0.7 / 4000) + 1e-4
    assert np.all(np.abs(np.asarray(draws).mean(0) - expected) < bound)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_examples_are_dropped_whole_and_independently(dtype):
    x = jnp.ones((4096, 2, 2, 3), dtype)
    out = DropPath(0.25).apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    assert out.dtype == dtype
    out = np.asarray(out, np.float32).reshape(4096, -1)
    assert np.all(out == out[:, :1])  # the whole branch or nothing of it
    assert np.all((out == 0) | (np.abs(out - 1 / 0.75) < 0.01))
    kept = out[:, 0] > 0
    assert abs(kept.mean() - 0.75) < 5 * (0.25 * 0.75 / 4096) ** 0.5
    assert abs(np.corrcoef(kept[1:], kept[:-1])[0, 1]) < 5 / 4096**0.5


def test_blocks_draw_apart():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [DropPath(0.5, name=name)(x, True)[:, 0, 0, 0] for name in ("a", "b")]

    a, b = (np.asarray(v) > 0 for v in Two().apply({}, jnp.ones((4096, 1, 1, 1)), rngs={"dropout": jax.random.key(0)}))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / 4096**0.5


@pytest.mark.parametrize("name", TINY)
def test_it_adds_nothing_to_evaluation_and_nothing_at_rate_zero(name):
    plain, dropping = models.create(name, 5), models.create(name, 5, drop_path=0.5)
    assert program(dropping, False) == program(plain, False)
    same = program(models.create(name, 5, drop_path=0.0), True)  # needs no key
    key = {"dropout": jax.random.key(0)}
    assert same == program(plain, True, rngs=key) != program(dropping, True, rngs=key)
    assert "threefry" not in same and "rng" not in same
    assert jax.tree.map(jnp.shape, network.variable_shapes(plain)) == jax.tree.map(
        jnp.shape, network.variable_shapes(dropping)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_models_train_with_it(name):
    model = models.create(name, 5, drop_path=0.5)
    v = random_variables(network.variable_shapes(model))
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)

    def loss(params, key):
        variables = {**v, "params": params}
        (logits, _), _ = model.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})
        return (logits**2).mean()

    # Nearly all the time goes into compiling, half of it into optimising what runs for milliseconds.
    compute = jax.jit(jax.value_and_grad(loss), compiler_options={"xla_backend_optimization_level": 0})
    values = [compute(v["params"], jax.random.key(seed)) for seed in (0, 0, 1, 2, 3)]
    assert values[0][0] == values[1][0] and len({float(value) for value, _ in values}) > 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values))


def test_a_dropped_branch_has_no_gradient():
    block, x = Linear(0.5), jnp.ones((1, 1, 1, 3))
    v = block.init(jax.random.key(0), x, False)
    seen = set()
    for key in jax.random.split(jax.random.key(1), 20):
        out, grad = jax.value_and_grad(lambda v, k=key: block.apply(v, x, True, rngs={"dropout": k}).sum())(v)
        dropped = bool(out == x.sum())
        np.testing.assert_allclose(grad["params"]["branch"]["kernel"], np.full((3, 3), 0.0 if dropped else 2.0))
        seen.add(dropped)
    assert seen == {True, False}


def test_options_and_loading_know_it(tmp_path, monkeypatch):
    assert models.model_options("resnet8", models.create("resnet8", 5, drop_path=0.1)) == {"drop_path": 0.1}
    monkeypatch.setenv("TL_JAX_CACHE", str(tmp_path / "cache"))
    write_keras_h5(tmp_path / "m.h5", random_variables(network.variable_shapes(models.create("resnet50_tiny", 6))))
    first = pretrained.load("resnet50_tiny", "keras", tmp_path / "m.h5")
    monkeypatch.setattr(
        importlib.import_module("tl_jax.pretrained.load"), "read_foreign", lambda *args: pytest.fail("converted again")
    )
    second = pretrained.load("resnet50_tiny", "keras", tmp_path / "m.h5", num_classes=3, drop_path=0.1)
    assert (first.model.drop_path, second.model.drop_path) == (0.0, 0.1) and second.spec.options["drop_path"] == 0.1
    trunk = {k: v for k, v in second.variables["params"].items() if k != "head"}
    jax.tree.map(np.testing.assert_array_equal, trunk, {k: first.variables["params"][k] for k in trunk})
    assert pretrained.random("resnet8", 3, "tl_jax", drop_path=0.2).model.drop_path == 0.2


@pytest.mark.parametrize("name", ["vgg16_tiny", "inception_v3_tiny"])
def test_models_without_residual_blocks_have_no_such_option(name):
    with pytest.raises(UserError, match=f"model '{name}' has no option 'drop_path'"):
        models.create(name, 5, drop_path=0.1)


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(UserError, match=r"drop_path.*(must be at least 0 and below 1|not a number from 0)"):
        network.variable_shapes(models.create("resnet8", 5, drop_path=rate))
