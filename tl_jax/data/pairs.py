"""Pairs of pictures to verify and lists of people, in the formats of LFW (Huang et al. 2007)."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tl_jax.data.text_files import read_text
from tl_jax.data.walker import one_form
from tl_jax.errors import UserError
from tl_jax.verification import FOLDS, Pairs, dealt

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


def read(path: str | Path) -> Listed:
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
    fold = np.arange(len(same)) // listed.per_fold if listed.per_fold else dealt(same, np.random.default_rng(0))
    if same.all() or not same.any():
        kind = "of two people" if same.all() else "of one person"
        raise UserError(f"{listed.path} has no pair {kind}; verification takes both ({SHAPE}), {FOLDS} of each or more")
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
