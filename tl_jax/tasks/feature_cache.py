"""Feature cache: outputs of frozen layers, computed once and kept on disk; training starts from them.

The name of an entry is a hash of everything that its values depend on. The images of a cached task are feature maps.
Text networks are cached if only the head trains.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from tqdm import tqdm

from tl_jax import __version__
from tl_jax.data import loader, tokenize
from tl_jax.data.augment import Augment, augment
from tl_jax.data.dataset import EncodedImages, Images, Split, Subset, is_encoded
from tl_jax.data.tokenize import TokenizedTexts
from tl_jax.models import fold_batch_norm
from tl_jax.models.backbone import FEATURES
from tl_jax.tasks import losses
from tl_jax.tasks.losses import Encoder, Inputs, Maps, Network, make_features
from tl_jax.train import sharding
from tl_jax.train.evaluate import extract
from tl_jax.train.logging import say
from tl_jax.train.state import stream_key
from tl_jax.train.step import make_eval_step
from tl_jax.train.task import Task
from tl_jax.transfer.adapters import Adapters, merge
from tl_jax.transfer.freeze import still_norms, trainable
from tl_jax.transfer.regularizers import Regularize
from tl_jax.utils import tree
from tl_jax.utils.disk_cache import DiskCache, code_digest
from tl_jax.utils.download import cache_dir


def boundary(parts: Sequence[str], head_reads: str, mask: Any, still: frozenset[str], norms: frozenset[str]) -> str:
    """Return the endpoint up to which nothing changes in training.

    Args:
        parts: names of the network's parts from the input on.
        head_reads: what the head needs, ``Backbone.head_input``.
        mask: tree of the parameters, true where a leaf trains.
        still, norms: paths of the BatchNorm layers that keep their statistics, and of all.

    Returns:
        "features" where all parts are frozen and the head needs no map; else the last part of those that are frozen
        from the input on, but none after the one that the head reads; "" where the first part changes.
    """
    trains = {path for path, moves in tree.flatten(mask).items() if moves} | (norms - still)
    frozen = ""
    for part in parts:
        if any(path.startswith((f"{part}/", f"adapter_{part}/")) for path in trains):
            return frozen
        frozen = part
        if part == head_reads:
            return frozen
    return FEATURES


def digest(*facts: Any) -> str:
    """Return a SHA-256 of arrays, trees of them, and whatever ``json`` can write."""
    sha = hashlib.sha256()
    for fact in facts:
        if isinstance(fact, EncodedImages):
            sha.update(fact.key.encode())
        elif isinstance(fact, Subset) and is_encoded(fact):
            sha.update(digest(fact.array, fact.indices).encode())
        elif hasattr(fact, "__array__"):
            array = np.ascontiguousarray(fact)
            sha.update(f"{array.dtype} {array.shape}".encode())
            sha.update(array)  # pyright: ignore[reportArgumentType]  # a buffer in NumPy's types from Python 3.12 on
        elif isinstance(fact, Mapping) and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(fact)):
            for path, leaf in sorted(tree.flatten(jax.device_get(fact)).items()):
                sha.update(path.encode() + digest(leaf).encode())
        else:
            sha.update(json.dumps(fact, sort_keys=True, default=str).encode())
    return sha.hexdigest()


# Operations for each byte of a map below which it is computed again rather than kept and read. An estimate.
LEAST_WORK = 1000.0
# Pictures on a CPU: at 224 pixels 32 are as fast as 256, in a quarter of the memory; at 32 256 are an eighth faster.
AT_ONCE, PIXELS_AT_ONCE = 32, 2**18
KINDS = ("params", "batch_stats")


class Frozen:
    """What of a task can be computed once, and where it is kept."""

    def __init__(
        self, config: Any, network: Network, parts: Mapping[str, Split], how: Regularize, functions: Callable[..., Any]
    ):
        """``functions`` makes those of the task: (network, augmentation, penalties, pretext) -> fields of ``Task``."""
        self.network, self.parts, self.how, self.config, self.functions = network, parts, how, config, functions
        self.augment = Augment(**config.augment.to_dict())
        folder = Path(config.cache.dir).expanduser() if config.cache.dir else cache_dir() / "features"
        self.shelf = DiskCache(folder, int(config.cache.gigabytes * 1e9))

    def possible(self) -> bool:
        """Whether what comes out of frozen layers is the same each time a picture, or a view of it, is met."""
        fixed = self.augment == Augment() or self.config.cache.views
        how, model = self.how, self.network.model
        mixed = how.mixup or how.cutmix or how.compares_maps or how.stochastic_norm or self.config.pretext.weight
        steady = not mixed and not getattr(model, "drop_path", 0.0)
        return bool(self.allowed and fixed and steady and self.config.test_views == 1)

    @property
    def allowed(self) -> bool:
        """Whether anything may be kept; several hosts would write the same files."""
        return self.config.cache.features == "auto" and jax.process_count() == 1

    def features(self, variables: Any, split: Split) -> np.ndarray:
        """Return the features (N, D) of a split's pictures as they are."""
        if self.allowed:
            return np.asarray(Outputs(self, FEATURES, variables).of(split)[:])
        bare = self.network._replace(adapters=Adapters())
        return extract(make_features(bare), variables, loader.eval_batches(split, self.config.eval_batch_size))

    def task(self, task: Task, variables: Any, phase: Any) -> Task:
        """Return the task that starts where ``phase`` starts to train, or ``task`` where nothing is gained."""
        views = self.config.cache.views if self.augment != Augment() else 0
        n = len(self.parts["train"].labels) * max(1, views)
        if not self.possible() or (phase.stop - phase.start) * self.config.batch_size < n:
            return task
        mask = trainable(variables["params"], phase.rules)
        still = still_norms(mask, variables["batch_stats"], phase.batch_stats)
        norms = frozenset(path.rpartition("/")[0] for path in tree.flatten(variables["batch_stats"]))
        model = self.network.model
        name = boundary(model.stage_names(), model.head_input(), mask, still, norms)
        outputs = Outputs(self, name, variables) if name else None
        if outputs is None or not outputs.worth(n):
            return task
        network = self.network._replace(model=model.clone(start=name), inputs=Maps())
        train = self.parts["train"]
        images = outputs.views(train, views) if views else outputs.of(train)
        return task._replace(
            **self.functions(network, Augment(), self.how, None),
            train_batch=loader.Stream(images, train.labels, self.config.seed, self.config.batch_size),
            eval_batches=outputs.batches,
        )


