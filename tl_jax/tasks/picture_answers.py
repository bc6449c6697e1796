"""What a trained network says of picture files that a user names, and where in them it sees that."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.data import batches, preprocess
from tl_jax.data.decoding import ENDINGS, decode
from tl_jax.data.pictures import Split, fit
from tl_jax.errors import UserError
from tl_jax.report import probabilities as drawn
from tl_jax.task import Batch
from tl_jax.tasks.grad_cam import make_grad_cam
from tl_jax.tasks.objectives import Inputs, Network, make_predict
from tl_jax.tasks.scores import calibrated, fit_temperature
from tl_jax.train.metrics import extract


class Asked(NamedTuple):
    """Who is asked, and how pictures are read.

    Attributes:
        network: with its head.
        classes: K names.
        views: of each picture, whose probabilities are averaged.
        shape: height and width of stored pictures; others are fitted into it, as in training.
        windows: of DICOM files.
        batch_size: pictures at once, at most.
        validation: () -> batches to which a temperature is fitted; None leaves probabilities as they are.
    """

    network: Network
    classes: tuple[str, ...]
    views: int
    shape: tuple[int, int]
    windows: tuple[Any, ...]
    batch_size: int
    validation: Callable[[], Iterable[Batch]] | None


class Explained(NamedTuple):
    """Files (N), what the network saw of them (N, S, S, 3), the class and its probability (N,), maps (N, h, w)."""

    files: list[Path]
    seen: np.ndarray
    found: list[str]
    sure: np.ndarray
    maps: np.ndarray


def answer(asked: Asked, variables: Any, inputs: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Return the probabilities of the pictures in files and folders, for JSON, and all of them drawn as text."""
    files, images = read(asked, inputs)
    rows = _probabilities(asked, variables, images)
    found, lines = [], []
    for file, row in zip(files, rows, strict=True):
        found.append({"input": str(file), "probabilities": dict(zip(asked.classes, map(float, row), strict=True))})
        lines += drawn.lines(str(file), asked.classes, row)
    return found, "\n".join(lines)


def explain(asked: Asked, variables: Any, inputs: Sequence[str]) -> Explained:
    """Return the Grad-CAM of the likeliest class of each picture in files and folders."""
    files, images = read(asked, inputs)
    rows = _probabilities(asked, variables, images)
    best = rows.argmax(1).astype(np.int32)
    maps = _extract(make_grad_cam(asked.network), asked, variables, images, best)
    inputs_of = asked.network.inputs
    assert isinstance(inputs_of, Inputs)
    seen = preprocess.fit(jnp.asarray(images), inputs_of.size, inputs_of.crop, inputs_of.interpolation)
    names = [asked.classes[k] for k in best]
    return Explained(files, np.rint(np.asarray(seen)).astype(np.uint8), names, rows.max(1), maps)


def read(asked: Asked, inputs: Sequence[str]) -> tuple[list[Path], np.ndarray]:
    """Return the picture files that ``inputs`` name, those of a folder by name, and their pixels uint8 (N, H, W, 3).

    Raises:
        UserError: nothing was named, there is no such file or folder, or it holds no pictures.
    """
    if not inputs:
        raise UserError("nothing to look at; pass --input=FILE or --input=FOLDER, once for each")
    files: list[Path] = []
    for each in map(Path, inputs):
        path = each.expanduser()
        if not path.exists():
            raise UserError(f"no file or folder {path}; check --input")
        own = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS) if path.is_dir() else [path]
        if not own:
            raise UserError(f"{path} has no pictures ({', '.join(ENDINGS)}); pass another --input")
        files += own
    images, (height, width) = [decode(file, asked.windows) for file in files], asked.shape
    return files, np.stack([im if im.shape[:2] == asked.shape else fit(im, (width, height)) for im in images])


def temperature(asked: Asked, variables: Any) -> float:
    """Return the temperature that fits the validation part best, 1 where nobody asks for one."""
    if asked.validation is None:
        return 1.0
    labels = np.concatenate([b["label"][b["mask"] > 0] for b in asked.validation()])
    found = extract(make_predict(asked.network, asked.views), variables, asked.validation())
    return fit_temperature(found.astype(np.float64), labels)


def _probabilities(asked: Asked, variables: Any, images: np.ndarray) -> np.ndarray:
    labels = np.zeros(len(images), np.int32)  # nobody reads them
    found = _extract(make_predict(asked.network, asked.views), asked, variables, images, labels)
    return calibrated(found.astype(np.float64), temperature(asked, variables))


def _extract(function: Any, asked: Asked, variables: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    even = -(-len(images) // jax.device_count()) * jax.device_count()
    return extract(function, variables, batches.eval_batches(Split(images, labels), min(even, asked.batch_size)))
