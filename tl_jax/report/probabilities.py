"""Probabilities of classes drawn as bars for the terminal."""

from collections.abc import Sequence

import numpy as np

BAR = 30  # characters of a probability of 1
SHOWN = 5  # classes, the likeliest first


def lines(title: str, classes: Sequence[str], row: np.ndarray) -> list[str]:
    """Return ``title`` and below it the likeliest of K classes with their probabilities (K,)."""
    width = max(map(len, classes))
    bars = [
        f"  {classes[i]:{width}}  {row[i]:.3f}  {'█' * round(BAR * float(row[i]))}" for i in np.argsort(-row)[:SHOWN]
    ]
    return [title, *bars]
