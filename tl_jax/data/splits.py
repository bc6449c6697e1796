"""Cut a validation part from the training set and thin the rest, by seed; the test part is never touched here."""

import numpy as np

from tl_jax.data.pictures import Rows, Split
from tl_jax.errors import UserError


def take(split: Split, rows: np.ndarray) -> Split:
    """Return the given rows of a split, without a copy of its pictures."""
    if len(rows) == len(split.labels) and (rows == np.arange(len(rows))).all():
        return split
    groups, files = (None if each is None else each[rows] for each in (split.groups, split.files))
    return Split(Rows(split.images, rows), split.labels[rows], groups, files)


def cut_validation(train: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Return (train, validation) with ``share`` in [0, 1) of the examples, drawn by ``seed``, in the second.

    Where there are groups whole ones are drawn, and the share is met as nearly as they allow.

    Raises:
        UserError: ``share`` is not 0 but too small for one example, or there is one group only.
    """
    if share and train.groups is not None:
        return _cut_groups(train, train.groups, share, seed)
    order = np.random.default_rng((seed, 1)).permutation(len(train.labels))
    n = round(share * len(order))
    if share and not n:
        raise UserError(f"config.data.validation={share} of {len(order)} examples is none; raise it, or set it to 0")
    return take(train, np.sort(order[n:])), take(train, np.sort(order[:n]))


def _cut_groups(train: Split, groups: np.ndarray, share: float, seed: int) -> tuple[Split, Split]:
    names, which = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise UserError(
            f"all {len(groups)} training examples are of one group ({names[0]}), so none can be held out; "
            "set config.data.validation=0, or bring more"
        )
    order = np.random.default_rng((seed, 1)).permutation(len(names))
    sizes = np.cumsum(np.bincount(which)[order])[:-1]  # some group always stays in train
    drawn = order[: int(np.abs(sizes - share * len(groups)).argmin()) + 1]
    chosen = np.isin(which, drawn)
    return take(train, np.flatnonzero(~chosen)), take(train, np.flatnonzero(chosen))


def thin(train: Split, examples: int, per_class: int, classes: int, seed: int) -> Split:
    """Keep ``examples`` random ones, or ``per_class`` random ones of each of K classes; 0 keeps all. Not both.

    Raises:
        UserError: there are fewer than asked for.
    """
    order = np.random.default_rng((seed, 2)).permutation(len(train.labels))
    if examples:
        if examples > len(order):
            raise UserError(f"config.data.train_examples={examples}, but only {len(order)} are left; lower it")
        order = order[:examples]
    if per_class:
        by_class = [order[train.labels[order] == k][:per_class] for k in range(classes)]
        short = [k for k, rows in enumerate(by_class) if len(rows) < per_class]
        if short:
            raise UserError(
                f"config.data.per_class={per_class}, but class {short[0]} has {len(by_class[short[0]])}; lower it"
            )
        order = np.concatenate(by_class)
    return take(train, np.sort(order))
