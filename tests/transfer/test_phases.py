"""Phases in steps, with their own or the common freezing and rates."""

import pytest

from tl_jax.config import recipe, schema
from tl_jax.transfer import phases
from tl_jax.transfer.freeze import RECIPES

pytestmark = pytest.mark.fast


def resolve(*changes, examples=100):
    sizes = {"train": examples, "unlabelled": 4 * examples}
    config = schema.freeze(recipe.override(recipe.get_config(), (("batch_size", 8), *changes)))
    return phases.resolve(config, sizes, ("stem", "stage1"))


def test_no_phases_is_one_phase():
    (phase,) = resolve(("epochs", 2.0), ("freeze.recipe", "head"), ("optim.lr", 0.5))
    assert (phase.start, phase.stop, phase.rules) == (0, 25, RECIPES["head"])
    assert (phase.rate.lr, phase.rate.steps, phase.batch_stats) == (0.5, 25, "auto")


def test_phases_follow_one_another_and_scale_the_rate():
    head = {"name": "a", "epochs": 0.3, "recipe": "head"}
    entries = (head, {"name": "b", "epochs": 0.3, "recipe": "all", "lr_scale": 0.1})
    first, second = resolve(("phases", entries), ("optim.lr", 1.0))
    assert (first.start, first.stop, second.start, second.stop) == (0, 4, 4, 8)  # 3.75 and 7.5 steps, rounded
    assert first.rate.lr == 1.0 and second.rate.lr == pytest.approx(0.1)
    assert (first.rules, second.rules) == (RECIPES["head"], RECIPES["all"])
    assert second.rate.steps == 4


def test_what_a_phase_says_replaces_the_common_rules_and_what_it_leaves_out_is_taken_from_them():
    common = ((r"stage1/.*", "frozen"), (".*", "train"))
    entries = ({"name": "a", "epochs": 1.0, "recipe": "head"}, {"name": "b", "epochs": 1.0})
    first, second = resolve(("phases", entries), ("freeze.rules", common))
    assert (first.rules, second.rules) == (RECIPES["head"], common)


def test_a_phase_has_at_least_one_step():
    entries = ({"name": "a", "epochs": 0.001}, {"name": "b", "epochs": 1.0})
    first, second = resolve(("phases", entries))
    assert (first.start, first.stop, second.start) == (0, 1, 1)
