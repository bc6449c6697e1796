"""Benchmark process of one network in one library: tl_jax, PyTorch, transformers or Keras on TensorFlow.

Each library runs in its own process, since they would compete for threads and memory:

    python -m experiments.benchmarks.peers --peer=torch --network=resnet50 --size=32 --batch=64

The process prints ``ready``. Then for each input line ``forward N`` or ``step N`` it prints the seconds of N calls.
``forward`` is evaluation with fixed weights, ``step`` a training step of all of them with Adam. Weights and images are
random. PyTorch uses a GPU if available; ``torch_compile`` is channels last and compiled. ``bert_base`` takes texts of
``--size`` tokens and has a head of two classes, with transformers as the peer. Both train it with the published
dropout. transformers uses its default attention (PyTorch's fused one), autocast for bfloat16 and the fused Adam on a
GPU. The peers need requirements-bench.txt.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import app, flags

from experiments.benchmarks.turns import serve_calls

FLAGS = flags.FLAGS
IMAGE_CLASSES, TEXT_CLASSES = 10, 2
Calls = Mapping[str, Callable[[], object]]  # each waits until its work is done


def define_flags() -> None:
    """Define the flags of the command; not on import, because networks.py has some of the same names."""
    libraries = ["tl_jax", "torch", "torch_channels_last", "torch_compile", "keras"]
    flags.DEFINE_enum("peer", "tl_jax", libraries, "Library to run.")
    flags.DEFINE_string("network", "resnet50", "Network to run.")
    flags.DEFINE_integer("size", 32, "Image size in pixels, or tokens per text.")
    flags.DEFINE_integer("batch", 64, "Batch size.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Computation dtype; parameters are float32.")


def main(_: list[str]) -> None:
    """Answer."""
    serve_calls(make_calls)


def make_calls() -> Mapping[str, Callable[[int], object]]:
    """Build what is asked for."""
    single_calls = _text_calls() if FLAGS.network == "bert_base" else _image_calls()
    return {name: repeat_call(call) for name, call in single_calls.items()}


def repeat_call(call: Callable[[], object]) -> Callable[[int], object]:
    """Return what makes a call so and so often."""

    def repeat(count: int) -> None:
        for _ in range(count):
            call()

    return repeat


def _image_calls() -> Calls:
    images = np.random.default_rng(0).standard_normal((FLAGS.batch, FLAGS.size, FLAGS.size, 3)).astype(np.float32)
    labels = np.arange(FLAGS.batch, dtype=np.int32) % IMAGE_CLASSES
    make = {"tl_jax": _tl_jax_image_calls, "keras": _keras_image_calls}.get(FLAGS.peer, _torch_image_calls)
    return make(FLAGS.network, images, labels)


def _tl_jax_image_calls(name: str, images: np.ndarray, labels: np.ndarray) -> Calls:
    import jax
    import jax.numpy as jnp

    from tl_jax import models
    from tl_jax.data.augment import AugmentConfig
    from tl_jax.models import fold_batch_norm
    from tl_jax.tasks.losses import Maps, Network, make_loss
    from tl_jax.train import sharding
    from tl_jax.train.state import TrainState
    from tl_jax.train.step import make_optimizer_init, make_train_step
    from tl_jax.transfer.freeze import RECIPES
    from tl_jax.transfer.optimizer import OptimSpec
    from tl_jax.transfer.regularizers import RegularizeConfig

    options = {"fc": False} if name.startswith("vgg") else {}
    model = models.create(name, IMAGE_CLASSES, dtype=jnp.dtype(FLAGS.dtype), **options)
    shape = (1, max(FLAGS.size, model.min_size), max(FLAGS.size, model.min_size), 3)
    variables = dict(jax.jit(model.init)(jax.random.key(0), jnp.zeros(shape)))
    variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    batch = sharding.shard_batch({"inputs": images, "label": labels, "mask": np.ones(len(labels), np.float32)})
    trunk = model.clone(num_classes=0)
    pairs = fold_batch_norm.find_pairs(trunk, FLAGS.size)
    folded = jax.jit(lambda v: fold_batch_norm.fold_variables(pairs, v))(variables)

    @jax.jit
    def forward(variables, x):
        with fold_batch_norm.folded_norms(variables["shifts"]):
            return trunk.apply({k: variables[k] for k in ("params", "batch_stats")}, x, train=False)[0]

    network, optim, rules = Network(model, Maps()), OptimSpec("adam"), RECIPES["all"]
    step = make_train_step(make_loss(network, AugmentConfig(), RegularizeConfig(), None), optim, rules, "auto")
    params = variables["params"]
    state = TrainState(
        jnp.zeros((), jnp.int32), params, variables["batch_stats"], make_optimizer_init(optim, rules)(params)
    )
    holder = {"state": sharding.replicate(jax.tree.map(jnp.copy, state))}
    key, rate = (sharding.replicate(v) for v in (jax.random.key(0), jnp.float32(1e-4)))

    def train():
        holder["state"], row = step(holder["state"], batch, key, rate)
        jax.block_until_ready((holder["state"], row))

    x = jnp.asarray(images)
    return {"forward": lambda: forward(folded, x).block_until_ready(), "step": train}


def _torch_image_calls(name: str, images: np.ndarray, labels: np.ndarray) -> Calls:
    import torch
    from torch import nn

    from tests.references.torch_models import MODELS

    torch.Tensor.relu = torch.Tensor.relu_  # in place, as torchvision's networks have it
    layout: dict[str, Any] = {} if FLAGS.peer == "torch" else {"memory_format": torch.channels_last}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trunk: Any = MODELS[name]()
    if name.startswith("vgg"):
        for layer in trunk.features:
            layer.inplace = True
        trunk = trunk.features  # without the hidden layers, as the others
    if hasattr(trunk, "AuxLogits"):
        trunk.AuxLogits = nn.Identity()
    trunk = trunk.to(device, **layout)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device, **layout)
    y = torch.from_numpy(labels).long().to(device)

    def features():
        with torch.autocast(device, torch.bfloat16, enabled=FLAGS.dtype == "bfloat16"):
            out = trunk(x)
        return (out[1]["features"] if isinstance(out, tuple) else out.mean(dim=(2, 3))).float()

    head = nn.Linear(features().shape[1], IMAGE_CLASSES).to(device)
    optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], 1e-4)
    if FLAGS.peer == "torch_compile":
        features = torch.compile(features)

    def forward():
        trunk.eval()
        with torch.inference_mode():
            features()
        wait()

    def step():
        trunk.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features()), y).backward()
        optimizer.step()
        wait()

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    return {"forward": forward, "step": step}


def _keras_image_calls(name: str, images: np.ndarray, labels: np.ndarray) -> Calls:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    makers = {
        "resnet50": "ResNet50", "vgg16": "VGG16", "vgg19": "VGG19", "inception_v3": "InceptionV3",
        "mobilenet_v2": "MobileNetV2",
    }  # fmt: skip
    trunk = getattr(keras.applications, makers[name])(include_top=False, weights=None, input_shape=images.shape[1:])
    pooled = keras.layers.GlobalAveragePooling2D()
    model: Any = keras.Sequential([trunk, pooled, keras.layers.Dense(IMAGE_CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-4), loss=loss, jit_compile=False)  # XLA's step is slower here
    x, y = tf.constant(images), tf.constant(labels)
    forward = tf.function(lambda: pooled(trunk(x, training=False)))
    return {"forward": lambda: forward().numpy(), "step": lambda: model.train_on_batch(x, y)}


def _text_calls() -> Calls:
    return _tl_jax_text_calls() if FLAGS.peer == "tl_jax" else _transformers_text_calls()


def make_text_batch() -> dict[str, np.ndarray]:
    """Return texts of random tokens without padding, with labels."""
    ids = np.random.default_rng(0).integers(1000, 30000, (FLAGS.batch, FLAGS.size)).astype(np.int32)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    labels = np.arange(FLAGS.batch, dtype=np.int32) % TEXT_CLASSES
    return {**inputs, "label": labels, "mask": np.ones(FLAGS.batch, np.float32)}


def make_bert(dtype: str):
    """Return BERT-base with a head."""
    import jax.numpy as jnp

    from tl_jax.models.bert import Bert

    return Bert(TEXT_CLASSES, dtype=jnp.dtype(dtype))


def _tl_jax_text_calls() -> Calls:
    import jax
    import jax.numpy as jnp

    from tl_jax.pretrained.huggingface import initializer
    from tl_jax.tasks.losses import Encoder, make_text_loss
    from tl_jax.train import sharding
    from tl_jax.train.state import TrainState
    from tl_jax.train.step import make_optimizer_init, make_train_step
    from tl_jax.transfer.freeze import RECIPES
    from tl_jax.transfer.optimizer import OptimSpec
    from tl_jax.transfer.regularizers import RegularizeConfig

    model = make_bert(FLAGS.dtype)
    variables = initializer(model)(jax.random.key(0))
    batch = sharding.shard_batch(make_text_batch())
    optim, rules = OptimSpec("adam", batch_norm_momentum=0.0), RECIPES["all"]
    step = make_train_step(make_text_loss(Encoder(model), RegularizeConfig()), optim, rules, "auto")
    params = variables["params"]
    state = TrainState(jnp.zeros((), jnp.int32), params, {}, make_optimizer_init(optim, rules)(params))
    holder = {"state": sharding.replicate(jax.tree.map(jnp.copy, state))}
    key, rate = (sharding.replicate(v) for v in (jax.random.key(0), jnp.float32(1e-5)))
    tokens = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    forward = jax.jit(lambda variables, tokens: model.apply(variables, **tokens, train=False)[0])

    def train():
        holder["state"], row = step(holder["state"], batch, key, rate)
        jax.block_until_ready((holder["state"], row))

    return {"forward": lambda: forward(variables, tokens).block_until_ready(), "step": train}


def _transformers_text_calls() -> Calls:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config: Any = BertConfig()
    config.num_labels = TEXT_CLASSES
    model: Any = BertForSequenceClassification(config)
    model = model.to(device)
    batch = {name: torch.from_numpy(value).long().to(device) for name, value in make_text_batch().items()}
    batch.pop("mask")
    labels = batch.pop("label")
    optimizer = torch.optim.Adam(model.parameters(), 1e-5, fused=device == "cuda")
    run = torch.compile(model) if FLAGS.peer == "torch_compile" else model

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        model.eval()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=FLAGS.dtype == "bfloat16"):
            run(**batch)
        wait()

    def step():
        model.train()
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=FLAGS.dtype == "bfloat16"):
            loss = run(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        wait()

    return {"forward": forward, "step": step}


if __name__ == "__main__":
    define_flags()
    with contextlib.suppress(KeyboardInterrupt):
        app.run(main)
