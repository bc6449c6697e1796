"""Face data sets: folders of people, LFW's files of pairs and people, and open-set splits.

No person is in two splits. The file formats are those of LFW (Huang et al. 2007).
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tl_jax.data import dataset, image_folder, synthetic, tfds
from tl_jax.data.dataset import DECODED_BYTES, Dataset, Split, path_array
from tl_jax.data.decode import DEFAULT_DECODING, Decoding
from tl_jax.data.registry import IMAGE_FILES, DatasetOptions, register_dataset
from tl_jax.data.text import read_text
from tl_jax.data.value_range import ValueRange
from tl_jax.data.walker import normalize_unicode
from tl_jax.metrics.verification import NUM_FOLDS, Pairs, assign_folds
from tl_jax.utils.errors import UserError, nearest

NUMBER_PATTERN = re.compile("[0-9]{1,9}")
PAIR_FORMAT = "'NAME N N' for one person or 'NAME N NAME N' for two"


class PairLine(NamedTuple):
    """A pair: the people, the numbers of their images from 1 on, and the line number."""

    names: tuple[str, str]
    numbers: tuple[int, int]
    line: int


class PairList(NamedTuple):
    """The pairs of a file, and the number in each of its folds; 0 without folds."""

    path: Path
    lines: tuple[PairLine, ...]
    per_fold: int

    @property
    def identities(self) -> tuple[str, ...]:
        """The distinct people of the pairs."""
        return tuple(dict.fromkeys(name for line in self.lines for name in line.names))


def read_pairs(path: str | Path) -> PairList:
    """Read ``pairs.txt`` (first line "10 300": folds, and pairs of each kind per fold), or a file of plain pairs.

    A first line with one number, as in ``pairsDevTest.txt``, is the number of pairs of each kind; it is optional.
    Fields are separated by tabs, or else by spaces.

    Raises:
        UserError: no such file, a malformed line, or another number of lines than the first one gives.
    """
    path = Path(path).expanduser()
    rows = _read_rows(path)
    head = rows.pop(0)[1] if rows and all(map(NUMBER_PATTERN.fullmatch, rows[0][1])) else []
    if len(head) > 2:
        raise UserError(
            f"{path}, line 1: {' '.join(head)!r} is not the numbers of folds and pairs per fold; correct it"
        )
    lines = tuple(_parse_line(path, number, fields) for number, fields in rows)
    if not lines:
        raise UserError(f"{path} has no pairs; write lines as {PAIR_FORMAT}")
    expected = 2 * math.prod(map(int, head)) if head else len(lines)
    if expected != len(lines):
        raise UserError(
            f"{path}, line 1: {expected:,} pairs declared ({' '.join(head)}), but {len(lines):,} found; correct it"
        )
    return PairList(path, lines, 2 * int(head[1]) if len(head) == 2 and int(head[0]) > 1 else 0)


def read_identities(path: str | Path) -> tuple[str, ...]:
    """Read people, one per line, without counts after a tab and lines with only a number, as in ``people.txt``.

    Raises:
        UserError: no such file, or nobody in it.
    """
    listed = (fields[0] for _, fields in _read_rows(Path(path).expanduser(), spaces=False))
    identities = tuple(dict.fromkeys(name for name in listed if not name.isdigit()))
    if not identities:
        raise UserError(f"{path} names no people; write one person per line")
    return identities


def match_pairs(pair_list: PairList, files: Sequence[Path]) -> Pairs:
    """Return the pairs as rows of images, which are ``NAME/NAME_0001.jpg`` (or another suffix), or below.

    Args:
        pair_list: pairs of a file.
        files: files of the N images.

    Raises:
        UserError: images are missing; it gives the number of such pairs and one of them.
    """
    index: dict[str, list[int]] = {}
    for row, file in enumerate(files):
        index.setdefault(normalize_unicode(file.stem), []).append(row)
    parents = [set(map(normalize_unicode, file.parent.parts)) for file in files]
    pair_rows, missing = np.empty((2, len(pair_list.lines)), int), {}
    for p, line in enumerate(pair_list.lines):
        for side, (name, number) in enumerate(zip(map(normalize_unicode, line.names), line.numbers, strict=True)):
            image_name = f"{name}_{number:04d}"
            matches = [row for row in index.get(image_name, []) if name in parents[row]]
            if matches:
                pair_rows[side, p] = matches[0]
            else:
                missing.setdefault(line.line, (name, image_name))
    if missing:
        raise UserError(_missing_message(pair_list, missing, files))
    same = np.asarray([line.names[0] == line.names[1] for line in pair_list.lines])
    fold = (
        np.arange(len(same)) // pair_list.per_fold
        if pair_list.per_fold
        else assign_folds(same, np.random.default_rng(0))
    )
    if same.all() or not same.any():
        kind = "of two people" if same.all() else "of one person"
        raise UserError(
            f"{pair_list.path} has no pair {kind}; verification needs both ({PAIR_FORMAT}), {NUM_FOLDS} of each or more"
        )
    return Pairs(pair_rows[0], pair_rows[1], same, fold)


def _missing_message(pair_list: PairList, missing: dict[int, tuple[str, str]], files: Sequence[Path]) -> str:
    """Return the message on pairs without an image, given as line -> person and image."""
    line, (name, image_name) = next(iter(missing.items()))
    more = f" ({len(missing)} of {len(pair_list.lines)} pairs lack one)" if len(pair_list.lines) > 1 else ""
    similar = next((file.name for file in files if normalize_unicode(file.stem).startswith(f"{image_name}_")), None)
    hint = f", but {similar} exists: rename such files" if similar else ""
    return (
        f"{pair_list.path}, line {line}: no image {name}/{image_name}{more}{hint}; check config.data.dir, or remove "
        "such lines"
    )


def _read_rows(path: Path, spaces: bool = True) -> list[tuple[int, list[str]]]:
    """Return the line number and the fields of each line that is not empty."""
    if not path.is_file():
        raise UserError(f"no file {path}; check config.faces.pairs and faces.test_file")
    lines = enumerate(read_text(path).splitlines(), start=1)
    separator = "\t" if not spaces else None
    return [
        (n, [f.strip() for f in line.strip().split("\t" if "\t" in line else separator)])
        for n, line in lines
        if line.strip()
    ]


def _parse_line(path: Path, number: int, fields: list[str]) -> PairLine:
    """Return a pair from its 3 or 4 fields."""
    if len(fields) == 3:
        fields = [fields[0], fields[1], fields[0], fields[2]]
    numbers = fields[1::2]
    if len(fields) != 4 or not all(NUMBER_PATTERN.fullmatch(f) and int(f) > 0 for f in numbers):
        raise UserError(f"{path}, line {number}: {' '.join(fields)!r} is not {PAIR_FORMAT}, N from 1 on; correct it")
    if fields[:2] == fields[2:]:
        raise UserError(f"{path}, line {number} pairs an image with itself; correct it")
    return PairLine((fields[0], fields[2]), (int(fields[1]), int(fields[3])), number)


class FaceSet(NamedTuple):
    """Images of people.

    Attributes:
        name: name of the data set.
        examples: N images; labels int32 (N,) are rows of ``identities``.
        identities: K names.
        files: files of the images, in order.
        value_range: see ``Dataset``.
    """

    name: str
    examples: Split
    identities: tuple[str, ...]
    files: tuple[Path, ...]
    value_range: ValueRange | None = None


class SplitOptions(NamedTuple):
    """Options of splitting people.

    Attributes:
        test_size: people to test, a share below 1 or a number from 1 on.
        test_names: names of the people to test, instead of random ones.
        seed: random seed of the test people.
        validation: share of the other people for validation.
        validation_seed: random seed of the validation people.
        min_images: images that a person needs; people with fewer are dropped, unless they are in ``test_names``. With
        0,
            a person with one image is an error.
    """

    test_size: float
    test_names: tuple[str, ...]
    seed: int
    validation: float
    validation_seed: int
    min_images: int


def read_faces(
    path: str | Path, size: int, max_bytes: float = DECODED_BYTES, decoding: Decoding = DEFAULT_DECODING
) -> FaceSet:
    """Read ``path/PERSON/IMAGE``, searched recursively; see ``image_folder.read_single_split``."""
    examples, files, identities, limits = image_folder.read_single_split(Path(path), size, max_bytes, decoding)
    examples = examples._replace(files=path_array(files))
    return FaceSet(Path(path).expanduser().resolve().name, examples, identities, tuple(files), limits)


@register_dataset("folder", inputs="people", fields=(*IMAGE_FILES, "outside"), layout="FOLDER/PERSON/PICTURE")
def load_folder(options: DatasetOptions) -> FaceSet:
    """Images in one folder per person."""
    return read_faces(options.folder, options.size, options.max_bytes, options.decoding)


@register_dataset("lfw", inputs="people", fields=IMAGE_FILES)
def load_prepared(options: DatasetOptions) -> FaceSet:
    """TFDS' prepared data set of Labeled Faces in the Wild."""
    return load_lfw(options.folder, options.size, options.max_bytes, options.decoding)


