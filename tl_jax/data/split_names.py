"""The names under which data sets call their splits; every reader asks here."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from tl_jax.errors import UserError

T = TypeVar("T")
NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "validate", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout", "heldout"),
}
SPLITS = {name: split for split, names in NAMES.items() for name in names}
ALL = ", ".join(SPLITS)  # for messages


def split_of(name: str) -> str | None:
    """Return the split that ``name`` stands for, in any case: "train", "validation", "test", or None for no split."""
    return SPLITS.get(name.strip().lower())


def find_splits(names: Iterable[str], where: object) -> dict[str, str]:
    """Return the name of each split that is among ``names``: split -> name, in the order train, validation, test.

    Args:
        names: of folders, files without their ending, or arrays; those that name no split are passed over.
        where: they stand, for the message.

    Raises:
        UserError: two of them name the same split, such as ``val`` and ``dev``.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        split = split_of(name)
        if split is None:
            continue
        if split in found:
            raise UserError(
                f"{where}: both {found[split]!r} and {name!r} name the {split} split; rename or merge one of them"
            )
        found[split] = name
    return {split: found[split] for split in NAMES if split in found}


def with_test(splits: Mapping[str, T]) -> dict[str, T]:
    """Return the splits with a validation split as the test split if there is none: one beside train is tested."""
    alone = "validation" in splits and "test" not in splits
    return {"test" if alone and split == "validation" else split: value for split, value in splits.items()}
