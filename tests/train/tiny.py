"""A task small enough to compile in a second: ten numbers in, one of three classes out."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tl_jax.data import loader
from tl_jax.data.tfds import Split
from tl_jax.train.task import Task
from tl_jax.transfer.freeze import RECIPES
from tl_jax.transfer.optimizer import OptimSpec, RateSpec
from tl_jax.transfer.phases import Phase


class Net(nn.Module):
    """A dense layer, a BatchNorm, a dropout and a head."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="trunk")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn")(x)
        end = {"features": nn.Dropout(0.2)(nn.relu(x), deterministic=not train)}
        return nn.Dense(3, name="head")(end["features"]), end


def data(n=45, seed=0):
    """Return three noisy clusters of points (n, 10)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    return Split((3 * np.eye(10)[labels] + rng.normal(size=(n, 10))).astype(np.float32), labels.astype(np.int32))


@functools.cache
def functions(scale=1.0):
    """Return init, loss and metrics; ``scale`` multiplies the loss (not finite: a run that must stop)."""
    net = Net()

    def sums(logits, batch):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]) * scale
        count = batch["mask"].sum()
        hits = (logits.argmax(-1) == batch["label"]) * batch["mask"]
        return {"loss": ((losses * batch["mask"]).sum(), count), "accuracy": (hits.sum(), count)}

    def loss(variables, batch, key):
        rngs = {"dropout": key}
        (logits, _), new = net.apply(variables, batch["inputs"], train=True, mutable=["batch_stats"], rngs=rngs)
        out = sums(logits, batch)
        return out["loss"][0] / out["loss"][1], (new["batch_stats"], out)

    def metrics(variables, batch):
        return sums(net.apply(variables, batch["inputs"])[0], batch)

    return lambda key: net.init(key, jnp.ones((1, 10))), loss, metrics


class Tiny(Task):
    """45 training, 21 validation and 33 test examples."""

    classes = ("a", "b", "c")
    facts = {}

    def __init__(self, seed, scale, train):
        self._init, self.loss, self.metrics = functions(scale)
        self.parts = {"train": train, "validation": data(21, 1), "test": data(33, 2)}
        self.name, self.train_batch = "tiny", loader.Stream(train.inputs, train.labels, seed, 8)
        self.sizes = {name: len(part.labels) for name, part in self.parts.items()}

    def init(self, key):
        return jax.jit(self._init)(key)

    def eval_batches(self, part):
        return loader.eval_batches(self.parts[part], 8)


def task(seed=0, scale=1.0, train=None):
    """Return the tiny task."""
    return Tiny(seed, scale, train or data())


def plan(first=6, second=12, decay=0.1):
    """Return two phases, the head alone and then everything."""
    head = OptimSpec("adam", weight_decay=decay, clip_norm=1.0, batch_norm_momentum=0.0)
    both = OptimSpec("sgd", weight_decay=decay, batch_norm_momentum=0.0)
    return (
        Phase("head", 0, first, RECIPES["head"], head, RateSpec(1e-2, first)),
        Phase("all", first, second, RECIPES["all"], both, RateSpec(1e-2, second - first, schedule="cosine")),
    )
