"""Scores and distances of the study, computed for a source and a target before any training."""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.transferability import pairs
from tl_jax import transferability
from tl_jax.pretrained.network import Pretrained
from tl_jax.tasks import head_init
from tl_jax.tasks.image_classification import ImageClassification
from tl_jax.transferability import _inputs
from tl_jax.transferability.registry import SCORES, SETS, measures
from tl_jax.utils.errors import UserError

SOURCE_EXAMPLES = 500  # of the source's own data, and of the target's, between which distances are taken
IMAGENET_SAMPLE = "imagenet_sample"  # folder of one photo of each class, whose file names begin with its number
MAX_EMBEDDED = 100  # examples at most of a Task2Vec embedding, which takes a backward pass of each

LabelledFeatures = tuple[np.ndarray, np.ndarray]  # features (N, D), labels (N,)


def score_names() -> tuple[str, ...]:
    """Return the columns of the record that hold scores: the higher, the more a source should help."""
    return tuple(name for name, measure in sorted(SCORES.items()) if measure.takes != SETS)


def distance_names() -> tuple[str, ...]:
    """Return the columns that hold minus a distance: all that ``transferability.report`` knows, and Task2Vec."""
    return (*measures(SETS), "task2vec")


class SourceFeatures(NamedTuple):
    """What a source's network sees of a target's parts, and what its own head says of the training part.

    ``images`` are the pictures of the training part, uint8 (N, H, W, 3).
    """

    images: np.ndarray
    train: LabelledFeatures
    validation: LabelledFeatures
    test: LabelledFeatures
    probs: np.ndarray | None


def source_features(
    source: str, weights: str, target: str, data_dir: str, per_class: int, seed: int, tested: int
) -> SourceFeatures:
    """Return what ``source`` sees of the parts that a run with this seed has; at most ``tested`` test examples."""
    net = pairs.load_network(source, weights, seed)
    config = pairs.target_config(target, data_dir, per_class, seed)
    splits = head_init.split_data(config, ImageClassification.load_data(config))
    features, probs = {}, None
    for name in ("train", "validation", "test"):
        images, labels = splits[name].inputs, splits[name].labels
        if name == "test":
            images, labels = images[np.arange(min(tested, len(labels)))], labels[:tested]
        outputs = pairs.network_outputs(net, images)
        features[name] = outputs.features, labels
        probs = outputs.probs if name == "train" else probs
    return SourceFeatures(np.asarray(splits["train"].inputs[:]), **features, probs=probs)


def compute_scores(source: str, weights: str, data_dir: str, features: SourceFeatures, seed: int) -> dict[str, Any]:
    """Return every score and, as minus a distance, every distance; "" where one is not defined.

    Distances are between what the source's network makes of the two sets; for Task2Vec, between what its parameters
    matter to its own task and to the target's, under a logistic probe.
    """
    x, y = features.train
    source_set = source_data(source, weights, data_dir)
    folds = max(2, min(5, int(np.bincount(y).max())))
    report = transferability.report(x, y, features.probs, source_set, jax.random.key(seed), resamples=0, folds=folds)
    values = report.values()
    if source_set is not None:
        target_embedding = task_embedding(
            pairs.load_network(source, weights), features.images, transferability.logistic_probe(x, y)
        )
        values["task2vec"] = transferability.task2vec_distance(
            source_embedding(source, weights, data_dir), target_embedding
        )
    result = {name: values.get(name, math.nan) for name in score_names()}
    result |= {name: -values.get(name, math.nan) for name in distance_names()}
    return {name: "" if math.isnan(value) else value for name, value in result.items()}


@functools.lru_cache(maxsize=8)
def source_data(source: str, weights: str, data_dir: str) -> LabelledFeatures | None:
    """Return features and labels of a source's own data, None where these are not at hand."""
    if source == pairs.RANDOM or (source not in pairs.SYNTHETIC and not data_dir):
        return None
    images, labels = source_images(source, data_dir)
    return pairs.network_outputs(pairs.load_network(source, weights), images).features, labels


@functools.lru_cache(maxsize=8)
def source_embedding(source: str, weights: str, data_dir: str) -> jax.Array:
    """Return what the parameters of a source's network matter to its own task."""
    net = pairs.load_network(source, weights)
    head = net.variables["params"]["head"]
    return task_embedding(
        net, source_images(source, data_dir)[0], transferability.LinearProbe(head["kernel"], head["bias"])
    )


@functools.lru_cache(maxsize=1)
def source_images(source: str, data_dir: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures uint8 (N, H, W, 3) and labels of a source's own data."""
    if source == pairs.IMAGENET:
        folder = Path(data_dir) / IMAGENET_SAMPLE
        files = sorted(folder.glob("*.jpg"))[:: 1000 // SOURCE_EXAMPLES]
        if not files:
            raise UserError(f"{folder}: no photos (.jpg) of ImageNet's classes; put one of each class there")
        return pairs.load_photos(files), np.arange(len(files))
    config = pairs.target_config(source, data_dir, 0, 0)
    train = ImageClassification.load_data(config).train
    rows = _inputs.stratified_rows(np.asarray(train.labels), SOURCE_EXAMPLES)
    return train.inputs[rows], train.labels[rows]


def task_embedding(net: Pretrained, images: np.ndarray, head: transferability.LinearProbe) -> jax.Array:
    """Return the Task2Vec embedding of pictures uint8 (N, H, W, 3) in a network's trunk under a head.

    One label is drawn for each of ``MAX_EMBEDDED`` pictures at even steps.
    """
    images = images[np.linspace(0, len(images) - 1, min(MAX_EMBEDDED, len(images))).astype(int)]
    trunk = {name: leaf for name, leaf in net.variables["params"].items() if name != "head"}
    # All that differs from one source to another is an argument, so that they share a program; sorted, the trunk
    # comes last, and what its entries follow is left out.
    other_params = {"head": tuple(head), "stats": net.variables["batch_stats"]}
    params, inputs = {**other_params, "trunk": trunk}, net.preprocess(images)
    fisher = transferability.task2vec(_make_classify(net.model), params, inputs, jax.random.key(0), draws=1)
    return fisher[sum(leaf.shape[-1] for leaf in jax.tree.leaves(other_params)) :]


@functools.cache
def _make_classify(model: Any) -> Any:
    def classify(params: Any, x: jax.Array) -> jax.Array:
        kernel, bias = params["head"]
        trunk = model.clone(num_classes=0)
        _, outputs = trunk.apply({"params": params["trunk"], "batch_stats": params["stats"]}, x, train=False)
        return outputs["features"] @ kernel + bias[None]

    return classify