@register_dataset("drawn_faces", inputs="people")
def load_cartoons(options: DatasetOptions) -> FaceSet:
    """Synthetic cartoon faces."""
    return draw_faces()


def load_lfw(
    data_dir: str, size: int, max_bytes: float = DECODED_BYTES, decoding: Decoding = DEFAULT_DECODING
) -> FaceSet:
    """Read TFDS' prepared data set ``lfw``, whose labels are names and whose images have no numbers.

    Arguments and errors are those of ``tfds.load``.
    """
    title, examples, limits = tfds.read_tfds_names("lfw", data_dir, size, max_bytes, decoding)
    identities, labels = np.unique(examples.labels, return_inverse=True)
    files = tuple(Path(str(name)) / f"example{row}" for row, name in enumerate(examples.labels))
    return FaceSet(title, Split(examples.inputs, labels.astype(np.int32)), tuple(map(str, identities)), files, limits)


def draw_faces() -> FaceSet:
    """Draw cartoon faces; see ``synthetic.draw_faces``."""
    examples, identities = synthetic.draw_faces()
    per_identity = len(examples.labels) // len(identities)
    files = (Path(name) / f"{name}_{i:04d}.png" for name in identities for i in range(1, per_identity + 1))
    return FaceSet("drawn faces", examples, identities, tuple(files))


