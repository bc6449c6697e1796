"""What a trained network says of picture files that a user names, and where in them it sees that."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tl_jax.data import batches, preprocess
from tl_jax.data.decoding import Decoding
from tl_jax.data.folder import named
from tl_jax.data.pictures import Split, fit
from tl_jax.report import probabilities as drawn
from tl_jax.tasks import file_answers
from tl_jax.tasks.file_answers import Failed
from tl_jax.tasks.grad_cam import make_grad_cam
from tl_jax.tasks.objectives import Inputs, Network, make_predict
from tl_jax.tasks.scores import calibrated, fit_temperature
from tl_jax.train import devices
from tl_jax.train.log import say
from tl_jax.train.metrics import extract
from tl_jax.verdict import Batch


class Asked(NamedTuple):
    """Who is asked, and how pictures are read.

    Attributes:
        network: with its head.
        classes: K names.
        views: of each picture, whose probabilities are averaged.
        shape: height and width of stored pictures; others are fitted into it, as in training.
        decoding: how files become pixels, as in training.
        fit: how others are fitted, see ``pictures.fit``.
        batch_size: pictures at once, at most.
        validation: () -> batches to which a temperature is fitted; None leaves probabilities as they are.
        fitted: the temperature that the finished run has fitted already, None for a run without.
    """

    network: Network
    classes: tuple[str, ...]
    views: int
    shape: tuple[int, int]
    decoding: Decoding
    fit: str
    batch_size: int
    validation: Callable[[], Iterable[Batch]] | None
    fitted: float | None = None


class Explained(NamedTuple):
    """Files (N), what the network saw of them (N, S, S, 3), the class and its probability (N,), maps (N, h, w)."""

    files: list[Path]
    seen: np.ndarray
    found: list[str]
    sure: np.ndarray
    maps: np.ndarray


def answer(asked: Asked, variables: Any, inputs: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Return the probabilities of the pictures in files and folders, for JSON, and all of them drawn as text.

    A file that cannot be read has its error instead; where that is every file, it is a UserError.
    """
    files, asked = _asked_of(asked, inputs)
    found, lines, degrees, errors = {}, [], temperature(asked, variables), []
    for some, images in _read(asked, files, errors):
        for file, row in zip(some, _probabilities(asked, variables, images, degrees), strict=True):
            found[file] = {"probabilities": dict(zip(asked.classes, map(float, row), strict=True))}
            lines += drawn.lines(str(file), asked.classes, row)
    return file_answers.rows(files, found, errors), "\n".join([*lines, *file_answers.summary(files, errors)])


def explain(asked: Asked, variables: Any, inputs: Sequence[str]) -> Explained:
    """Return the Grad-CAM of the likeliest class of each picture in files and folders."""
    files, asked = _asked_of(asked, inputs)
    degrees, how = temperature(asked, variables), asked.network.inputs
    assert isinstance(how, Inputs)
    seen, found, maps, errors, readable = [], [], [], [], []
    for some, images in _read(asked, files, errors):
        readable += some
        found.append(_probabilities(asked, variables, images, degrees))
        best = found[-1].argmax(1).astype(np.int32)
        maps.append(_extract(make_grad_cam(asked.network), asked, variables, images, best))
        shown = preprocess.fit(jnp.asarray(images), how.size, how.crop, how.interpolation)
        seen.append(np.rint(np.clip(shown, 0, 255)).astype(np.uint8))
    rows = np.concatenate(found)
    names = [asked.classes[k] for k in rows.argmax(1)]
    for line in file_answers.summary(files, errors):
        say(line)
    return Explained(readable, np.concatenate(seen), names, rows.max(1), np.concatenate(maps))


def temperature(asked: Asked, variables: Any) -> float:
    """Return the temperature of the run, or fit it to the validation split; 1 if the run is not to be calibrated."""
    if asked.validation is None:
        return 1.0
    if asked.fitted is not None:
        return asked.fitted
    labels = np.concatenate([b["label"][b["mask"] > 0] for b in asked.validation()])
    found = extract(make_predict(asked.network, asked.views), variables, asked.validation())
    return fit_temperature(found.astype(np.float64), labels)


def _asked_of(asked: Asked, inputs: Sequence[str]) -> tuple[list[Path], Asked]:
    """Return the files that were named, and who is asked of them, in batches no larger than it takes."""
    files = named(inputs, asked.decoding.outside)
    return files, asked._replace(batch_size=min(asked.batch_size, devices.whole(len(files))))


def _read(asked: Asked, files: Sequence[Path], errors: list[Failed]) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Yield some readable files at a time, and their pictures uint8 (N, H, W, 3); others join ``errors``."""
    height, width = asked.shape
    for some, pictures in file_answers.decoded(files, asked.decoding, asked.batch_size, errors):
        fitted = (im if im.shape[:2] == asked.shape else fit(im, (width, height), asked.fit) for im in pictures)
        yield some, np.stack(list(fitted))


def _probabilities(asked: Asked, variables: Any, images: np.ndarray, degrees: float) -> np.ndarray:
    labels = np.zeros(len(images), np.int32)  # nobody reads them
    found = _extract(make_predict(asked.network, asked.views), asked, variables, images, labels)
    return calibrated(found.astype(np.float64), degrees)


def _extract(function: Any, asked: Asked, variables: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return extract(function, variables, batches.eval_batches(Split(images, labels), asked.batch_size))
