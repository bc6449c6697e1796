"""Steps of every task lower for TPUs and NVIDIA GPUs, on a machine that has neither."""

import jax
import numpy as np
import pytest

from configs import (
    cartpole_ppo,
    cifar_resnet,
    cifar_vgg,
    ct_classification,
    faces_verification,
    masked_words,
    minatar_ppo,
    ner_bert,
    sst2_bert,
)
from tl_jax import restore
from tl_jax.config import recipe
from tl_jax.tasks import reinforcement as rl_stepper
from tl_jax.train import sharding
from tl_jax.train.evaluate import make_both
from tl_jax.train.state import initial_state, stream_key
from tl_jax.train.step import make_eval_step, make_optimizer_init, make_train_step

pytestmark = pytest.mark.fast
PLATFORMS = ("tpu", "cuda")
RECIPES = {
    recipe.__name__.rpartition(".")[2]: recipe
    for recipe in (cifar_resnet, cifar_vgg, ct_classification, faces_verification, sst2_bert, ner_bert,
                   masked_words, cartpole_ppo, minatar_ppo)
}  # fmt: skip


def lowered(function, *args):
    """Return the text of a jitted function for the platforms of this file."""
    return function.trace(*args).lower(lowering_platforms=PLATFORMS).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_steps_lower_for_accelerators(name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # else it would be what CPUs get, see models/ops/conv.py
    config = recipe.override(
        RECIPES[name].get_config("smoke"), (("cache.features", "off"),) if "ppo" not in name else ()
    )
    task = restore.make_task(config)
    phase = task.plan()[-1]
    sharded = config.task != "policy"
    state = initial_state(task, 0, sharded)
    state = state.replace(opt_state=make_optimizer_init(phase.optim, phase.rules, sharded)(state.params))
    key, rate = sharding.replicate(stream_key(0, "train")), sharding.replicate(np.float32(1e-3))
    if config.task == "policy":
        world, policy, how = task.make_stepper.args[:3]
        updates = rl_stepper._make_updates(world, policy, how, phase.optim, phase.rules, False)
        text = lowered(updates, state, key, *sharding.replicate((np.ones(20, np.float32), np.int32(20))))
    else:
        step = make_train_step(task.loss, phase.optim, phase.rules, phase.batch_stats, sharded)
        text = lowered(step, state, sharding.shard_batch(task.train_batch(0)), key, rate)
    assert "stablehlo." in text
    both = make_both(task.metrics, task.outputs) if task.outputs else task.metrics
    batch = next(iter(task.eval_batches("test")))
    assert "stablehlo." in lowered(make_eval_step(both), jax.device_get(state.variables), sharding.shard_batch(batch))