class Outputs:
    """Outputs of the layers up to ``name``, with fixed weights."""

    def __init__(self, frozen: Frozen, name: str, variables: Any):
        network = frozen.network
        side = cast(Inputs, network.inputs).size  # of pictures of one size; no others come here
        self.frozen, self.name, self.batch_size = frozen, name, frozen.config.eval_batch_size
        if jax.default_backend() == "cpu":
            most = max(AT_ONCE, PIXELS_AT_ONCE // side**2)
            self.batch_size = sharding.whole(min(self.batch_size, most))
        parts = network.model.stage_names()
        inside = parts if name == FEATURES else parts[: parts.index(name) + 1]
        self.trunk = Network(network.model.clone(num_classes=0, endpoint=inside[-1]), network.inputs)
        found = fold_batch_norm.find_pairs(self.trunk.model, side)
        kept = {key: {p: v for p, v in variables[key].items() if p.removeprefix("adapter_") in inside} for key in KINDS}
        self.variables = _fold(network.adapters, tuple(p for p in found if p.conv.partition("/")[0] in inside))(kept)
        facts = (__version__, jax.__version__, code_digest("models", "data"), repr(self.trunk), name, self.batch_size)
        self.key = digest(facts, self.variables["params"], self.variables["batch_stats"])
        shape = jax.eval_shape(self._step(Augment()), self.variables, self._shapes())
        self.shape, self.dtype = shape.shape[1:], shape.dtype
        self.found: dict[int, np.ndarray] = {}  # by the identity of the pictures, which are hashed once

    def worth(self, n: int) -> bool:
        """Whether keeping ``n`` of them saves more than it costs."""
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        work = sharding.flops(self._step(Augment()), self.variables, self._shapes())
        if work / self.batch_size / size < LEAST_WORK:
            return False
        if n * size > self.frozen.shelf.max_bytes:
            say(
                f"outputs of {self.name} for {n:,} pictures would take {n * size / 1e9:.1f} GB; "
                "config.cache.gigabytes allows less, so they are computed at each step"
            )
            return False
        return True

    def of(self, split: Split) -> np.ndarray | Subset:
        """Return the outputs (N, ...) of a split, those of a whole set where a part of the task is most of it."""
        images = split.images
        if isinstance(images, Subset) and any(
            isinstance(part.images, Subset)
            and part.images.array is images.array
            and 2 * len(part.images) >= len(images.array)
            for part in self.frozen.parts.values()
        ):
            return Subset(self._outputs(images.array), images.indices)
        return self._outputs(images)

    def _outputs(self, images: Images) -> np.ndarray:
        if id(images) not in self.found:
            split = Split(images, np.zeros(len(images), np.int32))  # nobody reads these labels
            each = functools.partial(loader.eval_batches, split, self.batch_size)
            make = lambda: self._rows(each(), Augment())  # noqa: E731
            self.found[id(images)] = self._get(digest(self.key, images), len(images), make)
        return self.found[id(images)]

    def views(self, split: Split, count: int) -> np.ndarray:
        """Return the outputs (count * N, ...) of augmented views of a split, view by view."""
        how, seed = self.frozen.augment, self.frozen.config.seed
        key = digest(self.key, split.images, how._asdict(), seed, count)
        return self._get(key, count * len(split.labels), lambda: self._rows(self._augmented(split, count), how))

    def batches(self, part: str) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield the batches of a part, as ``Task.eval_batches``."""
        split = self.frozen.parts[part]
        return loader.eval_batches(Split(self.of(split), split.labels), self.frozen.config.eval_batch_size)

    def _get(self, key: str, n: int, make: Any) -> np.ndarray:
        def told() -> Iterator[np.ndarray]:
            say(f"computing outputs of {self.name} for {n:,} pictures, once ...")
            with tqdm(total=n, unit="picture", dynamic_ncols=True, disable=None, leave=False) as bar:
                for rows in make():
                    yield rows
                    bar.update(len(rows))

        return self.frozen.shelf.get(key, (n, *self.shape), self.dtype, told)

    def _rows(self, each: Iterator[Any], how: Augment) -> Iterator[np.ndarray]:
        """Yield the outputs of batches; while one is computed, that of the one before is fetched and written."""
        step, before = self._step(how), None
        for batch in each:
            seen = {name: batch[name] for name in ("image", "key") if name in batch}
            out = step(self.variables, sharding.put(seen))
            if before is not None:
                yield np.asarray(before[0])[before[1]]
            before = out, batch["mask"] > 0
        if before is not None:
            yield np.asarray(before[0])[before[1]]

    def _step(self, how: Augment) -> Any:
        return make_eval_step(make_outputs(self.trunk, self.name, how))

    def _augmented(self, split: Split, count: int) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield the pictures as often as there are views, with a key (B, 2) for each batch."""
        stream, number = stream_key(self.frozen.config.seed, "views"), 0
        for _ in range(count):
            for batch in loader.eval_batches(split, self.batch_size):
                key = np.asarray(jax.random.key_data(jax.random.fold_in(stream, number)))
                yield {**batch, "key": np.tile(key, (self.batch_size, 1))}
                number += 1

    def _shapes(self) -> dict[str, Any]:
        images = self.frozen.parts["train"].images
        return {"image": jax.ShapeDtypeStruct((self.batch_size, *images.shape[1:]), images.dtype)}


@functools.cache
def make_outputs(trunk: Network, name: str, how: Augment):
    """Return the function (folded variables, batch) -> endpoint ``name`` of its pictures, augmented with its key."""

    def outputs(variables, batch):
        images = batch["image"]
        if how != Augment():
            images = augment(images, jax.random.wrap_key_data(batch["key"][0]), how)
        with fold_batch_norm.folded_norms(variables["shifts"]):
            return trunk.predict(variables, images)[1][name]

    return outputs


@functools.cache
def _fold(how: Adapters, found: tuple[fold_batch_norm.ConvNormPair, ...]):
    """Return the jitted function variables -> the same with adapters merged and BatchNorm folded."""
    return jax.jit(lambda v: fold_batch_norm.fold_variables(found, {**v, "params": merge(v["params"], how)}))


class FrozenText:
    """What of a text task can be computed once, and where it is kept."""

    def __init__(self, config: Any, encoder: Encoder, parts: Mapping[str, TokenizedTexts], how: Regularize):
        self.encoder, self.parts, self.how, self.config = encoder, parts, how, config
        folder = Path(config.cache.dir).expanduser() if config.cache.dir else cache_dir() / "features"
        self.shelf = DiskCache(folder, int(config.cache.gigabytes * 1e9))

    def task(self, task: Task, variables: Any, phase: Any) -> Task:
        """Return the task as ``phase`` sees it; where only the head trains, nothing is dropped below it."""
        mask = trainable(variables["params"], phase.rules)
        if boundary(self.encoder.model.stage_names(), "", mask, frozenset(), frozenset()) != FEATURES:
            return task
        plain = not (self.how.compares_maps or self.config.pretext.weight)
        if self.config.task == "text" and plain and self.config.cache.features == "auto" and jax.process_count() == 1:
            return self._cached(task, variables)
        still = self.encoder._replace(still=True)
        return task._replace(loss=losses.make_text_loss(still, self.how)) if plain else task

    def features(self, variables: Any, texts: TokenizedTexts) -> np.ndarray:
        """Return the features (N, D) of texts, in their order."""
        encoder = self.encoder._replace(adapters=Adapters(), still=False)
        below = {name: leaf for name, leaf in variables["params"].items() if name not in ("head", "extra")}
        size = self.config.eval_batch_size
        facts = (__version__, jax.__version__, code_digest("models", "data"), repr(encoder.model), size)
        ids = [np.concatenate(list(each)) for each in (texts.ids, texts.types)]
        key = digest(facts, below, *ids, texts.lengths)

        def make():
            say(f"computing features of {len(texts.labels):,} texts, once ...")
            found = extract(losses.make_text_features(encoder), variables, tokenize.eval_batches(texts, size))
            back = np.empty_like(found)
            back[texts.order()] = found
            yield back

        return np.asarray(self.shelf.get(key, (len(texts.labels), self.encoder.model.width), np.float32, make))

    def _cached(self, task: Task, variables: Any) -> Task:
        """Return the task whose "pictures" are features."""
        head, size = Network(self.encoder.head, Maps()), self.config.eval_batch_size
        merged = {"params": losses.plain(variables["params"], self.encoder.adapters)}
        parts = {
            name: Split(self.features(merged, texts), texts.labels)
            for name, texts in self.parts.items()
            if name != "unlabelled" and len(texts.labels)
        }
        train = parts["train"]
        return task._replace(
            loss=losses.make_loss(head, Augment(), self.how, None),
            metrics=losses.make_metrics(head),
            predict=losses.make_predict(head),
            details=functools.partial(task.details, rows=None) if task.details else None,
            train_batch=loader.Stream(train.images, train.labels, self.config.seed, self.config.batch_size),
            eval_batches=lambda part: loader.eval_batches(parts[part], size),
        )
