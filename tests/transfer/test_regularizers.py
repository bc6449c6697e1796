"""Regularizers against values worked by hand and slow literal versions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from tl_jax.transfer import regularizers
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PARAMS = {
    "stem": {"kernel": jnp.array([1.0, 2.0]), "bias": jnp.array([3.0])},
    "head": {"kernel": jnp.array([2.0, 4.0])},
    "aux": {"conv": jnp.array([1.0]), "head": {"bias": jnp.array([6.0])}},
    "ahead": {"kernel": jnp.array([5.0])},
    "wider": jnp.array([1.0, 1.0]),
    "absent": jnp.array([3.0]),
}
SOURCE = {
    "stem": {"kernel": jnp.array([0.0, 4.0]), "bias": jnp.array([1.0])},
    "head": {"kernel": jnp.array([2.0, 4.0])},
    "aux": {"conv": jnp.array([4.0]), "head": {"bias": jnp.array([6.0])}},
    "ahead": {"kernel": jnp.array([4.0])},
    "wider": jnp.array([1.0]),
}


def masked(*still):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key not in still, PARAMS)


def test_l2_sp_by_hand():
    to_source, to_zero = jax.jit(lambda p: regularizers.l2_sp(p, SOURCE, masked()))(PARAMS)
    assert float(to_source) == 0.5 * (1 + 4 + 4 + 9 + 1)  # stem, aux/conv, ahead
    assert float(to_zero) == 0.5 * (4 + 16 + 36 + 2 + 9)  # both heads, wider, absent


def test_l2_sp_counts_trained_leaves_only():
    to_source, to_zero = regularizers.l2_sp(PARAMS, SOURCE, masked("stem", "wider"))
    assert (float(to_source), float(to_zero)) == (5.0, 32.5)
    grads = jax.grad(lambda p: sum(regularizers.l2_sp(p, SOURCE, masked("stem"))))(PARAMS)
    assert not np.any(grads["stem"]["kernel"])
    np.testing.assert_array_equal(grads["aux"]["conv"], [-3.0])  # w - w0
    np.testing.assert_array_equal(grads["head"]["kernel"], [2.0, 4.0])  # w


def test_feature_distance_equals_loops():
    maps = {"stage1": draw(3, 4, 2, 5), "pooled": draw(3, 6, seed=1)}
    source = {"stage1": draw(3, 4, 2, 5, seed=2), "pooled": draw(3, 6, seed=3)}
    weights = {"stage1": np.arange(5, dtype=np.float32), "pooled": np.ones(6, np.float32)}
    expected, plain = 0.0, 0.0
    for n in range(3):
        for j in range(5):
            square = ((maps["stage1"][n, :, :, j] - source["stage1"][n, :, :, j]) ** 2).sum() / 8
            expected, plain = expected + j * square / 3, plain + square / 3
        for j in range(6):
            square = (maps["pooled"][n, j] - source["pooled"][n, j]) ** 2
            expected, plain = expected + square / 3, plain + square / 3
    np.testing.assert_allclose(jax.jit(regularizers.feature_distance)(maps, source, weights), expected, rtol=1e-5)
    np.testing.assert_allclose(regularizers.feature_distance(maps, source), plain, rtol=1e-5)


def test_feature_distance_does_not_depend_on_the_size_of_pictures():
    small, source = draw(2, 3, 3, 4), draw(2, 3, 3, 4, seed=1)
    large, large_source = (x.repeat(2, 1).repeat(2, 2) for x in (small, source))
    expected = regularizers.feature_distance({"a": small}, {"a": source})
    np.testing.assert_allclose(regularizers.feature_distance({"a": large}, {"a": large_source}), expected, rtol=1e-5)


def test_feature_distance_moves_the_target_only():
    a, b = {"a": jnp.array(draw(2, 3))}, {"a": jnp.array(draw(2, 3, seed=1))}
    mine, theirs = jax.grad(regularizers.feature_distance, (0, 1))(a, b)
    np.testing.assert_allclose(mine["a"], a["a"] - b["a"], rtol=1e-5)  # 2 (a - b) / N with N = 2
    assert not np.any(theirs["a"])
    assert not np.any(jax.grad(regularizers.feature_distance)(a, a)["a"])


@pytest.mark.parametrize(
    "source,weights",
    [({"b": (2, 3)}, None), ({"a": (2, 4)}, None), ({"a": (2, 3), "b": (2, 3)}, None), ({"a": (2, 3)}, {"b": 1.0})],
)
def test_different_endpoints_are_refused(source, weights):
    with pytest.raises(UserError, match="endpoints: .* differ"):
        regularizers.feature_distance({"a": jnp.ones((2, 3))}, {k: jnp.ones(s) for k, s in source.items()}, weights)


def test_channel_attention_by_hand():
    weights = regularizers.channel_attention(jnp.log(jnp.array([1.0, 2.0, 5.0])))
    np.testing.assert_allclose(weights, [3 / 8, 6 / 8, 15 / 8], rtol=1e-6)
    np.testing.assert_allclose(regularizers.channel_attention(jnp.full(7, 1e4)), 1.0, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4, 4, 5), (3, 5)])
def test_first_order_drops_are_exact_for_a_linear_loss(shape):
    x, kernel = draw(*shape), draw(*shape[1:], seed=1)

    def losses(x):
        return (x * kernel[None]).reshape(len(x), -1).sum(1)

    gradients = jax.grad(lambda x: losses(x).sum())(jnp.array(x))
    expected = []
    for j in range(5):
        without = x.copy()
        without[..., j] = 0
        expected.append(float((losses(without) - losses(x)).mean()))
    np.testing.assert_allclose(regularizers.first_order_drops(x, gradients), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape,k", [((6, 4), 1), ((4, 6), 2), ((5, 5), 5)])
def test_batch_spectral_shrinkage_equals_eigenvalues_of_the_gram_matrix(shape, k):
    x = draw(*shape)
    gram = x.T @ x if shape[0] > shape[1] else x @ x.T
    value = jax.jit(regularizers.batch_spectral_shrinkage, static_argnums=1)(x, k)
    np.testing.assert_allclose(value, np.linalg.eigvalsh(gram.astype(np.float64))[:k].sum(), rtol=1e-3, atol=1e-5)
    check_grads(lambda x: regularizers.batch_spectral_shrinkage(x, k), (x,), order=1, modes=["rev"], rtol=0.02)


@pytest.mark.parametrize("x", [np.eye(4), np.eye(6)[:4], np.zeros((3, 5)), np.ones((5, 3)), np.diag([2.0, 2, 0, 0])])
def test_batch_spectral_shrinkage_has_gradients_at_equal_and_zero_singular_values(x):
    value, grads = jax.value_and_grad(regularizers.batch_spectral_shrinkage)(jnp.asarray(x, jnp.float32), 2)
    np.testing.assert_allclose(value, np.sort(np.linalg.svd(x)[1] ** 2)[:2].sum(), atol=1e-5)
    assert np.all(np.isfinite(grads))
    # Along x the loss is quadratic: its derivative is twice the loss, whatever vectors were chosen.
    np.testing.assert_allclose((grads * x).sum(), 2 * value, atol=1e-5)


@pytest.mark.parametrize("k", [0, 4])
def test_batch_spectral_shrinkage_refuses_values_that_do_not_exist(k):
    with pytest.raises(UserError, match="use 1 to 3"):
        regularizers.batch_spectral_shrinkage(jnp.ones((5, 3)), k)


def test_category_relation_by_hand():
    probs = jnp.array([[0.8, 0.2, 0.0], [0.4, 0.4, 0.2], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    relation = jax.jit(regularizers.category_relation, static_argnums=2)(probs, jnp.array([2, 2, 0, -1]), 4)
    np.testing.assert_allclose(relation, [[0, 0, 1], [1 / 3] * 3, [0.6, 0.3, 0.1], [1 / 3] * 3], atol=1e-6)


def test_co_tuning_equals_loops_and_obeys_the_mask():
    logits, labels = draw(5, 3) * 3, np.array([1, 0, 1, 1, 0])
    relation = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], np.float32)
    mask = np.array([1, 1, 0, 1, 0], np.float32)
    total = 0.0
    for n in (0, 1, 3):
        log_probs = logits[n] - np.log(np.exp(logits[n]).sum())
        total -= sum(relation[labels[n], z] * log_probs[z] for z in range(3))
    value, grads = jax.jit(jax.value_and_grad(regularizers.co_tuning))(logits, labels, relation, mask)
    np.testing.assert_allclose(value, total / 3, rtol=1e-5)
    assert not np.any(grads[2]) and not np.any(grads[4]) and np.all(grads[0])
    check_grads(lambda x: regularizers.co_tuning(x, labels, relation, mask), (logits,), order=1, modes=["rev"])
    assert float(regularizers.co_tuning(logits, labels, relation, np.zeros(5))) == 0


def test_sam_point_by_hand():
    params = {"trunk": jnp.array([-0.0, 7.0]), "head": {"kernel": jnp.array([1.0, 2.0]), "bias": jnp.array([0.5])}}
    grads = {"trunk": jnp.array([100.0, 100.0]), "head": {"kernel": jnp.array([2.0, 0.0]), "bias": jnp.array([1.5])}}
    mask = {"trunk": False, "head": {"kernel": True, "bias": True}}
    point = jax.jit(lambda p, g: regularizers.sam_point(p, g, 0.5, mask))(params, grads)
    np.testing.assert_allclose(point["head"]["kernel"], [1.4, 2.0], rtol=1e-6)  # |g| = 2.5
    np.testing.assert_allclose(point["head"]["bias"], [0.8], rtol=1e-6)
    assert np.asarray(point["trunk"]).tobytes() == np.asarray(params["trunk"]).tobytes()  # -0.0 too


def test_sam_point_stays_where_the_gradient_is_zero():
    params, mask = {"a": jnp.ones(3), "b": jnp.ones(2)}, {"a": True, "b": False}
    grads = {"a": jnp.zeros(3), "b": jnp.ones(2)}
    np.testing.assert_array_equal(regularizers.sam_point(params, grads, 0.1, mask)["a"], params["a"])
    slope = jax.grad(lambda g: regularizers.sam_point(params, g, 0.1, mask)["a"].sum())(grads)
    assert np.all(np.isfinite(slope["a"]))


def test_a_step_of_sam_equals_optax():
    params, rho, rate = {"w": jnp.array(draw(4, 3)), "b": jnp.array(draw(3, seed=1))}, 0.3, 0.1
    x, y = draw(8, 4, seed=2), draw(8, 3, seed=3)
    slope = jax.grad(lambda p: jnp.square(jnp.tanh(x @ p["w"] + p["b"][None]) - y).mean())
    mask = {"w": True, "b": True}
    gradient = slope(regularizers.sam_point(params, slope(params), rho, mask))
    mine = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
    peer = optax.contrib.sam(optax.sgd(rate), optax.chain(optax.contrib.normalize(), optax.sgd(rho)))
    state, theirs = peer.init(params), params
    for _ in range(2):
        updates, state = peer.update(slope(theirs), state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    for name in params:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-6)
        assert np.any(np.abs(mine[name] - (params[name] - rate * slope(params)[name])) > 1e-4)  # not plain descent
