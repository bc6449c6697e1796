"""Sources and targets of the study of distances, and the sources' features of the targets' images."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from tl_jax import pretrained
from tl_jax.config import recipe
from tl_jax.pretrained.catalog import EMBEDDED_RESNET8
from tl_jax.pretrained.network import Pretrained
from tl_jax.utils.errors import UserError, nearest

RANDOM, IMAGENET = "random", "imagenet"
# Data of sources and targets by name: (name of the set for tl_jax.data, folder under --data_dir)
SETS: Mapping[str, tuple[str, str]] = {
    "digits": ("digits", ""),
    "shapes": ("shapes", ""),
    "gratings": ("gratings", ""),
    "cifar10": ("cifar10", "tfds"),
    "mnist": ("mnist", "tfds"),
    "flowers": ("flowers", "flowers"),
    "ct": ("folder", "ct_covid"),
    "faces": ("folder", "faces_orl"),
}
SOURCES_ONLY = ("faces",)  # fewer than 5 pictures of a person are left to train on beside test and validation
TARGETS = tuple(name for name in SETS if name not in SOURCES_ONLY)
SYNTHETIC = ("digits", "shapes", "gratings")  # need no files
IMAGE_SIZE = 32  # pixels of the small networks' inputs


class Outputs(NamedTuple):
    """What a source network makes of pictures: features (N, D), probabilities of its own classes (N, Z) or None."""

    features: np.ndarray
    probs: np.ndarray | None


def available_sources(weights: str) -> tuple[str, ...]:
    """Return the names of the sources that can be had; ImageNet's network needs a file of ``weights``."""
    return (*EMBEDDED_RESNET8, RANDOM, *([IMAGENET] if weights else []))


def target_config(target: str, data_dir: str, per_class: int, seed: int) -> recipe.Config:
    """Return a configuration with the data of a target, or of a source.

    Raises:
        UserError: it is unknown, or needs files, and there is no folder of them.
    """
    config = recipe.get_config()
    if target not in SETS:
        raise UserError(f"no data set {target!r}; {nearest(target, SETS)}")
    name, folder = SETS[target]
    if target not in SYNTHETIC and not data_dir:
        raise UserError(f"target {target} needs files; pass --data_dir, or --targets={','.join(SYNTHETIC)}")
    config.data.name, config.data.dir = name, str(Path(data_dir) / folder) if folder else ""
    config.data.per_class, config.seed, config.input.size = per_class, seed, IMAGE_SIZE
    config.data.validation = 0.2
    return config


def source_changes(source: str, weights: str) -> tuple[tuple[str, Any], ...]:
    """Return the fields of a configuration that make it start from a source, or from random weights of its kind."""
    if source == IMAGENET:
        return (("model.name", "mobilenet_v2"), ("init.source", "keras"), ("init.path", weights), ("input.size", 96))
    small = ("model.name", "resnet8")
    if source == RANDOM:
        return (small, ("init.source", "random"), ("init.layout", "tl_jax"))
    return (small, ("init.source", "tl_jax"), ("init.path", source))


@functools.lru_cache(maxsize=2)
def load_network(source: str, weights: str, seed: int = 0) -> Pretrained:
    """Return a source network with its own head, none for random weights."""
    if source == IMAGENET:
        return pretrained.load("mobilenet_v2", "keras", weights, image_size=96)
    if source == RANDOM:
        return pretrained.random("resnet8", 0, "tl_jax", seed)
    return pretrained.load("resnet8", "tl_jax", source, image_size=IMAGE_SIZE)


def network_outputs(net: Pretrained, images: Any, batch: int = 250) -> Outputs:
    """Return what a network makes of pictures uint8 (N, H, W, 3), a batch at a time."""
    forward, batches = _make_forward(net.model), []
    for first in range(0, len(images), batch):
        rows = np.arange(first, first + batch)  # the last row again and again, so that one program serves all batches
        features, probs = forward(net.variables, net.preprocess(images[np.minimum(rows, len(images) - 1)]))
        batches.append((features[: len(images) - first], probs[: len(images) - first]))
    features, probs = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return Outputs(features, probs if net.model.num_classes else None)


def load_photos(files: Sequence[Path]) -> np.ndarray:
    """Return pictures of one size uint8 (N, H, W, 3)."""
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


@functools.cache
def _make_forward(model: Any) -> Any:
    def forward(variables, x):
        logits, outputs = model.apply(variables, x, train=False)
        return outputs["features"], jax.nn.softmax(logits)

    return jax.jit(forward)
