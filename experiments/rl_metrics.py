"""What transfer changes about learning curves (Taylor and Stone 2009, JMLR 10), each paired by seed with scratch."""

from collections.abc import Sequence

import numpy as np

LAST = 0.2  # share of the evaluations, from the end, that the asymptote is the mean of


def jump_start(curve: np.ndarray, scratch: np.ndarray) -> float:
    """Return how much better the first evaluation is, before anything is trained; curves (V,) of V evaluations."""
    return float(curve[0] - scratch[0])


def asymptote(curve: np.ndarray) -> float:
    """Return the mean of the last evaluations."""
    return float(curve[-max(1, round(LAST * len(curve))) :].mean())


def steps_to(curve: np.ndarray, steps: Sequence[float], threshold: float) -> float:
    """Return the steps after which an evaluation first reaches ``threshold``; infinite where none does."""
    reached = np.flatnonzero(np.asarray(curve) >= threshold)
    return float(steps[reached[0]]) if len(reached) else float("inf")


def area_ratio(curve: np.ndarray, scratch: np.ndarray, floor: float) -> float:
    """Return the area between a curve and ``floor``, over that of scratch, minus 1: 0 where transfer changes nothing.

    Args:
        curve, scratch: (V,) at the same steps.
        floor: what an untrained policy has, so that worlds with negative rewards can be compared.
    """
    areas = [float(np.trapezoid(np.asarray(each) - floor)) for each in (curve, scratch)]
    return areas[0] / areas[1] - 1.0 if areas[1] > 0 else float("nan")
