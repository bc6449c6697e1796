"""Where a step of the article's experiment spends its time: fetching the batch, the frozen network, the head.

    python -m experiments.benchmarks.article_profile --weights=NOTOP.h5 --data_dir=TFDS_FOLDER

Takes the parts in turns and prints medians as JSON, with the rate in images and FLOPs a second.
"""

import json
import statistics
import time

import jax
import numpy as np
from absl import app, flags, logging

from configs import cifar_resnet
from tl_jax.config import recipe
from tl_jax.tasks import image_classification
from tl_jax.train import sharding
from tl_jax.train.state import initial_state, stream_key
from tl_jax.train.step import make_optimizer_init, make_train_step
from tl_jax.transfer import phases

WEIGHTS = flags.DEFINE_string("weights", None, "ResNet50 without its top, HDF5.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS folder with cifar10.", required=True)
TURNS = flags.DEFINE_integer("turns", 30, "Times that each part is taken.")


def main(_: list[str]) -> None:
    """Time the parts in turns."""
    logging.set_verbosity(logging.WARNING)
    changes = (("data.dir", DATA_DIR.value), ("init.path", WEIGHTS.value), ("data.train_examples", 5000))
    config = recipe.override(cifar_resnet.get_config("article"), changes)
    task = image_classification.make_task(config)
    (phase,) = phases.resolve(config, task.sizes, task.stages)
    state = initial_state(task, config.seed)
    state = state.replace(opt_state=make_optimizer_init(phase.optim, phase.rules)(state.params))
    stream = sharding.replicate(stream_key(config.seed, "train"))
    rate = sharding.replicate(np.float32(1e-3))
    batch = sharding.shard_batch(task.train_batch(0))
    step = make_train_step(task.loss, phase.optim, phase.rules, phase.batch_stats)
    program = sharding.compile_cached(step, state, batch, stream, rate)
    flops = sharding.count_flops(step, state, batch, stream, rate)
    forward = jax.jit(task.features)
    jax.block_until_ready(forward(state.variables, batch))
    seconds = {"batch": [], "forward": [], "step": []}
    for turn in range(TURNS.value):
        start = time.monotonic()
        batch = jax.block_until_ready(sharding.shard_batch(task.train_batch(turn)))
        fetched = time.monotonic()
        jax.block_until_ready(forward(state.variables, batch))
        passed = time.monotonic()
        state, _ = program.execute(state, batch, stream, rate)
        jax.block_until_ready(state.step)
        for name, value in zip(seconds, (fetched - start, passed - fetched, time.monotonic() - passed), strict=True):
            seconds[name].append(value)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "milliseconds": {
            **{name: 1e3 * s for name, s in median.items()},
            "head": 1e3 * (median["step"] - median["forward"]),
        },
        "images_a_second": config.batch_size / (median["batch"] + median["step"]),
        "gflop_a_step": flops / 1e9,
        "gflop_a_second": flops / 1e9 / median["step"],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(main)
