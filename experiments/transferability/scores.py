"""What is known about a source and a target before anything is trained: the scores and distances of the study."""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.transferability import pairs
from tl_jax import transferability
from tl_jax.pretrained.network import Pretrained
from tl_jax.tasks import head_init, image_classification
from tl_jax.transferability import _inputs, probes
from tl_jax.transferability.report import DATASET_DISTANCES, FEATURE_SCORES, MOMENT_SCORES, PROBABILITY_SCORES
from tl_jax.utils.errors import UserError

SOURCE_EXAMPLES = 500  # of the source's own data, and of the target's, between which distances are taken
IMAGENET_SAMPLE = "imagenet_sample"  # folder of one photo of each class, whose file names begin with its number
# Columns of the record: the higher, the more a source should help. All that transferability.report knows, and Task2Vec.
SCORES = (*MOMENT_SCORES, *FEATURE_SCORES, *PROBABILITY_SCORES, *probes.CLASSIFIERS)
DISTANCES = (*DATASET_DISTANCES, "task2vec")
EMBEDDED = 100  # examples at most of a Task2Vec embedding, which takes a backward pass of each

Part = tuple[np.ndarray, np.ndarray]  # features (N, D), labels (N,)


class Look(NamedTuple):
    """What a source's network sees of a target's parts, and what its own head says of the training part.

    ``images`` are the pictures of the training part, uint8 (N, H, W, 3).
    """

    images: np.ndarray
    train: Part
    validation: Part
    test: Part
    probs: np.ndarray | None


def look(source: str, weights: str, target: str, data_dir: str, per_class: int, seed: int, tested: int) -> Look:
    """Return what ``source`` sees of the parts that a run with this seed has; at most ``tested`` test examples."""
    net = pairs.network(source, weights, seed)
    config = pairs.target_config(target, data_dir, per_class, seed)
    parts = head_init.cut(config, image_classification.load_source(config, config.input.size))
    found, probs = {}, None
    for name in ("train", "validation", "test"):
        images, labels = parts[name].images, parts[name].labels
        if name == "test":
            images, labels = images[np.arange(min(tested, len(labels)))], labels[:tested]
        seen = pairs.see(net, images)
        found[name] = seen.features, labels
        probs = seen.probs if name == "train" else probs
    return Look(np.asarray(parts["train"].images[:]), **found, probs=probs)


def scores(source: str, weights: str, data_dir: str, seen: Look, seed: int) -> dict[str, Any]:
    """Return every score and, as minus a distance, every distance; "" where one is not defined.

    Distances are between what the source's network makes of the two sets; for Task2Vec, between what its parameters
    matter to its own task and to the target's, under a logistic probe.
    """
    x, y = seen.train
    own = own_data(source, weights, data_dir)
    folds = max(2, min(5, int(np.bincount(y).max())))
    report = transferability.report(x, y, seen.probs, own, jax.random.key(seed), resamples=0, folds=folds)
    values = report.values()
    if own is not None:
        there = embedding(pairs.network(source, weights), seen.images, transferability.logistic_probe(x, y))
        values["task2vec"] = transferability.task2vec_distance(own_embedding(source, weights, data_dir), there)
    found = {name: values.get(name, math.nan) for name in SCORES}
    found |= {name: -values.get(name, math.nan) for name in DISTANCES}
    return {name: "" if math.isnan(value) else value for name, value in found.items()}


@functools.lru_cache(maxsize=8)
def own_data(source: str, weights: str, data_dir: str) -> Part | None:
    """Return features and labels of a source's own data, None where these are not at hand."""
    if source == pairs.RANDOM or (source not in pairs.DRAWN and not data_dir):
        return None
    images, labels = own_pictures(source, data_dir)
    return pairs.see(pairs.network(source, weights), images).features, labels


@functools.lru_cache(maxsize=8)
def own_embedding(source: str, weights: str, data_dir: str) -> jax.Array:
    """Return what the parameters of a source's network matter to its own task."""
    net = pairs.network(source, weights)
    head = net.variables["params"]["head"]
    return embedding(net, own_pictures(source, data_dir)[0], transferability.LinearProbe(head["kernel"], head["bias"]))


@functools.lru_cache(maxsize=1)
def own_pictures(source: str, data_dir: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures uint8 (N, H, W, 3) and labels of a source's own data."""
    if source == pairs.IMAGENET:
        folder = Path(data_dir) / IMAGENET_SAMPLE
        files = sorted(folder.glob("*.jpg"))[:: 1000 // SOURCE_EXAMPLES]
        if not files:
            raise UserError(f"{folder}: no photos (.jpg) of ImageNet's classes; put one of each class there")
        return pairs.photos(files), np.arange(len(files))
    config = pairs.target_config(source, data_dir, 0, 0)
    train = image_classification.load_source(config, config.input.size).train
    rows = _inputs.stratified_rows(np.asarray(train.labels), SOURCE_EXAMPLES)
    return train.images[rows], train.labels[rows]


def embedding(net: Pretrained, images: np.ndarray, head: transferability.LinearProbe) -> jax.Array:
    """Return the Task2Vec embedding of pictures uint8 (N, H, W, 3) in a network's trunk under a head.

    One label is drawn for each of ``EMBEDDED`` pictures at even steps.
    """
    images = images[np.linspace(0, len(images) - 1, min(EMBEDDED, len(images))).astype(int)]
    trunk = {name: leaf for name, leaf in net.variables["params"].items() if name != "head"}
    # All that differs from one source to another is an argument, so that they share a program; sorted, the trunk
    # comes last, and what its entries follow is left out.
    rest = {"head": tuple(head), "stats": net.variables["batch_stats"]}
    params, inputs = {**rest, "trunk": trunk}, net.preprocess(images)
    found = transferability.task2vec(_classify(net.model), params, inputs, jax.random.key(0), draws=1)
    return found[sum(leaf.shape[-1] for leaf in jax.tree.leaves(rest)) :]


@functools.cache
def _classify(model: Any) -> Any:
    def classify(params: Any, x: jax.Array) -> jax.Array:
        kernel, bias = params["head"]
        trunk = model.clone(num_classes=0)
        _, end = trunk.apply({"params": params["trunk"], "batch_stats": params["stats"]}, x, train=False)
        return end["features"] @ kernel + bias[None]

    return classify
