"""Task2Vec against gradients one by one, and values by hand."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.transferability.sets import draw, near
from tl_jax.transferability import task2vec, task2vec_distance
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def linear(params, x):
    return x @ params["kernel"] + params["bias"][None]


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))  # no forward mode


def deep(params, x):
    return doubled(jnp.tanh(linear(params["one"], x))) @ params["two"]


def weights(d, k, seed=0):
    return {
        "kernel": jnp.asarray(draw(d, k, seed), jnp.float32),
        "bias": jnp.asarray(draw(1, k, seed + 1)[0], jnp.float32),
    }


def literal(x, params):
    """Return the diagonal for the linear model in float64: E over x and y of (x_d (1[y = k] - p_k))^2."""
    kernel, bias = np.asarray(params["kernel"], np.float64), np.asarray(params["bias"], np.float64)
    of_kernel, of_bias = np.zeros(kernel.shape), np.zeros(bias.shape)
    for row in x:
        p = np.exp(row @ kernel + bias)
        p /= p.sum()
        for y in range(len(p)):
            g = (np.arange(len(p)) == y) - p
            of_kernel += p[y] * np.outer(row, g) ** 2 / len(x)
            of_bias += p[y] * g**2 / len(x)
    return of_bias, of_kernel


@pytest.mark.parametrize("n,d,k", [(30, 4, 3), (1, 2, 2), (7, 20, 5)])
@pytest.mark.parametrize("held", [2**26, 100])  # chunks, of which the last is not full
def test_it_is_the_diagonal_of_the_fisher_information(n, d, k, held, monkeypatch):
    monkeypatch.setattr(importlib.import_module("tl_jax.transferability.task2vec"), "MAX_GRADIENTS", held)
    x, params = draw(n, d), weights(d, k)
    of_bias, of_kernel = literal(x, params)
    every = task2vec(linear, params, x.astype(np.float32), per_filter=False)
    np.testing.assert_allclose(every, np.concatenate([of_bias, of_kernel.ravel()]), rtol=1e-5, atol=1e-9)
    filters = task2vec(linear, params, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(filters, np.concatenate([of_bias, of_kernel.mean(0)]), rtol=1e-5, atol=1e-9)


def test_by_hand():
    # No weights: p = 1 / 2, the gradient of either label is x / 2 or -x / 2, and x^2 is 4 and 16.
    embedding = task2vec(lambda w, x: x * w[None], jnp.zeros(2), jnp.array([[2.0, 2.0], [4.0, 4.0]]))
    np.testing.assert_allclose(embedding, [2.5, 2.5], rtol=1e-6)


def test_deep_networks_layers_without_forward_mode_and_inputs_of_several_parts():
    params = {"one": weights(5, 6), "two": jnp.asarray(draw(6, 3, 2), jnp.float32), "scale": jnp.float32(0.5)}

    def apply(params, inputs):
        return deep(params, inputs["a"] + inputs["b"]) * params["scale"]

    def log_p(params, row, y):
        return jax.nn.log_softmax(apply(params, {"a": row[None], "b": 0 * row[None]}))[0, y]

    x = draw(9, 5).astype(np.float32)
    embedding = task2vec(apply, params, {"a": x / 2, "b": x / 2}, per_filter=False)
    expected = [np.zeros(leaf.shape) for leaf in jax.tree.leaves(params)]
    for row in x:
        p = jax.nn.softmax(apply(params, {"a": row[None], "b": 0 * row[None]}))[0]
        for y in range(3):
            g = jax.grad(log_p)(params, row, y)
            expected = [e + p[y] * np.asarray(v) ** 2 / 9 for e, v in zip(expected, jax.tree.leaves(g), strict=True)]
    np.testing.assert_allclose(embedding, np.concatenate([e.ravel() for e in expected]), rtol=1e-4, atol=1e-8)
    assert task2vec(apply, params, {"a": x, "b": x}).shape == (6 + 6 + 1 + 3,)


def test_drawn_labels_come_to_the_same():
    x, params = draw(20, 3).astype(np.float32), weights(3, 4)
    exact, key = task2vec(linear, params, x), jax.random.key(0)
    drawn = task2vec(linear, params, x, key, draws=2000)
    np.testing.assert_allclose(drawn, exact, rtol=0.1)
    np.testing.assert_array_equal(task2vec(linear, params, x, key, draws=3), task2vec(linear, params, x, key, draws=3))


def literal_distance(a, b):
    u, v = a / (a + b), b / (a + b)
    return 1 - u @ v / np.sqrt((u @ u) * (v @ v))


def test_distance():
    a, b = np.abs(draw(2, 30))
    value = task2vec_distance(a, jnp.asarray(b))
    assert type(value) is float and value == near(literal_distance(a, b))
    assert task2vec_distance(b, a) == near(value)
    assert task2vec_distance(a, a) == pytest.approx(0, abs=1e-12)
    # By hand: quotients (1/2, 3/4) and (1/2, 1/4).
    expected = 1 - (1 / 4 + 3 / 16) / np.sqrt((1 / 4 + 9 / 16) * (1 / 4 + 1 / 16))
    assert task2vec_distance([2, 3], [2, 1]) == near(expected)
    assert task2vec_distance([2, 3, 0], [2, 1, 0]) == near(expected)
    assert task2vec_distance([1, 0], [0, 1]) == 1.0
    scale = np.abs(draw(1, 30, 1)[0]) * 1e6
    assert task2vec_distance(a * scale, b * scale) == near(value)


@pytest.mark.parametrize(
    "inputs,how,message",
    [
        (np.zeros((0, 3)), {}, r"task2vec: inputs have N of \[0\]"),
        ({"a": np.zeros((2, 3)), "b": np.zeros((3, 3))}, {}, r"inputs have N of \[2, 3\]"),
        (np.zeros((2, 3)), {"draws": 2}, "draws=2: must be 0, for all labels, or positive with a key; pass key"),
        (np.full((2, 3), np.nan), {}, "Fisher information: values are not finite"),
    ],
)
def test_what_has_no_embedding_is_refused(inputs, how, message):
    with pytest.raises(UserError, match=message):
        task2vec(linear, weights(3, 2), inputs, **how)


def test_what_are_no_logits_is_refused():
    with pytest.raises(UserError, match=r"apply: returned \(4,\); it must return logits \(N, K\)"):
        task2vec(lambda p, x: x.sum(1) * p, jnp.ones(()), draw(4, 3))


@pytest.mark.parametrize(
    "e1,e2,message",
    [
        ([1, 2], [1, 2, 3], r"embeddings \(2,\) and \(3,\) do not match"),
        ([1, -2], [1, 2], "e1: not a task2vec embedding"),
        ([1, 2], [0, 0], "e2: not a task2vec embedding"),
        ([1, 2], [np.nan, 0], "entries of e2: values are not finite"),
        ([1, 2], [1, 2j], "entries of e2: must be real numbers, not complex128"),
    ],
)
def test_what_is_no_embedding_is_refused(e1, e2, message):
    with pytest.raises(UserError, match=message):
        task2vec_distance(e1, e2)
