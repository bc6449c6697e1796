"""Cut a validation split from the training set, thin the rest, and choose test examples; all drawn stratified."""

from collections.abc import Sequence

import numpy as np

from tl_jax.data.notices import say_once
from tl_jax.data.pictures import SPLIT_SEED, Rows, Split
from tl_jax.errors import UserError

FLIPS = 20_000  # groups that are tried while one cut is sought, all attempts together
ATTEMPTS = 16  # at most


def take(split: Split, rows: np.ndarray) -> Split:
    """Return the given rows of a split, without a copy of its pictures."""
    if len(rows) == len(split.labels) and (rows == np.arange(len(rows))).all():
        return split
    groups, files = (None if each is None else each[rows] for each in (split.groups, split.files))
    return Split(Rows(split.images, rows), split.labels[rows], groups, files)


def cut_validation(train: Split, share: float, seed: int, classes: Sequence[str] = ()) -> tuple[Split, Split]:
    """Return (train, validation) with ``share`` in [0, 1) of the examples, drawn by ``seed``, in the second.

    Classes keep their shares, to one example, as with ``train_test_split(stratify=labels)`` of scikit-learn. A class
    with a single example stays in train, and a line says so. If there are groups, whole ones are drawn, and the share
    of each class is met as nearly as they allow. Examples without a class (boxes, tagged words, plain texts) are drawn
    at random.

    Args:
        train: what is cut.
        share: of each class.
        seed: of the draw.
        classes: K names, for messages.

    Raises:
        UserError: ``share`` is not 0 but too small for one example, or nothing can be held out.
    """
    n, labels = len(train.labels), _classes_of(train)
    rng = np.random.default_rng((seed, 1))
    if not share:
        return train, take(train, np.empty(0, int))
    if train.groups is not None:
        chosen = _cut_groups(labels, train.groups, share, rng)
        _tell_whole(labels, train.groups, classes)
        return take(train, np.flatnonzero(~chosen)), take(train, np.flatnonzero(chosen))
    order, wanted = rng.permutation(n), round(share * n)
    if not wanted:
        raise UserError(f"config.data.validation={share} of {n} examples is none; raise it, or set it to 0")
    rows = _stratified(order, labels, wanted, spare=1)
    if not len(rows):
        raise UserError(
            f"no class of the {n} training examples has two, so none can be held out; set config.data.validation=0, "
            "or bring more"
        )
    _tell_whole(labels, np.arange(n), classes)
    return take(train, np.setdiff1d(np.arange(n), rows)), take(train, rows)


def thin(train: Split, examples: int, per_class: int, classes: int, seed: int) -> Split:
    """Keep ``examples`` random ones, stratified by class, or ``per_class`` random ones of each of K classes.

    0 keeps all; not both are given.

    Raises:
        UserError: there are fewer than asked for.
    """
    order = np.random.default_rng((seed, 2)).permutation(len(train.labels))
    if examples:
        if examples > len(order):
            raise UserError(f"config.data.train_examples={examples}, but only {len(order)} are left; lower it")
        return take(train, _stratified(order, _classes_of(train), examples))
    if per_class:
        by_class = [order[train.labels[order] == k][:per_class] for k in range(classes)]
        short = [k for k, rows in enumerate(by_class) if len(rows) < per_class]
        if short:
            raise UserError(
                f"config.data.per_class={per_class}, but class {short[0]} has {len(by_class[short[0]])}; lower it"
            )
        order = np.concatenate(by_class)
    return take(train, np.sort(order))


def choose_test(test: Split, examples: int) -> Split:
    """Return ``examples`` of the test split, stratified by class and the same for every seed; 0 or too many keep all.

    The first rows would not do: a file may be sorted by class.
    """
    n = len(test.labels)
    if not examples or examples >= n:
        return test
    order = np.random.default_rng((SPLIT_SEED, 3)).permutation(n)
    return take(test, _stratified(order, _classes_of(test), examples))


def _classes_of(split: Split) -> np.ndarray:
    """Return the class of each example (N,), 0 for all if they have none: boxes, or a tag for each word."""
    labels = split.labels
    return labels if labels.ndim == 1 and labels.dtype.kind in "iu" else np.zeros(len(labels), np.int32)


