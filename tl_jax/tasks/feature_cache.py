"""Feature cache: outputs of frozen layers, computed once and stored on disk, from which training starts.

The name of an entry is a hash of everything that its values depend on. A cached task takes feature maps, or features of
images or texts, as inputs. Text networks are cached only if the head alone trains.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from tl_jax import __version__
from tl_jax.config.options import Options, option
from tl_jax.data import loader, tokenize
from tl_jax.data.augment import AugmentConfig, augment
from tl_jax.data.dataset import EncodedImages, Images, Split, Subset, is_encoded
from tl_jax.data.tokenize import TokenizedTexts
from tl_jax.models import fold_batch_norm
from tl_jax.models.backbone import FEATURES
from tl_jax.models.registry import MODELS
from tl_jax.tasks import losses
from tl_jax.tasks.losses import Encoder, Inputs, Maps, Network, make_features
from tl_jax.train import sharding
from tl_jax.train.evaluate import extract
from tl_jax.train.logging import say
from tl_jax.train.state import stream_key
from tl_jax.train.step import make_eval_step
from tl_jax.train.task import Task
from tl_jax.transfer.adapters import AdapterConfig, merge
from tl_jax.transfer.freeze import frozen_batch_norms, trainable
from tl_jax.transfer.regularizers import RegularizeConfig
from tl_jax.utils import tree
from tl_jax.utils.disk_cache import DiskCache, code_digest
from tl_jax.utils.download import cache_dir
from tl_jax.utils.plugins import source_digest
from tl_jax.utils.progress import progress_bar
from tl_jax.utils.scaling import SCALINGS


def frozen_endpoint(
    stages: Sequence[str], head_reads: str, mask: Any, frozen_norms: frozenset[str], norms: frozenset[str]
) -> str:
    """Return the last endpoint below which nothing changes during training.

    Args:
        stages: names of the network's stages, input first.
        head_reads: input of the head, ``Backbone.head_input``.
        mask: boolean tree of the parameters, True where a leaf trains.
        frozen_norms, norms: paths of the BatchNorm layers that keep their statistics, and of all.

    Returns:
        "features" if all stages are frozen and the head reads no feature map. Otherwise the last of the leading frozen
        stages, at most the one that the head reads; "" if the first stage trains.
    """
    changing = {path for path, is_trained in tree.flatten(mask).items() if is_trained} | (norms - frozen_norms)
    last_frozen = ""
    for stage in stages:
        if any(path.startswith((f"{stage}/", f"adapter_{stage}/")) for path in changing):
            return last_frozen
        last_frozen = stage
        if stage == head_reads:
            return last_frozen
    return FEATURES


def content_hash(*facts: Any) -> str:
    """Return the SHA-256 of arrays, trees of arrays, and JSON values."""
    sha = hashlib.sha256()
    for fact in facts:
        if isinstance(fact, EncodedImages):
            sha.update(fact.key.encode())
        elif isinstance(fact, Subset) and is_encoded(fact):
            sha.update(content_hash(fact.array, fact.indices).encode())
        elif hasattr(fact, "__array__"):
            array = np.ascontiguousarray(fact)
            sha.update(f"{array.dtype} {array.shape}".encode())
            sha.update(array)  # pyright: ignore[reportArgumentType]  # a buffer in NumPy's stubs from Python 3.12 on
        elif isinstance(fact, Mapping) and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(fact)):
            for path, leaf in sorted(tree.flatten(jax.device_get(fact)).items()):
                sha.update(path.encode() + content_hash(leaf).encode())
        else:
            sha.update(json.dumps(fact, sort_keys=True, default=str).encode())
    return sha.hexdigest()


# An output that costs fewer operations per byte is recomputed, not stored. An estimate.
MIN_FLOPS_PER_BYTE = 1000.0
# On CPU: at 224 pixels, a batch of 32 is as fast as 256 in a quarter of the memory; at 32 pixels, 256 is 1/8 faster.
CPU_BATCH, CPU_BATCH_PIXELS = 32, 2**18
COLLECTIONS = ("params", "batch_stats")


@dataclass(frozen=True)
class CacheConfig(Options):
    """Cache of the outputs of frozen layers."""

    features: str = option(
        "auto", "cache the outputs of frozen first layers if there is no augmentation", ("auto", "off")
    )
    views: int = option(
        0, "augmented views per image to cache and cycle through; 0: new views in each epoch, not cached", low=0
    )
    dir: str = option("", "folder of the feature cache; empty for features/ in the cache folder")
    gigabytes: float = option(8.0, "maximum size of the feature cache in GB", low=0.0)


class FeatureCache:
    """Disk cache of a task's frozen-layer outputs."""

    def __init__(self, config: Any, splits: Mapping[str, Any], regularize: RegularizeConfig):
        self.splits, self.config, self.regularize = splits, config, regularize
        self.network_digest = source_digest(MODELS.module(config.model.name))
        folder = Path(config.cache.dir).expanduser() if config.cache.dir else cache_dir() / "features"
        self.disk_cache = DiskCache(folder, int(config.cache.gigabytes * 1e9))

    @property
    def allowed(self) -> bool:
        """Whether caching is allowed: not on several hosts, which would write the same files, nor for notebook code."""
        return self.config.cache.features == "auto" and jax.process_count() == 1 and self.network_digest is not None

    def task(self, task: Any, variables: Any, phase: Any) -> Task:
        """Return the task that starts at the first layer that ``phase`` trains; ``task`` if caching does not pay."""
        raise NotImplementedError

    def features(self, variables: Any, split: Any) -> np.ndarray:
        """Return the features (N, D) of a split's examples, without augmentation, in order."""
        raise NotImplementedError


