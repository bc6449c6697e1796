"""Leaf paths and labels."""

import numpy as np
import pytest

from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.fast
PARAMS = {
    "stage1": {"conv1": {"kernel": np.zeros((3, 3, 2, 4))}},
    "head": {"kernel": np.zeros((4, 5)), "bias": np.zeros(5)},
}


def test_flatten_and_back():
    flat = tree.flatten(PARAMS)
    assert set(flat) == {"stage1/conv1/kernel", "head/kernel", "head/bias"}
    assert tree.unflatten(flat).keys() == PARAMS.keys()
    assert tree.unflatten(flat)["head"]["bias"] is PARAMS["head"]["bias"]


def test_first_matching_rule_wins_and_must_match_the_whole_path():
    labels = tree.label_leaves(PARAMS, [("head", "part of a path"), ("head/.*", "a"), (".*/kernel", "b"), (".*", "c")])
    assert tree.flatten(labels) == {"stage1/conv1/kernel": "b", "head/kernel": "a", "head/bias": "a"}


def test_a_leaf_without_a_rule_is_an_error_that_names_it():
    with pytest.raises(UserError, match="stage1/conv1/kernel"):
        tree.label_leaves(PARAMS, [("head/.*", "train")])


def test_count_and_bytes():
    assert tree.count(PARAMS) == 3 * 3 * 2 * 4 + 4 * 5 + 5
    assert tree.nbytes(PARAMS) == 8 * tree.count(PARAMS)