def split_identities(face_set: FaceSet, options: SplitOptions) -> tuple[Dataset, np.ndarray]:
    """Split a face data set by people into train, validation and test.

    Returns:
        The splits, with labels that count people from 0 on, those of train first, whose K names are ``classes``; and
        the rows int (N_test,) of the face set in the test split.

    Raises:
        UserError: too few people or images.
    """
    counts = np.bincount(face_set.examples.labels, minlength=len(face_set.identities))
    named_ids = _identity_indices(face_set, options.test_names)
    _check_single_images(face_set, counts, named_ids, options.min_images)
    usable = np.flatnonzero(counts >= options.min_images)
    test_ids = named_ids if options.test_names else _draw_test(face_set, usable, options)
    other_ids = usable[~np.isin(usable, test_ids)]
    validation_ids = _draw_validation(other_ids, options)
    train_ids = other_ids[~np.isin(other_ids, validation_ids)]
    for what, group in (("training", train_ids), ("the test", test_ids)):
        if len(group) < 2:
            raise UserError(
                f"{face_set.name}: {len(group)} people remain for {what}, fewer than two; add people, or change "
                "config.faces.test_identities, faces.min_images or data.validation"
            )
    label_of = np.full(len(face_set.identities), -1, np.int32)
    label_of[np.concatenate([train_ids, validation_ids, test_ids])] = np.arange(
        len(train_ids) + len(validation_ids) + len(test_ids)
    )
    rows = {
        split: np.flatnonzero(np.isin(face_set.examples.labels, group))
        for split, group in (("train", train_ids), ("validation", validation_ids), ("test", test_ids))
    }
    check_disjoint({split: face_set.examples.labels[indices] for split, indices in rows.items()})
    splits = {
        p: dataset.select_rows(face_set.examples, r)._replace(labels=label_of[face_set.examples.labels[r]])
        for p, r in rows.items()
    }
    classes = tuple(face_set.identities[i] for i in train_ids)
    test_origin = f"{len(test_ids)} people who are not in training"
    validation = splits["validation"] if len(validation_ids) else None
    source = Dataset(
        face_set.name, splits["train"], splits["test"], classes, test_origin, validation, face_set.value_range
    )
    return source, rows["test"]


def check_disjoint(identities: Mapping[str, np.ndarray]) -> None:
    """Assert that no person is in two splits, given the people int (N,) of each split's images."""
    owner: dict[int, str] = {}
    for split, labels in identities.items():
        for identity in np.unique(labels).tolist():
            assert identity not in owner, f"person {identity} is in {owner[identity]} and in {split}"
            owner[identity] = split


def _identity_indices(face_set: FaceSet, names: Sequence[str]) -> np.ndarray:
    index = {normalize_unicode(name): i for i, name in enumerate(face_set.identities)}
    requested = dict.fromkeys(map(normalize_unicode, names))
    unknown = [name for name in requested if name not in index]
    if unknown:
        more = f" ({len(unknown)} of {len(requested)} people are missing)" if len(unknown) > 1 else ""
        raise UserError(
            f"{face_set.name}: no images of {unknown[0]!r}{more}; {nearest(unknown[0], face_set.identities)}"
        )
    return np.asarray(sorted(index[name] for name in requested), int)


def _check_single_images(face_set: FaceSet, counts: np.ndarray, named: np.ndarray, min_images: int) -> None:
    single = [face_set.identities[i] for i in np.flatnonzero(counts == 1) if i not in named]
    if single and not min_images:
        more = f" (and {len(single) - 1:,} more)" if len(single) > 1 else ""
        raise UserError(
            f"{face_set.name}: a single image of {single[0]!r}{more}, and verification needs two; add some, or set "
            "config.faces.min_images=2 to drop such people"
        )


def _draw_test(face_set: FaceSet, usable: np.ndarray, options: SplitOptions) -> np.ndarray:
    """Return random people to test."""
    count = round(options.test_size if options.test_size >= 1 else options.test_size * len(usable))
    if count > len(usable) - 2:
        raise UserError(
            f"config.faces.test_identities={options.test_size:g}, but {face_set.name} has {len(usable)} people, and "
            "training needs two of them; lower it"
        )
    return np.sort(np.random.default_rng((options.seed, 6)).permutation(usable)[:count])


def _draw_validation(other_ids: np.ndarray, options: SplitOptions) -> np.ndarray:
    """Return random people to validate on."""
    n = round(options.validation * len(other_ids))
    if options.validation and n < 2:
        raise UserError(
            f"config.data.validation={options.validation:g} of {len(other_ids)} people is {n}, but verification needs "
            "two; raise it, or set it to 0"
        )
    return np.sort(np.random.default_rng((options.validation_seed, 1)).permutation(other_ids)[:n])
