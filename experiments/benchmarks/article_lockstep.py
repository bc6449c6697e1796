"""Keras and tl_jax side by side on the article's experiment: same head, same batches, step by step.

    python -m experiments.benchmarks.article_lockstep --weights=NOTOP.h5 --data_dir=TFDS_FOLDER

``article_peers`` lets Keras draw its own head and order, so that two runs differ by chance. Here nothing differs but
the code: ResNet50 frozen, the head that tl_jax draws, the batches that tl_jax takes. Prints the largest difference of
the losses of all steps, and both test accuracies. Needs requirements-bench.txt.
"""

import json
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging

from configs import cifar_resnet
from tl_jax.config import recipe, validate
from tl_jax.tasks import image_classification
from tl_jax.train import evaluate, loop
from tl_jax.train.state import initial_state
from tl_jax.transfer import phases

WEIGHTS = flags.DEFINE_string("weights", None, "ResNet50 without its top, HDF5.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS folder with cifar10.", required=True)
EXAMPLES = flags.DEFINE_integer("examples", 5000, "Training examples drawn by the seed.")
STEPS = flags.DEFINE_integer("steps", 781, "Steps of 64 examples.")
SEED = flags.DEFINE_integer("seed", 0, "Of the examples, the head and the order.")


def main(_: list[str]) -> None:
    """Train both heads and compare."""
    logging.set_verbosity(logging.WARNING)
    changes = {"seed": SEED.value, "log_every": 1, "data.dir": DATA_DIR.value, "data.train_examples": EXAMPLES.value}
    changes |= {"init.path": WEIGHTS.value, "epochs": STEPS.value * 64 / EXAMPLES.value}
    config = recipe.override(cifar_resnet.get_config("article"), tuple(changes.items()))
    validate.validate(config)
    task = image_classification.make_task(config)
    theirs, their_accuracy = train_keras(task, config)
    with tempfile.TemporaryDirectory() as folder:
        plan = phases.resolve(config, task.sizes, task.stages)
        fitted = loop.fit(task, plan, loop.Pace(10**9, 1), config.seed, Path(folder), verbose=False)
        fitted.checkpoints.close()
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    ours = [row["loss"] for row in rows if row["split"] == "train"]
    values = evaluate.evaluate(task, fitted.state.variables, "test").values
    difference = np.abs(np.asarray(ours) - theirs)
    result = {
        "steps": len(ours),
        "seed": SEED.value,
        "examples": EXAMPLES.value,
        "largest_loss_difference": float(difference.max()),
        "last_losses": [ours[-1], float(theirs[-1])],
        "accuracy_tl_jax": values["accuracy"],
        "accuracy_keras": their_accuracy,
    }
    print(json.dumps(result))


def train_keras(task, config) -> tuple[np.ndarray, float]:
    """Return Keras' loss at every step and its test accuracy."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    trunk = keras.applications.ResNet50(include_top=False, weights=config.init.path, input_shape=(32, 32, 3))
    trunk.trainable = False
    model = keras.Sequential([trunk, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, "softmax")])
    model.compile(optimizer=keras.optimizers.Adam(config.optim.lr), loss="sparse_categorical_crossentropy")
    head = jax.device_get(initial_state(task, config.seed).params["head"])
    model.layers[-1].set_weights([head["kernel"], head["bias"]])
    losses = []
    for step in range(STEPS.value):
        batch = task.train_batch(step)
        model.reset_metrics()  # train_on_batch returns the mean since the last reset
        losses.append(float(model.train_on_batch(batch["image"] / np.float32(255), batch["label"])))
    hits, count = 0, 0
    for batch in task.eval_batches("test"):
        predicted = model.predict_on_batch(batch["image"] / np.float32(255)).argmax(-1)
        hits += ((predicted == batch["label"]) * batch["mask"]).sum()
        count += batch["mask"].sum()
    return np.asarray(losses), float(hits / count)


if __name__ == "__main__":
    app.run(main)
