"""Pictures of people, a folder for each person, and an open-set cut: who is tested is never seen in training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tl_jax.data import drawn, folder, sources, splits
from tl_jax.data.decoding import DEFAULT, Decoding
from tl_jax.data.pictures import DECODED_BYTES, Source, Split
from tl_jax.data.value_range import ValueRange
from tl_jax.data.walker import one_form
from tl_jax.errors import UserError, nearest


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
    """Read ``path/PERSON/PICTURE``, and what lies in folders below; see ``folder.read_all``."""
    pictures, files, people, limits = folder.read_all(Path(path), size, most_bytes, rules)
    return Album(Path(path).expanduser().resolve().name, pictures, people, tuple(files), limits)


def lfw(data_dir: str, size: int, most_bytes: float = DECODED_BYTES, rules: Decoding = DEFAULT) -> Album:
    """Read TFDS' prepared set ``lfw``, whose labels are names; it does not say which number a picture has.

    Arguments and errors are those of ``sources.load``.
    """
    title, pictures, limits = sources.tfds_named("lfw", data_dir, size, most_bytes, rules)
    people, labels = np.unique(pictures.labels, return_inverse=True)
    files = tuple(Path(str(name)) / f"example{row}" for row, name in enumerate(pictures.labels))
    return Album(title, Split(pictures.images, labels.astype(np.int32)), tuple(map(str, people)), files, limits)


def generated() -> Album:
    """Draw cartoon faces; see ``drawn.faces``."""
    pictures, people = drawn.faces()
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
                "config.faces.test_people, faces.min_pictures or data.validation"
            )
    number = np.full(len(album.people), -1, np.int32)
    number[np.concatenate([trained, validated, tested])] = np.arange(len(trained) + len(validated) + len(tested))
    rows = {
        part: np.flatnonzero(np.isin(album.pictures.labels, group))
        for part, group in (("train", trained), ("validation", validated), ("test", tested))
    }
    check_apart({part: album.pictures.labels[own] for part, own in rows.items()})
    parts = {p: Split(splits.take(album.pictures, r).images, number[album.pictures.labels[r]]) for p, r in rows.items()}
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
            "--config.faces.min_pictures=2 to leave such people out"
        )


def _drawn(album: Album, usable: np.ndarray, how: Cut) -> np.ndarray:
    """Return the people to test, drawn by seed."""
    wanted = round(how.test if how.test >= 1 else how.test * len(usable))
    if wanted > len(usable) - 2:
        raise UserError(
            f"config.faces.test_people={how.test:g}, but {album.name} has {len(usable)} people to share out, and "
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
