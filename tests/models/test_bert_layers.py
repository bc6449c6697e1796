"""Layers of BERT by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.models.backbone import Adapter

pytestmark = pytest.mark.fast


def test_a_new_adapter_changes_nothing():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    layer = Adapter(3, jnp.float32)
    variables = layer.init(jax.random.key(1), x)
    np.testing.assert_array_equal(layer.apply(variables, x), x)
