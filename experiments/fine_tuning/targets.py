"""The targets of the study of fine-tuning: few examples of each class, drawn by a seed, in folders that anyone reads.

``draw_examples`` writes FOLDER/{train,test}/CLASS/NUMBER.png, or FOLDER/{train,test}.tsv with the columns text and
label. The training examples depend on the seed; the test examples, at most ``MAX_TEST``, are the same for all.
"""

import csv
import io
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tl_jax.data import tfds
from tl_jax.data.dataset import Split
from tl_jax.utils import disk

MAX_TEST = 1000
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
MAX_CELLS = 700  # of a kind, cut out of the photos of a split


class Part(NamedTuple):
    """Examples to draw from.

    Attributes:
        inputs: N functions without arguments that return a picture, or N texts.
        labels: names of their classes, (N,).
    """

    inputs: Sequence[Any]
    labels: np.ndarray


class Target(NamedTuple):
    """A target.

    Attributes:
        read: folder of the data -> what may be trained on, and what is tested.
        inputs: "images" or "texts".
        is_held_out: whether it played no part in the choice of defaults.
    """

    read: Callable[[Path], tuple[Part, Part]]
    inputs: str
    is_held_out: bool


def draw_examples(name: str, data_dir: Path, per_class: int, seed: int, folder: Path) -> Path:
    """Write the examples of a target into a folder, unless they are there.

    Args:
        name: of the target.
        data_dir: where all data are.
        per_class: training examples of each class; of a class that has fewer, all.
        seed: of their choice.
        folder: to write into.
    """
    if folder.is_dir():
        return folder
    target = TARGETS[name]
    train, test = target.read(data_dir)
    train_rows = _draw_rows(train.labels, per_class, np.random.default_rng((seed, 1)))
    share = len(test.labels) if len(test.labels) <= MAX_TEST else MAX_TEST // len(np.unique(test.labels))
    parts = {
        "train": (train, train_rows),
        "test": (test, _draw_rows(test.labels, share, np.random.default_rng((0, 2)))),
    }
    temporary = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for split, (part, rows) in parts.items():
        (_write_texts if target.inputs == "texts" else _write_images)(part, rows, temporary, split)
    return temporary.rename(folder)


def _draw_rows(labels: np.ndarray, per_class: int, generator: np.random.Generator) -> np.ndarray:
    """Return rows with so many of each class, in their order."""
    order = generator.permutation(len(labels))
    rows = [order[labels[order] == name][:per_class] for name in np.unique(labels)]
    return np.sort(np.concatenate(rows))


def _write_images(part: Part, rows: np.ndarray, folder: Path, split: str) -> None:
    for row in rows:
        file = folder / split / part.labels[row] / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        part.inputs[row]().save(file)


def _write_texts(part: Part, rows: np.ndarray, folder: Path, split: str) -> None:
    content = io.StringIO()
    writer = csv.writer(content, delimiter="\t", lineterminator="\n")
    writer.writerow(("text", "label"))
    writer.writerows((part.inputs[row], part.labels[row]) for row in rows)
    disk.write_text(folder / f"{split}.tsv", content.getvalue())


