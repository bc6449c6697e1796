"""Standard errors from half of the examples at a time, for measures that examples which come twice would mislead."""

from collections.abc import Callable, Sequence

import numpy as np

from tl_jax.errors import UserError


def standard_error(
    measure: Callable[..., float], sides: Sequence[np.ndarray], count: int, rng: np.random.Generator
) -> float:
    """Return the standard error of a measure by the delete-half jackknife (doi:10.1214/aos/1176347263).

    Over samples of m of n examples without replacement a mean has the variance (1 - m / n) s^2 / m, which at half of
    the examples is s^2 / n: its variance over new data. Other measures are means to first order; that they are larger
    or smaller of fewer examples does not enter. Each class gives half of its own, rounded up, so that classes keep
    their shares and no sample lacks one.

    Args:
        measure: takes the places (M,) of each side and returns a number.
        sides: labels (N,) of each side.
        count: how many samples.
        rng: what they are drawn from.

    Returns:
        NaN where fewer than two samples are asked for, nothing can be left out, or the measure refuses one of them.
    """
    total = sum(len(labels) for labels in sides)
    try:
        drawn = [[_half(labels, rng) for labels in sides] for _ in range(count)]
        values = [measure(*places) for places in drawn]
    except UserError:
        return np.nan
    taken = sum(map(len, drawn[0])) if drawn else total
    if count < 2 or taken == total:
        return np.nan
    return float(np.std(values, ddof=1)) * (taken / (total - taken)) ** 0.5


def _half(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    classes = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    return np.sort(np.concatenate([rng.permutation(c)[: -(-len(c) // 2)] for c in classes]))
