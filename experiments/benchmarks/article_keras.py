"""The article's experiment in Keras on TensorFlow, as the peer of ``configs/cifar_resnet.py:article``.

    python -m experiments.benchmarks.article_keras --weights=NOTOP.h5 --data_dir=TFDS_FOLDER --examples=5000 --epochs=10

Needs requirements-bench.txt. The examples are those that our run with the same seed and number of them takes; network,
frozen part, pooling, head, optimizer and batches are Keras' own. Prints a line of JSON: test accuracy, loss, seconds
and peak memory.
"""

import os
import time

import numpy as np
from absl import app, flags

from experiments.benchmarks.article_result import tell

WEIGHTS = flags.DEFINE_string("weights", None, "ResNet50 without its top, HDF5.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS folder with cifar10.", required=True)
EXAMPLES = flags.DEFINE_integer("examples", 0, "Training examples drawn by the seed; 0 for all.")
EPOCHS = flags.DEFINE_integer("epochs", 10, "Passes over the training examples.")
SIZE = flags.DEFINE_integer("size", 32, "Side of the network's input; pictures of 32 are enlarged to it.")
TESTS = flags.DEFINE_integer("tests", 0, "First test examples; 0 for all.")
SEED = flags.DEFINE_integer("seed", 0, "Of the examples, the head and the order.")


def main(_: list[str]) -> None:
    """Train the head and test it once."""
    start = time.monotonic()
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    from tl_jax.data import dataset, tfds

    keras.utils.set_random_seed(SEED.value)
    source = tfds.load("cifar10", DATA_DIR.value)
    train, _ = dataset.cut_validation(source.train, 0.0, SEED.value)
    train = dataset.thin(train, EXAMPLES.value, 0, 10, SEED.value)
    side = SIZE.value
    base = keras.applications.ResNet50(include_top=False, weights=WEIGHTS.value, input_shape=(side, side, 3))
    base.trainable = False
    larger = [] if side == 32 else [keras.layers.Resizing(side, side)]
    model = keras.Sequential([*larger, base, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, "softmax")])
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    loaded = time.monotonic()
    model.fit(train.images[:] / np.float32(255), train.labels, batch_size=64, epochs=EPOCHS.value, verbose=2)
    fitted = time.monotonic()
    images, labels = source.test.images[: TESTS.value or None], source.test.labels[: TESTS.value or None]
    loss, accuracy = model.evaluate(images / np.float32(255), labels, batch_size=256, verbose=0)
    tell(SEED.value, len(train.labels), EPOCHS.value, accuracy, loss, (start, loaded, fitted))


if __name__ == "__main__":
    app.run(main)
