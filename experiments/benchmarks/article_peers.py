"""The article's experiment in Keras on TensorFlow, or in PyTorch, to compare with ``configs/cifar_resnet.py:article``.

    python -m experiments.benchmarks.article_peers --peer=keras --weights=NOTOP.h5 --data_dir=TFDS_FOLDER

Needs requirements-bench.txt. The examples are those of our run with the same seed and number of examples. Keras uses
its own network, frozen layers, pooling, head, optimizer and batches. PyTorch uses equivalents: ResNet50 in Keras'
layout with its weights, frozen in evaluation mode, global average pooling, a new head, Adam, batches of 64. Prints a
line of JSON: test accuracy, loss, seconds and peak memory.
"""

import json
import os
import resource
import time
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from tl_jax.data.dataset import Split

PEER = flags.DEFINE_enum("peer", None, ["keras", "torch"], "Library to run.", required=True)
WEIGHTS = flags.DEFINE_string("weights", None, "ResNet50 without its top, HDF5.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS folder with cifar10.", required=True)
EXAMPLES = flags.DEFINE_integer("examples", 0, "Training examples, sampled by the seed; 0 for all.")
EPOCHS = flags.DEFINE_integer("epochs", 10, "Number of epochs.")
SIZE = flags.DEFINE_integer("size", 32, "Input size in pixels; the 32 pixel images are resized to it.")
TESTS = flags.DEFINE_integer("tests", 0, "Number of test examples; 0 for all.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the examples, the head and the order.")
EPSILON = 1.001e-5
BLOCKS = (3, 4, 6, 3)


class Result(NamedTuple):
    """What a peer came to; ``loaded`` and ``fitted`` are monotonic times, of everything loaded and of the last step."""

    accuracy: float
    loss: float
    loaded: float
    fitted: float


def main(_: list[str]) -> None:
    """Train the head, test it once, and print the line."""
    start = time.monotonic()
    train, test = load_splits()
    trained = {"keras": train_keras, "torch": train_torch}[PEER.value](train, test)
    end = time.monotonic()
    seconds = {"data": trained.loaded - start, "train": trained.fitted - trained.loaded, "eval": end - trained.fitted}
    settings = {"seed": SEED.value, "examples": len(train.labels), "epochs": EPOCHS.value}
    metrics = {"accuracy": trained.accuracy, "loss": trained.loss, "seconds": {**seconds, "total": end - start}}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**settings, **metrics, "peak_memory_bytes": memory}))


def load_splits() -> tuple[Split, Split]:
    """Return the training examples and the test examples of a run with this seed."""
    from tl_jax.data import dataset, tfds

    source = tfds.load("cifar10", DATA_DIR.value)
    train, _ = dataset.split_validation(source.train, 0.0, SEED.value)
    return dataset.subsample_train(train, EXAMPLES.value, 0, 10, SEED.value), source.test


def train_keras(train: Split, test: Split) -> Result:
    """Train in Keras."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    keras.utils.set_random_seed(SEED.value)
    side = SIZE.value
    base = keras.applications.ResNet50(include_top=False, weights=WEIGHTS.value, input_shape=(side, side, 3))
    base.trainable = False
    larger = [] if side == 32 else [keras.layers.Resizing(side, side)]
    model: Any = keras.Sequential(
        [*larger, base, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, "softmax")]
    )
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    loaded = time.monotonic()
    model.fit(train.inputs[:] / np.float32(255), train.labels, batch_size=64, epochs=EPOCHS.value, verbose=2)
    fitted = time.monotonic()
    images, labels = test.inputs[: TESTS.value or None], test.labels[: TESTS.value or None]
    loss, accuracy = model.evaluate(images / np.float32(255), labels, batch_size=256, verbose=0)
    return Result(accuracy, loss, loaded, fitted)


def train_torch(train: Split, test: Split) -> Result:
    """Train in PyTorch."""
    import torch

    torch.manual_seed(SEED.value)
    features, head = frozen_resnet50(), torch.nn.Linear(2048, 10)
    loaded = time.monotonic()
    train_head(features, head, train)
    fitted = time.monotonic()
    return Result(*evaluate_head(features, head, test), loaded, fitted)


def frozen_resnet50():
    """Return the function pictures (N, 3, H, W) -> features (N, 2048), with the weights of the file."""
    import torch
    from torch.nn import functional as F

    from tl_jax import pretrained
    from tl_jax.utils import tree

    net = pretrained.load("resnet50", "keras", WEIGHTS.value, num_classes=0)
    flat = {**tree.flatten(net.variables["params"]), **tree.flatten(net.variables["batch_stats"])}
    leaves = {path: torch.from_numpy(np.array(leaf)) for path, leaf in flat.items()}
    kernels = {path: leaf.permute(3, 2, 0, 1).contiguous() for path, leaf in leaves.items() if leaf.ndim == 4}

    def conv_norm(x, conv, norm, stride=1, pad=0):
        x = F.conv2d(x, kernels[f"{conv}/kernel"], leaves[f"{conv}/bias"], stride, pad)
        mean, var, scale, bias = (leaves[f"{norm}/{name}"] for name in ("mean", "var", "scale", "bias"))
        return F.batch_norm(x, mean, var, scale, bias, eps=EPSILON)

    def features(x):
        x = F.max_pool2d(conv_norm(x, "stem/conv", "stem/bn", 2, 3).relu_(), 3, 2, 1)
        for stage, blocks in enumerate(BLOCKS, start=1):
            for block in range(1, blocks + 1):
                at, stride = f"stage{stage}/block{block}", 2 if stage > 1 and block == 1 else 1
                y = conv_norm(x, f"{at}/conv1", f"{at}/bn1", stride).relu_()
                y = conv_norm(y, f"{at}/conv2", f"{at}/bn2", 1, 1).relu_()
                y = conv_norm(y, f"{at}/conv3", f"{at}/bn3")
                x = conv_norm(x, f"{at}/shortcut_conv", f"{at}/shortcut_bn", stride) if block == 1 else x
                x = (x + y).relu_()
        return x.mean((2, 3))

    return features


def make_batch(split, rows):
    """Return pictures (B, 3, H, W) in [0, 1] and labels (B,)."""
    import torch

    images = torch.from_numpy(split.inputs[rows]).permute(0, 3, 1, 2).float() / 255
    if SIZE.value != 32:
        images = torch.nn.functional.interpolate(images, size=(SIZE.value, SIZE.value), mode="bilinear")
    return images, torch.from_numpy(split.labels[rows]).long()


def train_head(features, head, train) -> None:
    """Train the head."""
    import torch

    optimizer, order = torch.optim.Adam(head.parameters(), 1e-3), np.random.default_rng(SEED.value)
    for epoch in range(EPOCHS.value):
        total, shuffled = 0.0, order.permutation(len(train.labels))
        for rows in np.array_split(shuffled, range(64, len(shuffled), 64)):
            images, labels = make_batch(train, rows)
            with torch.inference_mode():
                x = features(images)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(head(x.clone()), labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1}: loss {total / len(shuffled):.4f}", flush=True)


def evaluate_head(features, head, split) -> tuple[float, float]:
    """Return accuracy and loss."""
    import torch

    hits, losses, examples = 0, 0.0, min(TESTS.value or len(split.labels), len(split.labels))
    with torch.inference_mode():
        for first in range(0, examples, 256):
            images, labels = make_batch(split, np.arange(first, min(first + 256, examples)))
            logits = head(features(images))
            hits += (logits.argmax(1) == labels).sum().item()
            losses += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    return hits / examples, losses / examples


if __name__ == "__main__":
    app.run(main)
