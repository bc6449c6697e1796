"""Where frozen layers end, and keys that change with what they name."""

import jax.numpy as jnp
import numpy as np
import pytest

from tl_jax.tasks.feature_cache import content_hash, frozen_endpoint
from tl_jax.utils import tree

pytestmark = pytest.mark.fast
PARTS = ("stem", "stage1", "stage2")
NORMS = frozenset({"stem/bn", "stage2/bn"})


def mask(*trains):
    paths = ("stem/kernel", "stem/bn/scale", "stage1/kernel", "stage2/kernel", "stage2/bn/scale", "head/kernel")
    return tree.unflatten({path: path in trains for path in (*paths, *trains)})


@pytest.mark.parametrize(
    ("trains", "still", "reads", "expected"),
    [
        (("head/kernel",), NORMS, "features", "features"),
        (("head/kernel",), NORMS, "stage2", "stage2"),  # a head on the map needs the map
        (("head/kernel",), NORMS, "stage1", "stage1"),  # an auxiliary head on an earlier one needs that
        (("head/kernel", "stage2/kernel"), NORMS, "features", "stage1"),
        (("head/kernel", "stage1/kernel"), NORMS, "features", "stem"),
        (("head/kernel", "stem/kernel"), NORMS, "features", ""),
        (("head/kernel", "stage1/lora_a"), NORMS, "features", "stem"),
        (("head/kernel", "adapter_stage1/up/kernel"), NORMS, "features", "stem"),
        (("head/kernel",), NORMS - {"stage2/bn"}, "features", "stage1"),  # its statistics move
        (("head/kernel",), frozenset(), "features", ""),
    ],
)
def test_boundary(trains, still, reads, expected):
    assert frozen_endpoint(PARTS, reads, mask(*trains), still, NORMS) == expected


def test_a_digest_changes_with_everything_in_it():
    x = np.arange(6, dtype=np.float32)
    facts = (("a", 1), {"w": {"k": jnp.ones(3)}}, x)
    others = (
        (("a", 2), facts[1], x),
        (facts[0], {"w": {"k": jnp.ones(3).at[1].set(2.0)}}, x),
        (facts[0], {"v": {"k": jnp.ones(3)}}, x),
        (*facts[:2], x.reshape(2, 3)),
        (*facts[:2], x.view(np.int32)),
    )
    assert content_hash(*facts) == content_hash(("a", 1), {"w": {"k": jnp.ones(3)}}, x.copy())
    assert len({content_hash(*facts), *(content_hash(*other) for other in others)}) == 6
