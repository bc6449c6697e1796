"""Folding BatchNorm into convolutions: equal outputs on every network, and what cannot be folded is left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax import models
from tl_jax.models import fold_batch_norm
from tl_jax.utils import tree

NETWORKS = (
    ("resnet50", {"layout": "keras", "depths": (1, 1, 1, 1), "widths": (8, 16, 16, 32)}, 32),
    ("resnet8", {}, 32),
    ("resnet50v2", {"depths": (1, 2, 1, 1), "widths": (8, 16, 16, 32)}, 32),
    ("mobilenet_v2_tiny", {"layout": "keras"}, 32),
    ("efficientnet_lite0_tiny", {}, 32),
    ("inception_v3", {"layout": "keras", "width": 0.125, "repeats": (1, 1, 1)}, 75),
    ("vgg16", {"depths": (1, 1, 1, 1, 1), "widths": (8, 8, 8, 8, 8), "norm": True, "fc": False}, 32),
)


def random_variables(model, size):
    """Return variables all of whose leaves are random, variances positive."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    rng, leaves = np.random.default_rng(1), {}
    for path, leaf in tree.flatten(shapes).items():
        drawn = rng.standard_normal(leaf.shape) * (2 / max(1, leaf.size // leaf.shape[-1])) ** 0.5
        drawn = rng.uniform(0.5, 2.0, leaf.shape) if path.endswith(("var", "scale")) else drawn
        leaves[path] = jnp.asarray(drawn, jnp.float32)
    return {"batch_stats": {}, **tree.unflatten(leaves)}


def apply_folded(model, variables, x, by=1.0):
    changed = fold_batch_norm.fold_variables(fold_batch_norm.find_pairs(model, x.shape[1]), variables)
    with fold_batch_norm.folded_norms({name: by * shift for name, shift in changed.pop("shifts").items()}):
        return model.apply(changed, x, train=False)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "size"), NETWORKS)
def test_outputs_are_equal(name, options, size):
    model = models.create(name, 5, **options)
    variables = random_variables(model, size)
    x = jax.random.normal(jax.random.key(2), (2, size, size, 3))
    plain = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
    folded = jax.jit(lambda v, x: apply_folded(model, v, x))(variables, x)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(folded), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * float(jnp.abs(a).max()))


def test_every_norm_behind_a_convolution_is_found():
    norms = {
        p.rpartition("/")[0] for p in tree.flatten(random_variables(models.create("resnet8", 0), 32)["batch_stats"])
    }
    assert {pair.norm for pair in fold_batch_norm.find_pairs(models.create("resnet8", 0), 32)} == norms


def test_a_norm_before_a_convolution_is_left():
    model = models.create("resnet50v2", 0, depths=(1, 1, 1, 1), widths=(8, 8, 8, 8))
    found = {pair.norm for pair in fold_batch_norm.find_pairs(model, 32)}
    norms = {p.rpartition("/")[0] for p in tree.flatten(random_variables(model, 32)["batch_stats"])}
    assert found and found < norms


@pytest.mark.slow
def test_what_is_not_folded_changes_outputs():
    """Dropping the terms must show: the comparison above can fail."""
    model = models.create("resnet8", 5)
    variables = random_variables(model, 32)
    x = jnp.ones((1, 32, 32, 3))
    right, wrong = (apply_folded(model, variables, x, by)[0] for by in (1.0, 0.0))
    assert float(jnp.abs(wrong - right).max()) > 1e-2