def _stratified(order: np.ndarray, labels: np.ndarray, wanted: int, spare: int = 0) -> np.ndarray:
    """Return ``wanted`` rows, ascending: of each class the first in ``order``, as many as its share.

    What is left after rounding down goes to the classes with the largest remainders, as in scikit-learn. Of each class
    ``spare`` examples are never taken.
    """
    present, which, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    exact = wanted * counts / len(order)
    each = np.minimum(np.floor(exact).astype(int), counts - spare)
    first = np.full(len(present), len(order))
    np.minimum.at(first, which, np.arange(len(order)))  # of equal remainders the class drawn first: random by seed
    for k in np.lexsort((first, -np.round(exact - np.floor(exact), 9))):
        if each.sum() < wanted and each[k] < counts[k] - spare:
            each[k] += 1
    rank = np.empty(len(order), int)  # of an example within its class
    by_class = np.argsort(which, kind="stable")
    rank[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < each[which]])


def _cut_groups(labels: np.ndarray, groups: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return which examples (N,) are drawn: whole groups, so that each class comes near its share.

    Groups are put in and taken out again, in random order, as long as that brings the classes nearer to their shares;
    the best of some attempts is taken.
    """
    names, which = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise UserError(
            f"all {len(groups)} training examples are of one group ({names[0]}), so none can be held out; "
            "set config.data.validation=0, bring more, or group otherwise (config.data.group, 'none' for no groups)"
        )
    present, label = np.unique(labels, return_inverse=True)
    totals = np.bincount(label)
    pairs, counts = np.unique(which * len(present) + label, return_counts=True)
    starts = np.searchsorted(pairs, np.arange(len(names) + 1) * len(present))
    content = [(pairs[a:b] % len(present), counts[a:b]) for a, b in zip(starts, starts[1:], strict=False)]
    best, least = None, np.inf
    for _ in range(int(np.clip(FLIPS // len(names), 1, ATTEMPTS))):
        inside, cost = _attempt(content, totals, share, rng)
        if cost < least:
            best, least = inside, cost
    assert best is not None
    return best[which]


def _attempt(
    content: Sequence[tuple[np.ndarray, np.ndarray]], totals: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return which of G groups are drawn, and how far the classes are from their shares.

    Args:
        content: of each group its classes and how many examples it has of them.
        totals: examples (K,) of each class.
        share: wanted of each class.
        rng: of the order in which groups are tried.
    """
    inside, held = np.zeros(len(content), bool), np.zeros(len(totals))
    order = rng.permutation(len(content))

    def change(group: int) -> float:
        """Return what flipping a group adds to the cost; infinity if a class would have nothing left in train."""
        own, counts = content[group]
        new = held[own] - counts if inside[group] else held[own] + counts
        if (new >= totals[own]).any():
            return np.inf
        return float((((new / totals[own]) - share) ** 2 - ((held[own] / totals[own]) - share) ** 2).sum())

    def flip(group: int) -> None:
        own, counts = content[group]
        held[own] += -counts if inside[group] else counts
        inside[group] = not inside[group]

    for _ in range(4):
        before = inside.copy()
        for group in order.tolist():
            if change(group) < -1e-12:
                flip(group)
        if (inside == before).all():
            break
    if not inside.any():  # every group is larger than what is wanted: the one that fits best
        changes = np.asarray([change(group) for group in order.tolist()])
        if not np.isfinite(changes).any():
            raise UserError(
                "every group of the training examples is the only one of some class, so none can be held out; "
                "set config.data.validation=0, bring more, or group otherwise (config.data.group, 'none' for no groups)"
            )
        flip(int(order[changes.argmin()]))
    return inside, float(((held / totals - share) ** 2).sum())


def _tell_whole(labels: np.ndarray, groups: np.ndarray, classes: Sequence[str]) -> None:
    """Say which classes stay in train whole, having one example, or one group, only."""
    pairs = np.unique(np.stack([labels, np.unique(groups, return_inverse=True)[1]]), axis=1)
    present, counts = np.unique(pairs[0], return_counts=True)
    single = present[counts == 1]
    if len(single) and len(present) > 1:
        named = [str(classes[k]) if len(classes) > k else f"class {k}" for k in single[:3]]
        what = "example" if len(groups) == len(np.unique(groups)) else "group"
        say_once(
            f"{len(single)} of {len(present)} classes have one training {what} ({', '.join(named)}"
            f"{', ...' if len(single) > 3 else ''}), which stays in train; validation says nothing of them"
        )
