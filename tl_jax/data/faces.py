"""Face data sets: folders of one person each, LFW's pairs and people files, and open-set splits.

Nobody in a test split is in training. The file formats are those of LFW (Huang et al. 2007).
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tl_jax.data import dataset, image_folder, synthetic, tfds
from tl_jax.data.dataset import DECODED_BYTES, Source, Split
from tl_jax.data.decode import DEFAULT, Decoding
from tl_jax.data.text import read_text
from tl_jax.data.value_range import ValueRange
from tl_jax.data.walker import one_form
from tl_jax.metrics.verification import NUM_FOLDS, Pairs, assign_folds
from tl_jax.utils.errors import UserError, nearest

NUMBER = re.compile("[0-9]{1,9}")
SHAPE = "'NAME N N' for one person or 'NAME N NAME N' for two"


class Line(NamedTuple):
    """A pair: the people, the numbers of their pictures from 1 on, and where it stands."""

    names: tuple[str, str]
    numbers: tuple[int, int]
    line: int


class Listed(NamedTuple):
    """The pairs of a file, and how many stand in each of its folds: 0 where it has none."""

    path: Path
    lines: tuple[Line, ...]
    per_fold: int

    @property
    def people(self) -> tuple[str, ...]:
        """Who is in them, each once."""
        return tuple(dict.fromkeys(name for line in self.lines for name in line.names))


def read_pairs(path: str | Path) -> Listed:
    """Read ``pairs.txt`` (first line "10 300": folds, and pairs of each kind in a fold), or a file of plain pairs.

    A first line with one number, as in ``pairsDevTest.txt``, counts the pairs of each kind; it may be left out.
    Fields are separated by tabs, or else by spaces.

    Raises:
        UserError: no such file, a malformed line, or not as many lines as the first one says.
    """
    path = Path(path).expanduser()
    rows = _rows(path)
    head = rows.pop(0)[1] if rows and all(map(NUMBER.fullmatch, rows[0][1])) else []
    if len(head) > 2:
        raise UserError(f"{path}, line 1: {' '.join(head)!r} is not the number of folds and of pairs in each")
    lines = tuple(_line(path, number, fields) for number, fields in rows)
    if not lines:
        raise UserError(f"{path} has no pairs; its lines are {SHAPE}")
    expected = 2 * math.prod(map(int, head)) if head else len(lines)
    if expected != len(lines):
        raise UserError(
            f"{path}, line 1 says {expected:,} pairs ({' '.join(head)}), but there are {len(lines):,}; mend it"
        )
    return Listed(path, lines, 2 * int(head[1]) if len(head) == 2 and int(head[0]) > 1 else 0)


def names(path: str | Path) -> tuple[str, ...]:
    """Read people, one a line; a count after a tab, and lines with a number alone, as in ``people.txt``, are left out.

    Raises:
        UserError: no such file, or nobody in it.
    """
    found = (fields[0] for _, fields in _rows(Path(path).expanduser(), spaces=False))
    people = tuple(dict.fromkeys(name for name in found if not name.isdigit()))
    if not people:
        raise UserError(f"{path} names nobody; write one person a line")
    return people


def rows(listed: Listed, files: Sequence[Path]) -> Pairs:
    """Return the pairs as rows of pictures, which lie in ``NAME/NAME_0001.jpg`` (or with another ending), or below.

    Args:
        listed: the file.
        files: of the N pictures.

    Raises:
        UserError: says how many pairs lack a picture, and names the line and the picture of one.
    """
    index: dict[str, list[int]] = {}
    for row, file in enumerate(files):
        index.setdefault(one_form(file.stem), []).append(row)
    parents = [set(map(one_form, file.parent.parts)) for file in files]
    found, absent = np.empty((2, len(listed.lines)), int), {}
    for p, line in enumerate(listed.lines):
        for side, (name, number) in enumerate(zip(map(one_form, line.names), line.numbers, strict=True)):
            picture = f"{name}_{number:04d}"
            own = [row for row in index.get(picture, []) if name in parents[row]]
            if own:
                found[side, p] = own[0]
            else:
                absent.setdefault(line.line, (name, picture))
    if absent:
        raise UserError(_said(listed, absent, files))
    same = np.asarray([line.names[0] == line.names[1] for line in listed.lines])
    fold = np.arange(len(same)) // listed.per_fold if listed.per_fold else assign_folds(same, np.random.default_rng(0))
    if same.all() or not same.any():
        kind = "of two people" if same.all() else "of one person"
        raise UserError(
            f"{listed.path} has no pair {kind}; verification takes both ({SHAPE}), {NUM_FOLDS} of each or more"
        )
    return Pairs(found[0], found[1], same, fold)


def _said(listed: Listed, absent: dict[int, tuple[str, str]], files: Sequence[Path]) -> str:
    """Return what to say of pairs without a picture: by line, the person and the picture."""
    line, (name, picture) = next(iter(absent.items()))
    more = f" ({len(absent)} of {len(listed.lines)} pairs lack one)" if len(listed.lines) > 1 else ""
    alike = next((file.name for file in files if one_form(file.stem).startswith(f"{picture}_")), None)
    there = f", but {alike} is there: rename such files" if alike else ""
    return (
        f"{listed.path}, line {line}: there is no picture {name}/{picture}{more}{there}; check config.data.dir, "
        "or take such lines out"
    )


def _rows(path: Path, spaces: bool = True) -> list[tuple[int, list[str]]]:
    """Return the number and the fields of each line that is not empty."""
    if not path.is_file():
        raise UserError(f"no file {path}; check config.faces.pairs and faces.test_file")
    lines = enumerate(read_text(path).splitlines(), start=1)
    apart = "\t" if not spaces else None
    return [
        (n, [f.strip() for f in line.strip().split("\t" if "\t" in line else apart)])
        for n, line in lines
        if line.strip()
    ]


def _line(path: Path, number: int, fields: list[str]) -> Line:
    """Return a pair from its 3 or 4 fields."""
    if len(fields) == 3:
        fields = [fields[0], fields[1], fields[0], fields[2]]
    numbers = fields[1::2]
    if len(fields) != 4 or not all(NUMBER.fullmatch(f) and int(f) > 0 for f in numbers):
        raise UserError(f"{path}, line {number}: {' '.join(fields)!r} is not {SHAPE}, with N from 1 on; mend it")
    if fields[:2] == fields[2:]:
        raise UserError(f"{path}, line {number} pairs a picture with itself; mend it")
    return Line((fields[0], fields[2]), (int(fields[1]), int(fields[3])), number)


class Album(NamedTuple):
    """Pictures of people.

    Attributes:
        name: of the set.
        pictures: N pictures, labels int32 (N,) are rows of ``people``.
        people: K names.
        files: of the pictures, in their order.
        value_range: see ``Source``.
    """

    name: str
    pictures: Split
    people: tuple[str, ...]
    files: tuple[Path, ...]
    value_range: ValueRange | None = None


class Cut(NamedTuple):
    """How people are shared out.

    Attributes:
        test: people to test, a share below 1 or a number from 1 on.
        named: people to test by name, instead of drawing them.
        seed: draws the people to test.
        validation: share of the other people held out.
        validation_seed: draws these.
        least: pictures of a person at least; people with fewer are left out, unless they are ``named``. 0 leaves
            nobody out, and a person with one picture is an error.
    """

    test: float
    named: tuple[str, ...]
    seed: int
    validation: float
    validation_seed: int
    least: int


def read(path: str | Path, size: int, most_bytes: float = DECODED_BYTES, rules: Decoding = DEFAULT) -> Album:
    """Read ``path/PERSON/PICTURE``, and what lies in folders below; see ``image_folder.read_all``."""
    pictures, files, people, limits = image_folder.read_all(Path(path), size, most_bytes, rules)
    return Album(Path(path).expanduser().resolve().name, pictures, people, tuple(files), limits)


def lfw(data_dir: str, size: int, most_bytes: float = DECODED_BYTES, rules: Decoding = DEFAULT) -> Album:
    """Read TFDS' prepared set ``lfw``, whose labels are names; it does not say which number a picture has.

    Arguments and errors are those of ``tfds.load``.
    """
    title, pictures, limits = tfds.tfds_named("lfw", data_dir, size, most_bytes, rules)
    people, labels = np.unique(pictures.labels, return_inverse=True)
    files = tuple(Path(str(name)) / f"example{row}" for row, name in enumerate(pictures.labels))
    return Album(title, Split(pictures.images, labels.astype(np.int32)), tuple(map(str, people)), files, limits)


def generated() -> Album:
    """Draw cartoon faces; see ``synthetic.faces``."""
    pictures, people = synthetic.faces()
    each = len(pictures.labels) // len(people)
    files = (Path(name) / f"{name}_{i:04d}.png" for name in people for i in range(1, each + 1))
    return Album("drawn faces", pictures, people, tuple(files))


def split(album: Album, how: Cut) -> tuple[Source, np.ndarray]:
    """Cut an album into people to train with, to validate with and to test with, no person in two parts.

    Returns:
        The parts, whose labels count people from 0 on, those of training first: ``classes`` are these K names. And
        the rows int (N_test,) of the album that are the test part.

    Raises:
        UserError: too few people or pictures for what is asked.
    """
    counts = np.bincount(album.pictures.labels, minlength=len(album.people))
    named = _numbers(album, how.named)
    _check_single(album, counts, named, how.least)
    usable = np.flatnonzero(counts >= how.least)
    tested = named if how.named else _drawn(album, usable, how)
    others = usable[~np.isin(usable, tested)]
    validated = _held_out(others, how)
    trained = others[~np.isin(others, validated)]
    for what, group in (("training", trained), ("the test", tested)):
        if len(group) < 2:
            raise UserError(
                f"{album.name} leaves {len(group)} people for {what}, which takes two; add people, or change "
                "config.faces.test_identities, faces.min_images or data.validation"
            )
    number = np.full(len(album.people), -1, np.int32)
    number[np.concatenate([trained, validated, tested])] = np.arange(len(trained) + len(validated) + len(tested))
    rows = {
        part: np.flatnonzero(np.isin(album.pictures.labels, group))
        for part, group in (("train", trained), ("validation", validated), ("test", tested))
    }
    check_apart({part: album.pictures.labels[own] for part, own in rows.items()})
    parts = {
        p: Split(dataset.take(album.pictures, r).images, number[album.pictures.labels[r]]) for p, r in rows.items()
    }
    classes = tuple(album.people[i] for i in trained)
    said = f"{len(tested)} people who are not in training"
    validation = parts["validation"] if len(validated) else None
    source = Source(album.name, parts["train"], parts["test"], classes, said, validation, album.value_range)
    return source, rows["test"]


def check_apart(people: Mapping[str, np.ndarray]) -> None:
    """Assert that no person is in two parts, given the people int (N,) of each part's pictures."""
    seen: dict[int, str] = {}
    for part, labels in people.items():
        for person in np.unique(labels).tolist():
            assert person not in seen, f"person {person} is in {seen[person]} and in {part}"
            seen[person] = part


