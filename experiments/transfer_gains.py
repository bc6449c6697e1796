"""Gains and scores of the study of distances, seeds put together, and which of them are compared with each other."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.agreement import Group
from experiments.transfer_scores import DISTANCES, SCORES

WAYS = {"fine_tune": "fine-tuning", "probe": "a logistic probe"}


class Pair(NamedTuple):
    """A source on a target with a number of examples: per seed gains over scratch by way, and mean scores."""

    source: str
    target: str
    per_class: int
    gains: Mapping[str, np.ndarray]
    scores: Mapping[str, float]

    @property
    def own(self) -> bool:
        """Whether the source was trained on the target's own data, so that nothing is transferred."""
        return self.source == self.target


def pairs(rows: Sequence[Mapping[str, str]]) -> list[Pair]:
    """Return the pairs of a record, seeds put together."""
    found: dict[tuple[str, str, int], list[Mapping[str, str]]] = {}
    for row in rows:
        found.setdefault((row["source"], row["target"], int(row["per_class"])), []).append(row)
    return [
        Pair(
            *names,
            {way: np.asarray([float(row[way]) - float(row["scratch"]) for row in mine]) for way in WAYS},
            {name: float(np.mean([float(row.get(name) or "nan") for row in mine])) for name in (*SCORES, *DISTANCES)},
        )
        for names, mine in found.items()
    ]


def compared(found: Sequence[Pair]) -> tuple[dict[tuple[str, int], list[Pair]], list[str]]:
    """Return by target and number of examples the pairs for which every score is defined, and the names of these.

    A score that is defined for half of the pairs or fewer is left out, lest it leave hardly any. What the tables say
    and what the plots show are these pairs.
    """
    others = [pair for pair in found if not pair.own]
    names = [
        name for name in (*SCORES, *DISTANCES)
        if 2 * sum(np.isfinite(pair.scores[name]) for pair in others) > len(others)
    ]  # fmt: skip
    some: dict[tuple[str, int], list[Pair]] = {}
    for pair in others:
        if all(np.isfinite(pair.scores[name]) for name in names):
            some.setdefault((pair.target, pair.per_class), []).append(pair)
    # two sources have an order, but no correlation to speak of
    return {group: mine for group, mine in some.items() if len(mine) > 2}, names


def groups(found: Sequence[Pair], way: str) -> list[Group]:
    """Return the gains of the pairs that are compared, and their scores."""
    some, names = compared(found)
    return [
        Group(
            np.asarray([pair.gains[way].mean() for pair in mine]),
            {name: np.asarray([pair.scores[name] for pair in mine]) for name in names},
        )
        for mine in some.values()
    ]
