"""Frozen means frozen: bits, work and memory, for every recipe, on a real network; and the proof notices a cheat."""

import json

import jax
import numpy as np
import pytest

from configs import digits_resnet
from tests.train import tiny
from tl_jax.config import recipe as recipe_module
from tl_jax.config import schema
from tl_jax.tasks.image_classification import ImageClassification
from tl_jax.train import loop, sharding
from tl_jax.train.state import initial_state, stream_key
from tl_jax.train.step import make_forward, make_optimizer_init, make_train_step
from tl_jax.train.workdir import read_json
from tl_jax.transfer import freeze
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

RECIPES = {
    "head": (),
    "last_n_stages": (("freeze.stages", 2),),
    "norm_only": (),
    "bias_only": (),
    "adapters": (("adapt.kind", "lora"), ("adapt.rank", 2)),
    "frozen_stem": (("freeze.rules", (("stem/.*", "frozen"), (".*", "train"))),),
}


def prepared(recipe):
    """Return task, phase and initial state of the small pretrained ResNet on digits, everything on that could leak."""
    changes = (
        ("arms", ()), ("seeds", ()), ("input.size", 8), ("batch_size", 16), ("augment.crop_pad", 0),
        ("optim.weight_decay", 0.1), ("optim.clip_norm", 1.0), ("optim.momentum", 0.9), ("optim.ema", 0.9),
        *((("freeze.recipe", recipe),) if recipe in freeze.NAMES else ()), *RECIPES[recipe],
    )  # fmt: skip
    config = recipe_module.override(digits_resnet.get_config(), changes)
    task = ImageClassification(schema.freeze(config))
    (phase,) = task.plan()
    state = initial_state(task, 0)
    return task, phase, state.replace(opt_state=make_optimizer_init(phase.optim, phase.rules)(state.params))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_fifty_steps_leave_frozen_bits_alone_and_hold_no_memory_for_them(recipe):
    task, phase, state = prepared(recipe)
    mask = tree.flatten(freeze.trainable(state.params, phase.rules))
    before = jax.device_get(state)
    values = sum(leaf.size for path, leaf in tree.flatten(before.params).items() if mask[path])
    slots = [leaf for leaf in jax.tree.leaves(before.opt_state) if leaf.ndim]
    assert sum(leaf.nbytes for leaf in slots) == 3 * 4 * values  # Adam's two moments and the running average
    step = make_train_step(task.loss, phase.optim, phase.rules, phase.batch_stats)
    stream = sharding.replicate(stream_key(0, "train"))
    for i in range(50):
        state, _ = step(state, sharding.shard_batch(task.train_batch(i)), stream, sharding.replicate(np.float32(1e-2)))
    after = jax.device_get(state)
    for path, leaf in tree.flatten(before.params).items():
        same = leaf.tobytes() == tree.flatten(after.params)[path].tobytes()
        assert same != mask[path], f"{path}: trains {mask[path]}, same bits {same}"
    trained = {path.rpartition("/")[0] for path, trains in mask.items() if trains}
    for path, leaf in tree.flatten(before.batch_stats).items():
        same = leaf.tobytes() == tree.flatten(after.batch_stats)[path].tobytes()
        assert same == (path.rpartition("/")[0] not in trained), path


@pytest.mark.slow
def test_a_head_only_step_costs_hardly_more_than_the_forward_pass():
    task, phase, state = prepared("head")
    stream = sharding.replicate(stream_key(0, "train"))
    batch, rate = sharding.shard_batch(task.train_batch(0)), sharding.replicate(np.float32(1e-2))
    step = make_train_step(task.loss, phase.optim, phase.rules, phase.batch_stats)
    forward = make_forward(task.loss, phase.rules, phase.batch_stats)
    work = [
        program.compile().cost_analysis()["flops"]
        for program in (step.lower(state, batch, stream, rate), forward.lower(state, batch, stream))
    ]
    assert work[0] <= 1.05 * work[1], work


@pytest.mark.slow
@pytest.mark.fast
def test_the_summary_of_a_run_in_two_phases(tmp_path):
    fitted = loop.fit(tiny.task(), tiny.plan(), loop.Pace(3, 2), 0, tmp_path, verbose=False, verify_freeze=True)
    fitted.checkpoints.close()
    head, everything = fitted.freeze["phases"]["head"], fitted.freeze["phases"]["all"]
    assert head["leaves"] == 2 + 2 + 2  # trunk, scale and bias, and the BatchNorm's statistics
    assert (head["changed"], everything["changed"], everything["leaves"]) == (0, 0, 0)
    assert head["optimizer_bytes"] == 4 * (2 * 27 + 1)  # two moments of the head, and Adam's counter
    assert head["flops_step"] < everything["flops_step"] and head["flops_forward"] < head["flops_step"]
    assert {k: v for k, v in fitted.freeze.items() if k != "phases"} == everything


@pytest.mark.fast
def test_what_changes_although_it_is_frozen_ends_the_run_and_is_named(tmp_path):
    task = tiny.task()

    def cheat(variables, batch, key):
        value, (stats, sums) = task.loss(variables, batch, key)
        return value, ({"bn": {**stats["bn"], "mean": stats["bn"]["mean"] + 1e-7}}, sums)

    with pytest.raises(UserError, match="1 of 6 frozen leaves changed: batch_stats/bn/mean"):
        loop.fit(task.replace(loss=cheat), tiny.plan(), loop.Pace(3, 2), 0, tmp_path, verbose=False, verify_freeze=True)
    assert json.loads((tmp_path / "freeze.json").read_text())["head"]["changed"] == 1


@pytest.mark.fast
def test_a_resumed_phase_is_held_to_the_hashes_of_its_own_start(tmp_path):
    task, (head, _) = tiny.task(), tiny.plan(first=9)

    class Cut(Exception):
        pass

    def batch(step):
        if step == 5:
            raise Cut
        return task.train_batch(step)

    def fit(task):
        return loop.fit(task, [head], loop.Pace(3, 2), 0, tmp_path, verbose=False, verify_freeze=True)

    with pytest.raises(Cut):
        fit(task.replace(train_batch=batch))
    kept = read_json(tmp_path / "freeze.json")
    kept["head"]["sha256"]["params/trunk/kernel"] = "0" * 64  # as if it had been another before the stop
    (tmp_path / "freeze.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match="frozen leaves changed: params/trunk/kernel"):
        fit(task)