class ImageFeatureCache(FeatureCache):
    """Cache of the outputs of the layers below the first trained one."""

    def __init__(self, config: Any, network: Network, splits: Mapping[str, Split], regularize: RegularizeConfig):
        super().__init__(config, splits, regularize)
        self.network, self.augment = network, config.augment

    def possible(self) -> bool:
        """Return whether frozen layers give the same output each time for an image, or for a cached view of it."""
        repeatable_views = self.augment == AugmentConfig() or self.config.cache.views
        regularize, model = self.regularize, self.network.model
        random_loss = (
            regularize.mixup
            or regularize.cutmix
            or regularize.compares_maps
            or regularize.stochastic_norm
            or self.config.pretext.weight
        )
        deterministic = not random_loss and not getattr(model, "drop_path", 0.0)
        return bool(self.allowed and repeatable_views and deterministic and self.config.test_views == 1)

    def features(self, variables: Any, split: Split) -> np.ndarray:
        if self.allowed:
            return np.asarray(FrozenOutputs(self, FEATURES, variables).of_split(split)[:])
        bare = self.network._replace(adapters=AdapterConfig())
        return extract(make_features(bare), variables, loader.eval_batches(split, self.config.eval_batch_size))

    def task(self, task: Any, variables: Any, phase: Any) -> Task:
        views = self.config.cache.views if self.augment != AugmentConfig() else 0
        n = len(self.splits["train"].labels) * max(1, views)
        if not self.possible() or (phase.stop - phase.start) * self.config.batch_size < n:
            return task
        mask = trainable(variables["params"], phase.rules)
        frozen_norms = frozen_batch_norms(mask, variables["batch_stats"], phase.batch_stats)
        norms = frozenset(path.rpartition("/")[0] for path in tree.flatten(variables["batch_stats"]))
        model = self.network.model
        name = frozen_endpoint(model.stage_names(), model.head_input(), mask, frozen_norms, norms)
        outputs = FrozenOutputs(self, name, variables) if name else None
        if outputs is None or not outputs.is_worth_caching(n):
            return task
        network = self.network._replace(model=model.clone(start=name), inputs=Maps())
        train = self.splits["train"]
        images = outputs.of_views(train, views) if views else outputs.of_split(train)
        return task.replace(
            **task.functions(network, AugmentConfig(), self.regularize, None),
            train_batch=loader.Stream(images, train.labels, self.config.seed, self.config.batch_size),
            eval_batches=outputs.batches,
        )


