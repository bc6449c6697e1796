"""Image classification: a pretrained (or random) network, a new head, pictures with one label each."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tl_jax import pretrained
from tl_jax.data import batches, preprocess, sources, splits
from tl_jax.data.augment import Augment, augment
from tl_jax.errors import UserError
from tl_jax.network import Pretrained, draw_heads, initializer, with_head
from tl_jax.task import Task
from tl_jax.train.log import say

AUXILIARY = 0.4  # share of the auxiliary head's loss, as torchvision's training recipe has it


class Inputs(NamedTuple):
    """How stored pictures become network inputs: side in pixels, centre crop, resize method, key into ``SCALINGS``."""

    channels: int
    size: int
    crop: float
    interpolation: str
    scaling: str

    def __call__(self, images: jax.Array) -> jax.Array:
        """Turn (N, H, W, C) pixels into (N, size, size, channels) network inputs."""
        images = preprocess.channels(images, self.channels)
        return preprocess.scale(preprocess.fit(images, self.size, self.crop, self.interpolation), self.scaling)


def make(config: Any) -> Task:
    """Build the task that ``config`` describes."""
    drawn = config.init.source == "random"
    net = None if drawn else load_network(config)  # before the data are read: wrong weights should fail at once
    spec = net.spec if net else pretrained.spec_of(config.model.name, config.init.layout)
    inputs = Inputs(
        net.model.channels if net else config.model.channels,
        config.input.size or spec.image_size,
        config.input.crop,
        config.input.interpolation or spec.interpolation,
        spec.scaling if config.input.scaling == "spec" else config.input.scaling,
    )
    source = load_source(config, inputs.size)
    classes = config.model.num_classes or len(source.classes)
    if classes != len(source.classes):
        raise UserError(
            f"config.model.num_classes={classes}, but {source.name} has {len(source.classes)} classes; "
            "leave it at 0 to take the number from the data"
        )
    net = with_head(net, classes, config.init.head) if net else draw_network(config, classes)
    for note in net.notes:
        say(note)
    parts = cut(config, source)
    how = Augment(**config.augment.to_dict())
    return Task(
        name=f"{config.model.name} on {source.name}",
        classes=source.classes,
        init=functools.partial(init, net),
        loss=make_loss(net.model, inputs, how, config.loss.label_smoothing),
        metrics=make_metrics(net.model, inputs),
        features=make_features(net.model, inputs),
        train_batch=functools.partial(batches.train_batch, parts["train"], config.seed, config.batch_size),
        eval_batches=lambda part: batches.eval_batches(parts[part], config.eval_batch_size),
        sizes={name: len(part.labels) for name, part in parts.items()},
        facts={
            "weights": str(net.path or "random"),
            "weights_sha256": net.sha256,
            "data": source.name,
            "tested": source.tested,
            "input": inputs._asdict(),
            "new_head": net.new_head,
            "spec": net.spec.to_dict(),
        },
    )


def load_source(config: Any, size: int) -> sources.Source:
    """Load the data set of ``config``, or draw the generator's pictures where ``data.generate`` says so."""
    drawn = config.data.generate and not config.data.dir
    return sources.load("gratings" if drawn else config.data.name, config.data.dir, size)


def cut(config: Any, source: sources.Source) -> dict[str, sources.Split]:
    """Return the parts ``train``, ``validation`` and ``test`` that ``config.data`` asks for."""
    data, seed = config.data, config.seed
    train, validation = splits.cut_validation(source.train, data.validation, seed)
    train = splits.thin(train, data.train_examples, data.per_class, len(source.classes), seed)
    examples = min(data.test_examples or len(source.test.labels), len(source.test.labels))
    return {"train": train, "validation": validation, "test": splits.take(source.test, np.arange(examples))}


def load_network(config: Any) -> Pretrained:
    """Read the network of ``config`` with the head that the file has, where that is to be kept."""
    name, source, path = config.model.name, config.init.source, config.init.path or None
    return pretrained.load(name, source, path, head=config.init.head, **model_options(config))


def draw_network(config: Any, classes: int) -> Pretrained:
    """Return the network of ``config`` with random weights."""
    return pretrained.random(config.model.name, classes, config.init.layout, **model_options(config))


def model_options(config: Any) -> dict[str, Any]:
    """Return the attributes of the model that ``config`` sets; linen needs tuples where JSON and flags give lists."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in config.model.options.to_dict().items()}
    options |= {"dtype": jnp.dtype(config.model.dtype), "endpoint": config.model.endpoint}
    return options | ({"channels": config.model.channels} if config.model.channels != 3 else {})


def init(net: Pretrained, key: jax.Array) -> Mapping[str, Any]:
    """Return the network's variables; what was not loaded is drawn from ``key``."""
    if net.path is None:
        return initializer(net.model)(key)
    return draw_heads(net, key) if net.new_head else net.variables


# The factories are cached on what they are made from, so that runs which differ in their seed share compiled code.
@functools.cache
def make_loss(model: nn.Module, inputs: Inputs, how: Augment, label_smoothing: float):
    """Return the training loss: augmented pictures, softmax cross-entropy in nats, mean over unmasked examples."""

    def loss(variables, batch, key):
        images = inputs(augment(batch["image"], key, how))
        rngs = {"dropout": jax.random.fold_in(key, 2**31 - 1)}  # augment splits the key: numbers from 0 on are taken
        (logits, end), new = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], logits.shape[-1]), label_smoothing)
        losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
        if "aux_logits" in end:
            losses += AUXILIARY * optax.softmax_cross_entropy(end["aux_logits"], targets)
        sums = _sums(losses, logits, batch)
        total, count = sums["loss"]
        return total / count, (new.get("batch_stats", {}), sums)

    return loss


@functools.cache
def make_metrics(model: nn.Module, inputs: Inputs):
    """Return the evaluation function: sums and counts of loss (nats) and accuracy over unmasked examples."""

    def metrics(variables, batch):
        logits, _ = model.apply(variables, inputs(batch["image"]), train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["label"])
        return _sums(losses, logits, batch)

    return metrics


@functools.cache
def make_features(model: nn.Module, inputs: Inputs):
    """Return the function (variables, batch) -> features (N, D)."""

    def features(variables, batch):
        return model.apply(variables, inputs(batch["image"]), train=False)[1]["features"]

    return features


def _sums(losses, logits, batch):
    hits = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
    mask = batch["mask"]
    count = mask.sum()
    return {"loss": ((losses * mask).sum(), count), "accuracy": ((hits * mask).sum(), count)}
