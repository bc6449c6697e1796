"""OTDD: how far one labelled data set is from another, labels compared by what they stand for."""

import numpy as np
import threadpoolctl

from tl_jax.distance import gaussians, sides, transport
from tl_jax.errors import UserError, nearest

METHODS = ("exact", "sinkhorn")
SMALL = 512  # examples of a class up to which one thread is faster than several


def otdd(
    x1: sides.Array,
    y1: sides.Array,
    x2: sides.Array,
    y2: sides.Array,
    method: str = "exact",
    epsilon: float = 0.002,
    tolerance: float = 1e-4,
    steps: int = 5000,
) -> float:
    """Return the optimal transport data set distance (Alvarez-Melis and Fusi 2020, arXiv:2002.02923).

    It is the least mean over plans of |x - x'|^2 + W2^2(y, y'), in squared units, examples of a side weighing the same.
    A label is the Gaussian of its examples, with covariance 1 / (n - 1), zero for one example; W2 is that of Bures. So
    the two sides need no classes in common, and what the labels are called is of no matter. In double precision.

    Args:
        x1: (N1, D) float.
        y1: (N1,) int from 0 on; gaps do not matter.
        x2: (N2, D) float, of the same layer of the same network.
        y2: (N2,) int from 0 on.
        method: "exact", by assignment; sizes that are not equal and have no small common multiple need a linear
            programme, which ends at a million pairs. "sinkhorn", by OTT-JAX: the entropic cost S, debiased, which is
            S(1, 2) - (S(1, 1) + S(2, 2)) / 2. On the sets of the tests it is below the exact value by less than 1 % at
            the default epsilon.
        epsilon: of "sinkhorn", the strength of the entropy as a share of the mean cost between the sides.
        tolerance: of "sinkhorn", the error of the plan's marginals, in sum, at which it ends.
        steps: of "sinkhorn", at most this many iterations.

    Raises:
        UserError: shapes that do not belong together, values that are not finite, labels that are none, no such
            method, sets that are too large for it, or iterations that did not end.
    """
    if method not in METHODS:
        raise UserError(f"no method {method!r}; {nearest(method, METHODS)}")
    if not epsilon > 0:
        raise UserError(f"epsilon={epsilon} must be above 0")
    a, b = sides.pair(x1, x2)
    one, two = sides.labels(y1, len(a), "y1"), sides.labels(y2, len(b), "y2")
    largest = len(a) * len(b) if method == "exact" else max(len(a), len(b)) ** 2
    if largest > transport.PAIRS:
        most = int(transport.PAIRS**0.5)
        raise UserError(f"{len(a)} and {len(b)} examples are {largest:.1e} pairs; pass a sample of {most} a side")
    origin = a.mean(0)  # far from it differences of squares would be rounding
    a, b = a - origin[None], b - origin[None]
    first, second = (a, one, _gaussians(a, one)), (b, two, _gaussians(b, two))
    if method == "exact":
        return transport.exact(_cost(first, second))
    costs = _cost(first, second), _cost(first, first), _cost(second, second)
    return transport.debiased(*costs, float(epsilon), float(tolerance), int(steps))


def _gaussians(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the mean (D,) and the factor (R, D) of the covariance of each class."""
    classes = [x[y == k] for k in range(y.max() + 1)]
    return [(members.mean(0), gaussians.factor(members)) for members in classes]


def _cost(one: tuple, two: tuple) -> np.ndarray:
    """Return (N1, N2), what it takes to bring an example and its label over."""
    (x1, y1, labels1), (x2, y2, labels2) = one, two
    cost = -2 * (x1 @ x2.T)
    cost += (x1**2).sum(1)[:, None]
    cost += (x2**2).sum(1)[None]
    np.maximum(cost, 0, out=cost)
    if one is two:
        np.fill_diagonal(cost, 0)
    cost += _between(labels1, labels2)[np.ix_(y1, y2)]
    return cost


def _between(one: list, two: list) -> np.ndarray:
    """Return (K1, K2), W2^2 between the Gaussians of two lists; within one list each pair is computed once."""
    # On the host: each class has a size of its own, and a program for each pair of sizes would take longer to compile.
    same, spread = one is two, [[(f**2).sum() for _, f in side] for side in (one, two)]
    squared = np.zeros((len(one), len(two)))
    small = all(len(f) <= SMALL for _, f in one + two)
    with threadpoolctl.threadpool_limits(1 if small else None):  # on a busy machine they wait for each other
        for i, (m1, f1) in enumerate(one):
            for j, (m2, f2) in enumerate(two):
                if same and j <= i:
                    squared[i, j] = squared[j, i] if j < i else 0
                    continue
                apart = spread[0][i] + spread[1][j] - 2 * gaussians.overlap(f1, f2)
                squared[i, j] = ((m1 - m2) ** 2).sum() + max(0.0, apart)
    return squared
