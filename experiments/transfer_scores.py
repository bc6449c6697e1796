"""What is known about a source and a target before anything is trained: the scores and distances of the study."""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import transfer_pairs
from tl_jax import distance
from tl_jax.distance import checks
from tl_jax.tasks import image

SOURCE_EXAMPLES = 500  # of the source's own data, and of the target's, between which distances are taken
IMAGENET_SAMPLE = "imagenet_sample"  # folder of one photo of each class, whose file names begin with its number
# As the table has them: the higher, the more a source should help.
SCORES = (
    "logme", "h_score", "regularized_h_score", "transrate", "gbc", "sfda", "parc", "nleep", "leep", "nce", "knn",
    "ridge_probe", "logistic_probe",
)  # fmt: skip
DISTANCES = ("otdd", "frechet", "mmd", "mmd_rbf", "energy", "sliced_wasserstein", "proxy_a")

Part = tuple[np.ndarray, np.ndarray]  # features (N, D), labels (N,)


class Look(NamedTuple):
    """What a source's network sees of a target's parts, and what its own head says of the training part."""

    train: Part
    validation: Part
    test: Part
    probs: np.ndarray | None


def look(source: str, weights: str, target: str, data_dir: str, per_class: int, seed: int, tested: int) -> Look:
    """Return what ``source`` sees of the parts that a run with this seed has; at most ``tested`` test examples."""
    net = transfer_pairs.network(source, weights, seed)
    config = transfer_pairs.target_config(target, data_dir, per_class, seed)
    parts = image.cut(config, image.load_source(config, config.input.size))
    found, probs = {}, None
    for name in ("train", "validation", "test"):
        images, labels = parts[name].images, parts[name].labels
        if name == "test":
            images, labels = images[np.arange(min(tested, len(labels)))], labels[:tested]
        seen = transfer_pairs.see(net, images)
        found[name] = seen.features, labels
        probs = seen.probs if name == "train" else probs
    return Look(**found, probs=probs)


def scores(source: str, weights: str, data_dir: str, seen: Look, seed: int) -> dict[str, Any]:
    """Return every score and, as minus a distance, every distance; "" where one is not defined."""
    x, y = seen.train
    own = own_data(source, weights, data_dir)
    folds = max(2, min(5, int(np.bincount(y).max())))
    report = distance.report(x, y, seen.probs, own, jax.random.key(seed), resamples=0, folds=folds)
    values = report.values()
    found = {name: values.get(name, math.nan) for name in SCORES}
    found |= {name: -values.get(name, math.nan) for name in DISTANCES}
    return {name: "" if math.isnan(value) else value for name, value in found.items()}


@functools.lru_cache(maxsize=8)
def own_data(source: str, weights: str, data_dir: str) -> Part | None:
    """Return features and labels of a source's own data, None where these are not at hand."""
    if source == transfer_pairs.RANDOM or (source not in transfer_pairs.DRAWN and not data_dir):
        return None
    net = transfer_pairs.network(source, weights)
    if source == transfer_pairs.IMAGENET:
        files = sorted((Path(data_dir) / IMAGENET_SAMPLE).glob("*.jpg"))[:: 1000 // SOURCE_EXAMPLES]
        images, labels = transfer_pairs.photos(files), np.arange(len(files))
    else:
        config = transfer_pairs.target_config(source, data_dir, 0, 0)
        train = image.load_source(config, config.input.size).train
        rows = checks.spread(np.asarray(train.labels), SOURCE_EXAMPLES)
        images, labels = train.images[rows], train.labels[rows]
    return transfer_pairs.see(net, images).features, labels
