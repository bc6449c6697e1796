"""Every field of how to train either changes what a step computes, for each task, or is refused."""

import functools
import hashlib
import re

import jax
import numpy as np
import pytest

from configs import detection_voc, docs_bert, faces_verification, masked_words, ner_bert
from tests.tasks import small
from tl_jax import restore
from tl_jax.config import recipe, schema, validate
from tl_jax.train.state import digest, initial_state
from tl_jax.train.step import make_optimizer_init, make_step
from tl_jax.train.task import TASKS as REGISTERED
from tl_jax.utils.errors import UserError

pytestmark = pytest.mark.slow
TASKS = {
    "image": lambda: small.config(("data.per_class", 4)),
    "faces": lambda: faces_verification.get_config("smoke"),
    "detection": lambda: detection_voc.get_config("smoke"),
    "text": lambda: docs_bert.get_config("smoke"),
    "tokens": lambda: ner_bert.get_config("smoke"),
    "masked": lambda: masked_words.get_config("smoke"),
}
PICTURES, WORDS = ("image", "faces", "detection"), ("text", "tokens", "masked")
SGD, RANDOM = ("optim.name", "sgd"), ("augment.randaugment", 2)
DISTILL, ROTATION = ("regularize.distill", 0.1), ("pretext.name", "rotation")
# The field, its value, what it needs beside it (whose own effect is taken off), and tasks.
FIELDS = [
    *((f"regularize.{name}", value, (), (*PICTURES, *WORDS)) for name, value in {
        "dropout": 0.5, "drop_path": 0.5, "label_smoothing": 0.2, "class_weights": "balanced", "mixup": 0.2,
        "cutmix": 1.0, "l2_sp": 0.1, "l2_sp_head": 0.1, "distill": 0.1, "bss": 1e-3, "co_tuning": 1.0,
        "stochastic_norm": 0.5,
    }.items()),
    ("regularize.delta", 0.1, (), ("faces", "detection", *WORDS)),  # of pictures in tests/tasks/test_losses.py
    ("regularize.endpoints", "first", (DISTILL,), ("image", "text", "masked")),
    *((f"optim.{name}", value, (), ("image", "masked")) for name, value in {
        "name": "sgd", "lr": 0.123, "schedule": "constant", "warmup": 0.5, "weight_decay": 0.123, "epsilon": 1e-3,
        "clip_norm": 0.5, "layer_decay": 0.5, "lr_multipliers": (("train", 0.5),), "sam": 0.05, "accumulate": 2,
        "ema": 0.9, "batch_norm_momentum": 0.5, "momentum": 0.5,
    }.items()),
    ("optim.momentum", 0.5, (SGD,), ("image",)),
    ("optim.epsilon", 1e-3, (SGD,), ("image",)),
    *((f"augment.{name}", value, (), (*PICTURES, "text")) for name, value in {
        "flip": True, "crop_pad": 2, "rotate": 10.0, "resized_crop": 0.5, "jitter": 0.3, "grey": 0.3,
        "randaugment": 2, "erase": 0.3, "magnitude": 3.0,
    }.items()),
    ("augment.magnitude", 3.0, (RANDOM,), ("image", "detection")),
    ("detect.min_visibility", 0.6, (), ("detection", "image")),
    ("detect.min_visibility", 0.6, (("augment.resized_crop", 0.5),), ("detection",)),
    *((f"pretext.{name}", value, (ROTATION, ("pretext.weight", 0.5)), ("image", "faces")) for name, value in {
        "weight": 0.3, "width": 16, "crop": 0.5, "jitter": 0.2, "temperature": 0.5, "mask_prob": 0.3,
    }.items()),
    ("freeze.recipe", "head", (), ("image", "detection", "text", "masked")),
    ("freeze.batch_stats", "frozen", (), ("image", "text")),
    *((f"regularize.{name}", value, (("freeze.recipe", "head"),), ("image", "text")) for name, value in {
        "bss": 1e-3, "l2_sp": 0.1, "distill": 0.1, "label_smoothing": 0.2, "dropout": 0.5,
    }.items()),
    *((f"faces.{name}", value, (), ("faces", "image")) for name, value in {
        "scale": 10.0, "margin": 0.2, "loss": "softmax", "embedding": 16,
    }.items()),
]  # fmt: skip
CASES = [(task, field, value, needs) for field, value, needs, tasks in FIELDS for task in tasks]


def fingerprint(config) -> str:
    """Return what the first step of the last phase computes, and from where, as a hash; nothing is compiled."""
    validate.validate(config)
    task = restore.make_task(config)
    phase = task.plan()[-1]
    state = initial_state(task, config.seed)
    state = state.replace(opt_state=jax.eval_shape(make_optimizer_init(phase.optim, phase.rules), state.params))
    loss, train_batch, _ = task.objective(phase.objective)
    step = make_step(loss, phase.optim, phase.rules, phase.batch_stats)
    program = jax.make_jaxpr(step)(state, train_batch(0), jax.random.key(0), np.float32(0.1))
    text = re.sub(r"0x[0-9a-f]+", "", str(program))  # where a function lies in memory
    constants = [np.asarray(value).tobytes() for value in program.consts if isinstance(value, np.ndarray | jax.Array)]
    facts = repr((phase.rate, digest(jax.device_get(state.variables)), constants))
    return hashlib.sha256((text + facts).encode()).hexdigest()


@functools.cache
def without(task: str, needs: tuple) -> str:
    return fingerprint(recipe.override(TASKS[task](), needs))


@pytest.mark.parametrize("task,field,value,needs", CASES, ids=lambda each: str(each)[:40])
def test_a_field_has_an_effect_or_is_refused(task, field, value, needs):
    value = REGISTERED[task].stage_names(schema.freeze(TASKS[task]()))[:1] if value == "first" else value
    if schema.flatten_config(TASKS[task](), schema.all_fields()).get(field) == value:  # the recipe has it already
        value = not value if isinstance(value, bool) else 2 * value
    try:
        found = fingerprint(recipe.override(TASKS[task](), (*needs, (field, value))))
    except UserError as error:
        assert re.search(
            "no effect|has an effect|is that of|are those of|is not for|not for task|every leaf", str(error)
        )
        assert any(part in str(error) for part in (field, field.rpartition(".")[2], *(name for name, _ in needs)))
        return
    assert found != without(task, needs), f"{field}={value} changes nothing of task={task}, and is not refused"


@pytest.mark.parametrize("task", TASKS)
def test_a_field_that_does_not_change_a_step_is_told_from_those_that_do(task):
    """The fingerprint would be worthless if it differed each time."""
    assert fingerprint(recipe.override(TASKS[task](), (("log_every", 77),))) == without(task, ())
