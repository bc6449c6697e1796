"""Steps of every task lower for TPUs and NVIDIA GPUs, on a machine that has neither."""

import jax
import numpy as np
import pytest

from configs import (
    base,
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
from tl_jax import runs
from tl_jax.rl import stepper as rl_stepper
from tl_jax.train import devices
from tl_jax.train.metrics import _with_predictions
from tl_jax.train.state import initial_state, stream_key
from tl_jax.train.step import make_eval_step, make_init, make_train_step
from tl_jax.transfer import phases

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


@pytest.mark.parametrize("name", RECIPES)
def test_steps_lower_for_accelerators(name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # else it would be what CPUs get, see models/convolution
    config = base.override(RECIPES[name].get_config("smoke"), (("cache.features", "off"),) if "ppo" not in name else ())
    task = runs.make_task(config)
    phase = phases.resolve(config, task.sizes, task.parts)[-1]
    sharded = config.task != "policy"
    state = initial_state(task, 0, sharded)
    state = state.replace(opt_state=make_init(phase.optim, phase.rules, sharded)(state.params))
    key, rate = devices.everywhere(stream_key(0, "train")), devices.everywhere(np.float32(1e-3))
    if config.task == "policy":
        world, policy, how = task.stepper.args[:3]
        updates = rl_stepper._make_updates(world, policy, how, phase.optim, phase.rules, False)
        text = lowered(updates, state, key, *devices.everywhere((np.ones(20, np.float32), np.int32(20))))
    else:
        step = make_train_step(task.loss, phase.optim, phase.rules, phase.batch_stats, sharded)
        text = lowered(step, state, devices.put(task.train_batch(0)), key, rate)
    assert "stablehlo." in text
    both = _with_predictions(task.metrics, task.predict) if task.judge else task.metrics
    batch = next(iter(task.eval_batches("test")))
    assert "stablehlo." in lowered(make_eval_step(both), jax.device_get(state.variables), devices.put(batch))