class FrozenOutputs:
    """Outputs of the layers up to ``name``, with fixed weights."""

    def __init__(self, feature_cache: ImageFeatureCache, name: str, variables: Any):
        network = feature_cache.network
        side = cast(Inputs, network.inputs).size  # images of one size only
        self.feature_cache, self.name, self.batch_size = feature_cache, name, feature_cache.config.eval_batch_size
        if jax.default_backend() == "cpu":
            max_batch = max(CPU_BATCH, CPU_BATCH_PIXELS // side**2)
            self.batch_size = sharding.round_up(min(self.batch_size, max_batch))
        stages = network.model.stage_names()
        frozen_stages = stages if name == FEATURES else stages[: stages.index(name) + 1]
        self.network = Network(network.model.clone(num_classes=0, endpoint=frozen_stages[-1]), network.inputs)
        norm_pairs = fold_batch_norm.find_pairs(self.network.model, side)
        frozen_variables = {
            key: {p: v for p, v in variables[key].items() if p.removeprefix("adapter_") in frozen_stages}
            for key in COLLECTIONS
        }
        frozen_pairs = tuple(p for p in norm_pairs if p.conv.partition("/")[0] in frozen_stages)
        self.variables = _make_fold(network.adapters, frozen_pairs)(frozen_variables)
        code = (
            code_digest("models", "data"),
            feature_cache.network_digest,
            SCALINGS[cast(Inputs, network.inputs).scaling],
        )
        facts = (__version__, jax.__version__, *code, repr(self.network), name, self.batch_size)
        self.key = content_hash(facts, self.variables["params"], self.variables["batch_stats"])
        shape = jax.eval_shape(self._step(AugmentConfig()), self.variables, self._shapes())
        self.shape, self.dtype = shape.shape[1:], shape.dtype
        self.computed: dict[int, np.ndarray] = {}  # by id(images), which are hashed once

    def is_worth_caching(self, n: int) -> bool:
        """Return whether caching ``n`` outputs saves more than it costs."""
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        work = sharding.count_flops(self._step(AugmentConfig()), self.variables, self._shapes())
        if work / self.batch_size / size < MIN_FLOPS_PER_BYTE:
            return False
        if n * size > self.feature_cache.disk_cache.max_bytes:
            say(
                f"outputs of {self.name} for {n:,} images need {n * size / 1e9:.1f} GB, more than "
                "config.cache.gigabytes; they are recomputed at each step"
            )
            return False
        return True

    def of_split(self, split: Split) -> np.ndarray | Subset:
        """Return the outputs (N, ...) of a split; those of the full dataset if the split is most of it."""
        images = split.inputs
        if isinstance(images, Subset) and any(
            isinstance(other.inputs, Subset)
            and other.inputs.array is images.array
            and 2 * len(other.inputs) >= len(images.array)
            for other in self.feature_cache.splits.values()
        ):
            return Subset(self._outputs(images.array), images.indices)
        return self._outputs(images)

    def _outputs(self, images: Images) -> np.ndarray:
        if id(images) not in self.computed:
            split = Split(images, np.zeros(len(images), np.int32))  # labels are unused
            make_batches = functools.partial(loader.eval_batches, split, self.batch_size)
            make_rows = lambda: self._rows(make_batches(), AugmentConfig())  # noqa: E731
            self.computed[id(images)] = self._get(content_hash(self.key, images), len(images), make_rows)
        return self.computed[id(images)]

    def of_views(self, split: Split, count: int) -> np.ndarray:
        """Return the outputs (count * N, ...) of augmented views of a split, view by view."""
        augment_config, seed = self.feature_cache.augment, self.feature_cache.config.seed
        key = content_hash(self.key, split.inputs, augment_config.to_dict(), seed, count)
        return self._get(
            key, count * len(split.labels), lambda: self._rows(self._augmented(split, count), augment_config)
        )

    def batches(self, split_name: str) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield the batches of a split, like ``Task.eval_batches``."""
        split = self.feature_cache.splits[split_name]
        return loader.eval_batches(Split(self.of_split(split), split.labels), self.feature_cache.config.eval_batch_size)

    def _get(self, key: str, n: int, make_rows: Any) -> np.ndarray:
        def rows_with_progress() -> Iterator[np.ndarray]:
            say(f"computing outputs of {self.name} for {n:,} images, once ...")
            with progress_bar(total=n, unit="picture", leave=False) as bar:
                for rows in make_rows():
                    yield rows
                    bar.update(len(rows))

        return self.feature_cache.disk_cache.get(key, (n, *self.shape), self.dtype, rows_with_progress)

    def _rows(self, batches: Iterator[Any], augment_config: AugmentConfig) -> Iterator[np.ndarray]:
        """Yield the outputs of batches; the previous output is fetched and written while the next is computed."""
        step, previous = self._step(augment_config), None
        for batch in batches:
            inputs = {name: batch[name] for name in ("inputs", "key") if name in batch}
            out = step(self.variables, sharding.shard_batch(inputs))
            if previous is not None:
                yield np.asarray(previous[0])[previous[1]]
            previous = out, batch["mask"] > 0
        if previous is not None:
            yield np.asarray(previous[0])[previous[1]]

    def _step(self, augment_config: AugmentConfig) -> Any:
        return make_eval_step(make_outputs(self.network, self.name, augment_config))

    def _augmented(self, split: Split, count: int) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield the images once per view, with a key (B, 2) for each batch."""
        stream, number = stream_key(self.feature_cache.config.seed, "views"), 0
        for _ in range(count):
            for batch in loader.eval_batches(split, self.batch_size):
                key = np.asarray(jax.random.key_data(jax.random.fold_in(stream, number)))
                yield {**batch, "key": np.tile(key, (self.batch_size, 1))}
                number += 1

    def _shapes(self) -> dict[str, Any]:
        images = self.feature_cache.splits["train"].inputs
        return {"inputs": jax.ShapeDtypeStruct((self.batch_size, *images.shape[1:]), images.dtype)}


@functools.cache
def make_outputs(network: Network, name: str, augment_config: AugmentConfig):
    """Return the function (folded variables, batch) -> endpoint ``name`` of the images, augmented with their keys."""

    def outputs(variables, batch):
        images = batch["inputs"]
        if augment_config != AugmentConfig():
            images = augment(images, jax.random.wrap_key_data(batch["key"][0]), augment_config)
        with fold_batch_norm.folded_norms(variables["shifts"]):
            return network.predict(variables, images)[1][name]

    return outputs


@functools.cache
def _make_fold(adapters: AdapterConfig, norm_pairs: tuple[fold_batch_norm.ConvNormPair, ...]):
    """Return the jitted function that merges adapters and folds BatchNorm into the variables."""
    return jax.jit(lambda v: fold_batch_norm.fold_variables(norm_pairs, {**v, "params": merge(v["params"], adapters)}))


class TextFeatureCache(FeatureCache):
    """Cache of text features, if only the head trains."""

    def __init__(
        self,
        config: Any,
        encoder: Encoder,
        splits: Mapping[str, TokenizedTexts],
        regularize: RegularizeConfig,
        reads_features: bool,
    ):
        """Set ``reads_features`` if the head reads one vector per text, which can be cached."""
        super().__init__(config, splits, regularize)
        self.encoder, self.reads_features = encoder, reads_features

    def task(self, task: Any, variables: Any, phase: Any) -> Task:
        """Return the task for ``phase``; if only the head trains, the frozen encoder runs without dropout."""
        mask = trainable(variables["params"], phase.rules)
        if frozen_endpoint(self.encoder.model.stage_names(), "", mask, frozenset(), frozenset()) != FEATURES:
            return task
        plain = not (self.regularize.compares_maps or self.config.pretext.weight)
        if self.reads_features and plain and self.allowed:
            return self._cached(task, variables)
        frozen_encoder = self.encoder._replace(frozen=True)
        return task.replace(loss=losses.make_text_loss(frozen_encoder, self.regularize)) if plain else task

    def features(self, variables: Any, split: TokenizedTexts) -> np.ndarray:
        encoder = self.encoder._replace(adapters=AdapterConfig(), frozen=False)
        encoder_params = {name: leaf for name, leaf in variables["params"].items() if name not in ("head", "extra")}
        size = self.config.eval_batch_size
        code = code_digest("models", "data"), self.network_digest
        facts = (__version__, jax.__version__, *code, repr(encoder.model), size)
        ids = [np.concatenate(list(arrays)) for arrays in (split.ids, split.types)]
        key = content_hash(facts, encoder_params, *ids, split.lengths)

        def make_rows():
            say(f"computing features of {len(split.labels):,} texts, once ...")
            features = extract(losses.make_text_features(encoder), variables, tokenize.eval_batches(split, size))
            in_order = np.empty_like(features)
            in_order[split.order()] = features
            yield in_order

        if not self.allowed:
            return next(make_rows())
        return np.asarray(
            self.disk_cache.get(key, (len(split.labels), self.encoder.model.width), np.float32, make_rows)
        )

    def _cached(self, task: Task, variables: Any) -> Task:
        """Return the task with features as inputs."""
        head, size = Network(self.encoder.head, Maps()), self.config.eval_batch_size
        merged = {"params": losses.merged_params(variables["params"], self.encoder.adapters)}
        splits = {
            name: Split(self.features(merged, texts), texts.labels)
            for name, texts in self.splits.items()
            if name != "unlabelled" and len(texts.labels)
        }
        train = splits["train"]
        return task.replace(
            loss=losses.make_loss(head, AugmentConfig(), self.regularize, None),
            metrics=losses.make_metrics(head),
            outputs=losses.make_predict(head),
            test_order=None,
            train_batch=loader.Stream(train.inputs, train.labels, self.config.seed, self.config.batch_size),
            eval_batches=lambda split: loader.eval_batches(splits[split], size),
        )
