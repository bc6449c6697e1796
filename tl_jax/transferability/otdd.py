"""OTDD: the optimal transport distance between labelled data sets, exact and by Sinkhorn iterations.

Each label is represented by the distribution of its features.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse
import threadpoolctl

from tl_jax.transferability import _inputs
from tl_jax.transferability.frechet import factor, overlap
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.extras import require_extra

PAIRS = 2**27  # of a cost matrix: 1 GiB
MULTIPLE = 6000  # rows and columns of an assignment in which examples are repeated: about 20 seconds on a core
VARIABLES = 2**20  # of a linear programme: about 30 seconds on a core
RELAXATION = 1.5  # a step goes this much further than to the marginal, which halves their number (arXiv:1711.01851)


def exact(cost: np.ndarray) -> float:
    """Return min over plans of sum pi c for uniform marginals.

    Equal sizes, or such with a common multiple of at most ``MULTIPLE``, are an assignment (of repeated examples);
    others are a linear programme, which is far slower.

    Args:
        cost: (N1, N2) float64.

    Raises:
        UserError: more pairs than the programme can take.
    """
    n, m = cost.shape
    multiple = math.lcm(n, m)
    if n != m and multiple > MULTIPLE:
        if n * m > VARIABLES:
            raise UserError(
                f"an exact plan between {n} and {m} examples is too large; pass equally many on both sides, no more "
                f"than {VARIABLES} pairs, or method='sinkhorn'"
            )
        return _programme(cost)
    # A vertex of the plans of equal weights is a permutation, so it is one when each example comes several times.
    cost = np.repeat(np.repeat(cost, multiple // n, 0), multiple // m, 1) if n != m else cost
    return float(cost[scipy.optimize.linear_sum_assignment(cost)].mean())


def _programme(cost: np.ndarray) -> float:
    """Return the least mean cost by HiGHS. Masses are whole numbers, n m in all, which keeps its arithmetic exact."""
    n, m = cost.shape
    i, j = (index.ravel() for index in np.indices(cost.shape))
    rows, columns = np.concatenate([i, n + j]), np.tile(np.arange(n * m), 2)
    sums = scipy.sparse.csc_array((np.ones(2 * n * m), (rows, columns)), shape=(n + m, n * m))
    masses = np.concatenate([np.full(n, float(m)), np.full(m, float(n))])
    scale = cost.max() or 1.0  # its tolerances are absolute
    found = scipy.optimize.linprog(cost.ravel() / scale, A_eq=sums, b_eq=masses, method="highs")
    if found.status:
        raise UserError(f"no exact plan was found ({found.message}); pass method='sinkhorn'")
    return float(found.fun * scale / (n * m))


def debiased(
    cost: np.ndarray, own1: np.ndarray, own2: np.ndarray, epsilon: float, tolerance: float, steps: int
) -> float:
    """Return the Sinkhorn divergence S(a, b) - (S(a, a) + S(b, b)) / 2 (Feydy et al. 2019, arXiv:1810.08278).

    Args:
        cost: (N1, N2) float64 between the sides.
        own1: (N1, N1), within the first.
        own2: (N2, N2), within the second.
        epsilon: strength of the entropy, as a share of the mean of ``cost``; all three terms have the same.
        tolerance: the iterations end when the marginals are within it, in sum.
        steps: at most this many iterations.

    Raises:
        UserError: the iterations did not end.
    """
    scale = cost.mean()
    if not scale:  # all examples are in one place
        return 0.0
    costs = [c / scale for c in (cost, own1, own2)]
    # OTT-JAX relies on implicit broadcasting, which the caller may have forbidden.
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        value, errors = _debiased(*map(jnp.asarray, costs), epsilon, tolerance, steps)
        if not bool((errors < tolerance).all()):
            raise UserError(
                f"Sinkhorn did not settle in {steps} steps at epsilon={epsilon}; make epsilon or steps larger"
            )
        return float(max(0.0, float(value)) * scale)


@functools.partial(jax.jit, static_argnums=5)
def _debiased(cost, own1, own2, epsilon, tolerance, steps: int) -> tuple[jax.Array, jax.Array]:
    """Return the divergence and the last error of each of its three problems."""
    # OTT-JAX brings matplotlib along, which takes a second that other measures need not wait for.
    with require_extra("distance"):
        from ott.geometry import geometry
        from ott.solvers.linear import acceleration
        from ott.tools import sinkhorn_divergence

    how = {
        "threshold": tolerance,
        "max_iterations": steps,
        "momentum": acceleration.Momentum(value=RELAXATION, start=0),
        "implicit_diff": None,
    }
    value, out = sinkhorn_divergence.sinkhorn_divergence(
        geometry.Geometry, cost, own1, own2, epsilon=epsilon, solve_kwargs=how
    )
    last = [jnp.where(e == -1, jnp.inf, e).min() for e in out.errors]  # -1 where no step was taken
    return value, jnp.stack(last)


METHODS = ("exact", "sinkhorn")
SMALL = 512  # examples of a class up to which one thread is faster than several


def otdd(
    x1: _inputs.Array,
    y1: _inputs.Array,
    x2: _inputs.Array,
    y2: _inputs.Array,
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
    a, b = _inputs.pair(x1, x2)
    one, two = _inputs.labels(y1, len(a), "y1"), _inputs.labels(y2, len(b), "y2")
    largest = len(a) * len(b) if method == "exact" else max(len(a), len(b)) ** 2
    if largest > PAIRS:
        most = int(PAIRS**0.5)
        raise UserError(f"{len(a)} and {len(b)} examples are {largest:.1e} pairs; pass a sample of {most} a side")
    origin = a.mean(0)  # far from it differences of squares would be rounding
    a, b = a - origin[None], b - origin[None]
    first, second = (a, one, _gaussians(a, one)), (b, two, _gaussians(b, two))
    if method == "exact":
        return exact(_cost(first, second))
    costs = _cost(first, second), _cost(first, first), _cost(second, second)
    return debiased(*costs, float(epsilon), float(tolerance), int(steps))


def _gaussians(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the mean (D,) and the factor (R, D) of the covariance of each class."""
    classes = [x[y == k] for k in range(y.max() + 1)]
    return [(members.mean(0), factor(members)) for members in classes]


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
                apart = spread[0][i] + spread[1][j] - 2 * overlap(f1, f2)
                squared[i, j] = ((m1 - m2) ** 2).sum() + max(0.0, apart)
    return squared
