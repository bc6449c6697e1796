"""Adapters: nothing changes when they are new, merged equals unmerged, and only they and the head train."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax import models
from tl_jax.transfer import adapters, freeze
from tl_jax.transfer.adapters import AdapterConfig
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
KERNELS = {
    "conv": {"kernel": jnp.arange(3 * 3 * 8 * 16, dtype=jnp.float32).reshape(3, 3, 8, 16) / 1000, "bias": jnp.ones(16)},
    "dense": {"kernel": jnp.ones((16, 12))},
    "depthwise": {"kernel": jnp.ones((3, 3, 1, 16))},
    "head": {"kernel": jnp.ones((16, 12))},
}


@pytest.fixture(scope="module")
def net():
    model = models.create("resnet8", 3)
    return model, model.init(jax.random.key(0), jnp.ones((1, 16, 16, 3)))


def drawn(params, how, seed=1):
    """Adapters with B drawn too, so that they change something."""
    leaves = tree.flatten(adapters.add(params, how, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    for (path, leaf), key in zip(list(leaves.items()), keys, strict=True):
        if path.endswith("lora_b"):
            leaves[path] = 0.1 * jax.random.normal(key, leaf.shape)
    return tree.unflatten(leaves)


def test_rank_0_adds_nothing():
    assert tree.flatten(adapters.add(KERNELS, AdapterConfig("lora", rank=0), jax.random.key(0))) == tree.flatten(
        KERNELS
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "parallel"])
def test_new_adapters_give_the_same_outputs_to_the_bit(net, kind):
    model, variables = net
    how = AdapterConfig(kind, rank=2)
    params = adapters.add(variables["params"], how, jax.random.key(0))
    x = jax.random.normal(jax.random.key(2), (2, 16, 16, 3))
    before, _ = model.apply(variables, x)
    after, _ = model.apply({**variables, "params": adapters.merge(params, how)}, x)
    assert np.asarray(before).tobytes() == np.asarray(after).tobytes()


def test_lora_is_the_kernel_plus_scaled_a_b_over_the_whole_window():
    how = AdapterConfig("lora", rank=2, alpha=6.0)
    params = drawn(KERNELS, how)
    merged = adapters.merge(params, how)
    a, b = (np.asarray(params["conv"][name], np.float64) for name in ("lora_a", "lora_b"))
    assert a.shape == (72, 2) and b.shape == (2, 16)
    expected = np.array(KERNELS["conv"]["kernel"], np.float64)
    for i in range(3):
        for j in range(3):
            for c in range(8):
                for f in range(16):
                    change = sum(a[(i * 3 + j) * 8 + c, r] * b[r, f] for r in range(2))
                    expected[i, j, c, f] += 3.0 * change
    np.testing.assert_allclose(merged["conv"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert set(tree.flatten(merged)) == set(tree.flatten(KERNELS))
    assert merged["head"]["kernel"] is KERNELS["head"]["kernel"]


def test_lora_is_two_convolutions_beside_the_layer():
    """Unmerged, as the paper draws it: the layer, plus A as a convolution of few channels and B as a 1x1 one."""
    how = AdapterConfig("lora", rank=2, alpha=6.0)
    params = drawn(KERNELS, how)
    x = jax.random.normal(jax.random.key(3), (2, 6, 6, 8))
    down = params["conv"]["lora_a"].reshape(3, 3, 8, 2)
    beside = conv(x, down) @ params["conv"]["lora_b"] * 3.0
    merged = conv(x, adapters.merge(params, how)["conv"]["kernel"])
    np.testing.assert_allclose(merged, conv(x, KERNELS["conv"]["kernel"]) + beside, rtol=1e-4, atol=1e-5)


def conv(x, kernel):
    """Convolve (N, H, W, C) at stride 2."""
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=dims)


def test_parallel_is_a_1x1_convolution_beside_the_layer():
    how = AdapterConfig("parallel", rank=2, alpha=2.0)
    params = drawn(KERNELS, how)
    assert "lora_a" not in params["depthwise"]
    x = jax.random.normal(jax.random.key(3), (2, 6, 6, 8))
    beside = x[:, ::2, ::2] @ params["conv"]["lora_a"] @ params["conv"]["lora_b"]
    merged = adapters.merge(params, how)["conv"]["kernel"]
    np.testing.assert_allclose(conv(x, merged), conv(x, KERNELS["conv"]["kernel"]) + beside, rtol=1e-4, atol=1e-5)


def test_a_kernel_with_fewer_values_than_its_adapter_is_left_alone():
    params = adapters.add(KERNELS, AdapterConfig("lora", rank=7), jax.random.key(0))
    assert "lora_a" not in params["depthwise"]  # 7 * (9 + 16) > 9 * 16
    assert "lora_a" not in params["dense"]  # 7 * (16 + 12) > 16 * 12
    assert "lora_a" in params["conv"] and "lora_a" not in params["head"]


def test_half_an_adapter_is_refused():
    params = adapters.add(KERNELS, AdapterConfig("lora", rank=1), jax.random.key(0))
    del params["conv"]["lora_a"]
    with pytest.raises(UserError, match="conv/lora_b: conv/lora_a is missing"):
        adapters.merge(params, AdapterConfig("lora", rank=1))


def test_targets_choose_and_a_choice_of_nothing_is_refused():
    params = adapters.add(KERNELS, AdapterConfig("lora", rank=1, targets="dense/.*"), jax.random.key(0))
    assert {path for path in tree.flatten(params) if "lora" in path} == {"dense/lora_a", "dense/lora_b"}
    with pytest.raises(
        UserError, match="no kernel matches with rank 8; use a regex that matches paths such as conv/kernel"
    ):
        adapters.add(KERNELS, AdapterConfig("lora", targets="dens/.*"), jax.random.key(0))


def test_the_recipe_trains_adapters_and_head_only():
    params = adapters.add(KERNELS, AdapterConfig("lora", rank=1), jax.random.key(0))
    mask = tree.flatten(freeze.trainable(params, freeze.RECIPES["adapters"]))
    assert {path for path, trains in mask.items() if trains} == {
        *(f"{name}/lora_{x}" for name in ("conv", "dense", "depthwise") for x in "ab"),
        "head/kernel",
    }


@pytest.mark.slow
def test_bottleneck_adapters_start_as_the_identity(net):
    model, variables = net
    wide = model.clone(adapter=4)
    x = jax.random.normal(jax.random.key(2), (2, 16, 16, 3))
    params = {**wide.init(jax.random.key(5), x)["params"], **variables["params"]}
    assert {name for name in params if name.startswith("adapter_")} == {f"adapter_{p}" for p in model.stage_names()}
    before, after = model.apply(variables, x)[0], wide.apply({**variables, "params": params}, x)[0]
    np.testing.assert_array_equal(before, after)
    mask = tree.flatten(freeze.trainable(params, freeze.RECIPES["adapters"]))
    trained = {path.split("/")[0] for path, trains in mask.items() if trains}
    assert trained == {"head", *(f"adapter_{p}" for p in model.stage_names())}