def _numbers(album: Album, names: Sequence[str]) -> np.ndarray:
    index = {one_form(name): i for i, name in enumerate(album.people)}
    wanted = dict.fromkeys(map(one_form, names))
    unknown = [name for name in wanted if name not in index]
    if unknown:
        more = f" ({len(unknown)} of the {len(wanted)} people named are not there)" if len(unknown) > 1 else ""
        raise UserError(f"{album.name} has no pictures of {unknown[0]!r}{more}; {nearest(unknown[0], album.people)}")
    return np.asarray(sorted(index[name] for name in wanted), int)


def _check_single(album: Album, counts: np.ndarray, named: np.ndarray, least: int) -> None:
    single = [album.people[i] for i in np.flatnonzero(counts == 1) if i not in named]
    if single and not least:
        more = f" (and {len(single) - 1:,} more)" if len(single) > 1 else ""
        raise UserError(
            f"{album.name} has one picture of {single[0]!r}{more}, and verification takes two; add some, or pass "
            "--config.faces.min_images=2 to leave such people out"
        )


def _drawn(album: Album, usable: np.ndarray, how: Cut) -> np.ndarray:
    """Return the people to test, drawn by seed."""
    wanted = round(how.test if how.test >= 1 else how.test * len(usable))
    if wanted > len(usable) - 2:
        raise UserError(
            f"config.faces.test_identities={how.test:g}, but {album.name} has {len(usable)} people to share out, and "
            "training takes two of them; lower it"
        )
    return np.sort(np.random.default_rng((how.seed, 6)).permutation(usable)[:wanted])


def _held_out(others: np.ndarray, how: Cut) -> np.ndarray:
    """Return the people to validate with, drawn by seed."""
    n = round(how.validation * len(others))
    if how.validation and n < 2:
        raise UserError(
            f"config.data.validation={how.validation:g} of {len(others)} people is {n}, and verification takes two; "
            "raise it, or set it to 0"
        )
    return np.sort(np.random.default_rng((how.validation_seed, 1)).permutation(others)[:n])
