"""Self-supervised losses against loops in NumPy, turns against pictures turned back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tl_jax.transfer.self_supervised import Projector, negative_cosine, nt_xent, quarter_turns
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_nt_xent_equals_loops(temperature):
    z1, z2 = draw(4, 3) * 5, draw(4, 3, seed=1)
    views = [view.astype(np.float64) for pair in zip(z1, z2, strict=True) for view in pair]  # partners: 2k and 2k + 1
    losses = []
    for i, view in enumerate(views):
        j = i + 1 if i % 2 == 0 else i - 1
        below = sum(np.exp(cosine(view, views[k]) / temperature) for k in range(8) if k != i)
        losses.append(-np.log(np.exp(cosine(view, views[j]) / temperature) / below))
    np.testing.assert_allclose(jax.jit(nt_xent)(z1, z2, temperature), np.mean(losses), rtol=1e-4)


def test_nt_xent_at_its_ends():
    np.testing.assert_allclose(nt_xent(jnp.ones((5, 2)), jnp.ones((5, 2)), 0.1), np.log(9), rtol=1e-5)
    assert float(nt_xent(jnp.eye(4), jnp.eye(4), 0.05)) < 1e-6
    assert float(nt_xent(jnp.ones((1, 2)), -jnp.ones((1, 2)), 0.1)) == 0  # no negatives


def test_nt_xent_gradients():
    check_grads(lambda a, b: nt_xent(a, b, 0.5), (draw(3, 4), draw(3, 4, seed=1)), order=1, modes=["rev"], eps=1e-2)
    for z in (np.zeros((3, 4)), np.ones((3, 4))):
        assert np.all(np.isfinite(jax.grad(nt_xent)(jnp.asarray(z, jnp.float32), jnp.zeros((3, 4)), 0.1)))


def test_negative_cosine_equals_loops_and_stops_at_z():
    p, z = draw(5, 3), draw(5, 3, seed=1)
    expected = -np.mean([cosine(a, b) for a, b in zip(p, z, strict=True)])
    value, (to_p, to_z) = jax.jit(jax.value_and_grad(negative_cosine, (0, 1)))(p, z)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.any(to_p) and not np.any(to_z)
    np.testing.assert_allclose((to_p * p).sum(1), 0, atol=1e-6)  # length does not matter
    check_grads(lambda p: negative_cosine(p, z), (p,), order=1, modes=["rev"], eps=1e-2)
    assert np.all(np.isfinite(jax.grad(negative_cosine)(jnp.zeros((5, 3)), z)))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_quarter_turns_turn_back(dtype):
    images = (draw(40, 4, 4, 2) * 50).astype(dtype)
    turned, turns = jax.jit(quarter_turns)(images, jax.random.key(0))
    assert turned.dtype == dtype and turns.dtype == jnp.int32 and turns.shape == (40,)
    assert set(np.asarray(turns).tolist()) == {0, 1, 2, 3}
    for image, new, turn in zip(images, np.asarray(turned), np.asarray(turns), strict=True):
        for _ in range(turn):  # counter-clockwise: the last column becomes the first row
            image = np.stack([image[:, 3 - row] for row in range(4)])
        np.testing.assert_array_equal(new, image)


def test_quarter_turns_are_keyed_and_need_squares():
    images = draw(16, 2, 2, 1)
    turns = [quarter_turns(images, jax.random.key(seed))[1].tolist() for seed in (0, 0, 1)]
    assert turns[0] == turns[1] != turns[2]
    with pytest.raises(UserError, match="2x3"):
        quarter_turns(np.zeros((4, 2, 3, 1)), jax.random.key(0))


@pytest.mark.parametrize("norm", [True, False])
def test_projector_by_hand(norm):
    x, net = draw(6, 5) * 3 + 1, Projector(4, 2, norm)
    variables = net.init(jax.random.key(0), x)
    assert set(variables) == {"params"}
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), variables["params"])
    out = jax.jit(net.apply)({"params": params}, x)
    if norm:
        assert set(params["dense1"]) == {"kernel"}
        hidden = x @ params["dense1"]["kernel"]
        hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5) * params["scale"] + params["bias"]
    else:
        hidden = x @ params["dense1"]["kernel"] + params["dense1"]["bias"]
    expected = np.maximum(hidden, 0) @ params["dense2"]["kernel"] + params["dense2"]["bias"]
    assert out.shape == (6, 2)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_projector_has_gradients_for_a_constant_batch():
    net, x = Projector(4, 2), jnp.ones((6, 5))
    params = net.init(jax.random.key(0), x)
    grads = jax.grad(lambda p, x: net.apply(p, x).sum(), (0, 1))(params, x)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
