"""Text networks of which the head alone trains: what lies below it runs once, or as in evaluation."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tl_jax import __version__
from tl_jax.data import batches, token_batches
from tl_jax.data.augment import Augment
from tl_jax.data.pictures import Split
from tl_jax.data.token_batches import Texts
from tl_jax.fetch import cache_dir
from tl_jax.models.backbone import FEATURES
from tl_jax.shelf import Shelf, code_digest
from tl_jax.task import Task
from tl_jax.tasks import objectives, text_objectives
from tl_jax.tasks.objectives import Maps, Network
from tl_jax.tasks.text_objectives import Encoder
from tl_jax.train.log import say
from tl_jax.train.metrics import extract
from tl_jax.transfer.adapters import Adapters
from tl_jax.transfer.feature_cache import boundary, digest
from tl_jax.transfer.partition import trainable
from tl_jax.transfer.penalties import Regularize


class Frozen:
    """What of a text task can be computed once, and where it is kept."""

    def __init__(self, config: Any, encoder: Encoder, parts: Mapping[str, Texts], how: Regularize):
        self.encoder, self.parts, self.how, self.config = encoder, parts, how, config
        folder = Path(config.cache.dir).expanduser() if config.cache.dir else cache_dir() / "features"
        self.shelf = Shelf(folder, int(config.cache.gigabytes * 1e9))

    def task(self, task: Task, variables: Any, phase: Any) -> Task:
        """Return the task as ``phase`` sees it; where only the head trains, nothing is dropped below it."""
        mask = trainable(variables["params"], phase.rules)
        if boundary(self.encoder.model.part_names(), "", mask, frozenset(), frozenset()) != FEATURES:
            return task
        plain = not (self.how.compares_maps or self.config.pretext.weight)
        if self.config.task == "text" and plain and self.config.cache.features == "auto" and jax.process_count() == 1:
            return self._cached(task, variables)
        still = self.encoder._replace(still=True)
        return task._replace(loss=text_objectives.make_loss(still, self.how)) if plain else task

    def features(self, variables: Any, texts: Texts) -> np.ndarray:
        """Return the features (N, D) of texts, in their order."""
        encoder = self.encoder._replace(adapters=Adapters(), still=False)
        below = {name: leaf for name, leaf in variables["params"].items() if name not in ("head", "extra")}
        size = self.config.eval_batch_size
        facts = (__version__, jax.__version__, code_digest("models", "data"), repr(encoder.model), size)
        ids = [np.concatenate(list(each)) for each in (texts.ids, texts.types)]
        key = digest(facts, below, *ids, texts.lengths)

        def make():
            say(f"computing features of {len(texts.labels):,} texts, once ...")
            found = extract(text_objectives.make_features(encoder), variables, token_batches.eval_batches(texts, size))
            back = np.empty_like(found)
            back[texts.order()] = found
            yield back

        return np.asarray(self.shelf.get(key, (len(texts.labels), self.encoder.model.width), np.float32, make))

    def _cached(self, task: Task, variables: Any) -> Task:
        """Return the task whose "pictures" are features."""
        head, size = Network(self.encoder.head, Maps()), self.config.eval_batch_size
        merged = {"params": objectives.plain(variables["params"], self.encoder.adapters)}
        parts = {
            name: Split(self.features(merged, texts), texts.labels)
            for name, texts in self.parts.items()
            if name != "unlabelled" and len(texts.labels)
        }
        train = parts["train"]
        return task._replace(
            loss=objectives.make_loss(head, Augment(), self.how, None),
            metrics=objectives.make_metrics(head),
            predict=objectives.make_predict(head),
            details=functools.partial(task.details, rows=None) if task.details else None,
            train_batch=batches.Stream(train.images, train.labels, self.config.seed, self.config.batch_size),
            eval_batches=lambda part: batches.eval_batches(parts[part], size),
        )