def _open_rgb(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _files(files: Sequence[Path]) -> Part:
    """Return the images of files, whose classes are the names of their folders."""
    openers = [lambda file=file: _open_rgb(file) for file in files]
    return Part(openers, np.array([file.parent.name for file in files]))


def _cut(files: Sequence[Path], train_share: float) -> tuple[Part, Part]:
    """Return two parts of files, with the same shares of classes, the same at each call."""
    generator, labels = np.random.default_rng(3), np.array([file.parent.name for file in files])
    order = generator.permutation(len(files))
    is_train = np.zeros(len(files), bool)
    for name in np.unique(labels):
        members = order[labels[order] == name]
        is_train[members[: round(train_share * len(members))]] = True
    train = [file for file, is_kept in zip(files, is_train, strict=True) if is_kept]
    return _files(train), _files([file for file, is_kept in zip(files, is_train, strict=True) if not is_kept])


def read_flowers(data_dir: Path) -> tuple[Part, Part]:
    """Photos of five flowers, 128 pixels, 70 % to train on."""
    return _cut(sorted((data_dir / "flowers").glob("*/*.jpg")), 0.7)


def read_faces(data_dir: Path) -> tuple[Part, Part]:
    """Grey photos of 40 people, five of each to train on."""
    return _cut(sorted((data_dir / "faces_orl").glob("*/*.png")), 0.5)


def read_ct(data_dir: Path) -> tuple[Part, Part]:
    """Slices of lungs with their own splits, between which no source is shared; validation is trained on."""
    folder = data_dir / "ct_covid"
    train = [file for split in ("train", "val") for file in sorted((folder / split).glob("*/*.png"))]
    return _files(train), _files(sorted((folder / "test").glob("*/*.png")))


def read_tfds_images(name: str, data_dir: Path) -> tuple[Part, Part]:
    """Pictures of a TFDS folder with its own splits."""
    source = tfds.load(name, str(data_dir / "tfds"))
    return _decoded(source.train, source.classes), _decoded(source.test, source.classes)


def _decoded(split: Split, classes: Sequence[str]) -> Part:
    openers = [lambda i=i: Image.fromarray(np.asarray(split.inputs[i])) for i in range(len(split.labels))]
    return Part(openers, np.array([classes[k] for k in split.labels]))


def read_cells(data_dir: Path) -> tuple[Part, Part]:
    """Single cells cut out of photos of blood along their boxes, a quarter larger; classes of the boxes."""
    folder = data_dir / "bccd"
    parts = []
    for split in ("trainval", "test"):
        names = (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        boxes = [box for name in sorted(names) for box in _boxes(folder, name)]
        kept = _draw_rows(np.array([kind for _, _, kind in boxes]), MAX_CELLS, np.random.default_rng(4))
        openers = [lambda box=boxes[i]: _crop(box[0], box[1]) for i in kept]
        parts.append(Part(openers, np.array([boxes[i][2] for i in kept])))
    return parts[0], parts[1]


def _boxes(folder: Path, name: str) -> list[tuple[Path, Box, str]]:
    """Return photo, box in pixels and kind of each cell that is wider and higher than two pixels."""
    found = []
    for cell in ElementTree.parse(folder / "Annotations" / f"{name}.xml").iter("object"):
        left, top, right, bottom = (
            int(cell.findtext(f"bndbox/{side}", "0")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        if right - left > 2 and bottom - top > 2:
            found.append((folder / "JPEGImages" / f"{name}.jpg", (left, top, right, bottom), cell.findtext("name", "")))
    return found


def _crop(file: Path, box: Box) -> Image.Image:
    """Return a square around a box; what is beyond the photo is black."""
    x, y, half = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, 0.625 * max(box[2] - box[0], box[3] - box[1])
    return _open_rgb(file).crop((round(x - half), round(y - half), round(x + half), round(y + half)))


def read_sst2(data_dir: Path) -> tuple[Part, Part]:
    """Sentences of films, negative or positive."""
    train, test = (_tsv(data_dir / "text" / "sst2" / f"{split}.tsv") for split in ("train", "test"))
    names = {"0": "negative", "1": "positive"}
    return _texts([(text, names[k]) for text, k in train]), _texts([(text, names[k]) for text, k in test])


def read_trec(data_dir: Path) -> tuple[Part, Part]:
    """Questions of six kinds."""
    train, test = (_tsv(data_dir / "text" / "trec6" / f"{split}.tsv") for split in ("train", "test"))
    names = ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM")
    return _texts([(text, names[int(k)]) for k, text in train]), _texts([(text, names[int(k)]) for k, text in test])


def _texts(rows: Sequence[tuple[str, str]]) -> Part:
    return Part([text for text, _ in rows], np.array([name for _, name in rows]))


def _tsv(file: Path) -> list[tuple[str, str]]:
    cells = (line.partition("\t") for line in file.read_text().splitlines() if line.strip())
    return [(first, second) for first, _, second in cells]


TARGETS = {
    "flowers": Target(read_flowers, "images", False),
    "mnist": Target(lambda data_dir: read_tfds_images("mnist", data_dir), "images", False),
    "sst2": Target(read_sst2, "texts", False),
    "ct": Target(read_ct, "images", True),
    "faces": Target(read_faces, "images", True),
    "cifar10": Target(lambda data_dir: read_tfds_images("cifar10", data_dir), "images", True),
    "cells": Target(read_cells, "images", True),
    "trec": Target(read_trec, "texts", True),
}
