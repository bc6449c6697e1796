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
from tl_jax.transferability.frechet import covariance_factor, factor_overlap
from tl_jax.transferability.registry import SETS, register_score
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.extras import require_extra

MAX_PAIRS = 2**27  # of a cost matrix: 1 GiB
MAX_ASSIGNMENT = 6000  # rows and columns of an assignment in which examples are repeated: about 20 seconds on a core
MAX_VARIABLES = 2**20  # of a linear programme: about 30 seconds on a core
RELAXATION = 1.5  # a step goes this much further than to the marginal, which halves their number (arXiv:1711.01851)


def exact_cost(cost: np.ndarray) -> float:
    """Return min over plans of sum pi c for uniform marginals.

    Equal sizes, or such with a common multiple of at most ``MAX_ASSIGNMENT``, are an assignment (of repeated examples);
    others are a linear programme, which is far slower.

    Args:
        cost: (N1, N2) float64.

    Raises:
        UserError: more pairs than the programme can take.
    """
    n, m = cost.shape
    multiple = math.lcm(n, m)
    if n != m and multiple > MAX_ASSIGNMENT:
        if n * m > MAX_VARIABLES:
            raise UserError(
                f"an exact plan between {n} and {m} examples is too large; pass equally many on both sides, no more "
                f"than {MAX_VARIABLES} pairs, or method='sinkhorn'"
            )
        return _linear_program(cost)
    # A vertex of the plans of equal weights is a permutation, so it is one when each example comes several times.
    cost = np.repeat(np.repeat(cost, multiple // n, 0), multiple // m, 1) if n != m else cost
    return float(cost[scipy.optimize.linear_sum_assignment(cost)].mean())


def _linear_program(cost: np.ndarray) -> float:
    """Return the least mean cost by HiGHS. Masses are whole numbers, n m in all, which keeps its arithmetic exact."""
    n, m = cost.shape
    i, j = (index.ravel() for index in np.indices(cost.shape))
    rows, columns = np.concatenate([i, n + j]), np.tile(np.arange(n * m), 2)
    sums = scipy.sparse.csc_array((np.ones(2 * n * m), (rows, columns)), shape=(n + m, n * m))
    masses = np.concatenate([np.full(n, float(m)), np.full(m, float(n))])
    scale = cost.max() or 1.0  # its tolerances are absolute
    result = scipy.optimize.linprog(cost.ravel() / scale, A_eq=sums, b_eq=masses, method="highs")
    if result.status:
        raise UserError(f"no exact plan was found ({result.message}); pass method='sinkhorn'")
    return float(result.fun * scale / (n * m))


def sinkhorn_cost(
    cost: np.ndarray, within1: np.ndarray, within2: np.ndarray, epsilon: float, tolerance: float, steps: int
) -> float:
    """Return the Sinkhorn divergence S(a, b) - (S(a, a) + S(b, b)) / 2 (Feydy et al. 2019, arXiv:1810.08278).

    Args:
        cost: (N1, N2) float64 between the sides.
        within1: (N1, N1), within the first.
        within2: (N2, N2), within the second.
        epsilon: strength of the entropy, as a share of the mean of ``cost``; all three terms have the same.
        tolerance: the iterations end when the marginals are within it, in sum.
        steps: at most this many iterations.

    Raises:
        UserError: the iterations did not end.
    """
    scale = cost.mean()
    if not scale:  # all examples are in one place
        return 0.0
    costs = [c / scale for c in (cost, within1, within2)]
    # OTT-JAX relies on implicit broadcasting, which the caller may have forbidden.
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        value, errors = _sinkhorn_divergence(*map(jnp.asarray, costs), epsilon, tolerance, steps)
        if not bool((errors < tolerance).all()):
            raise UserError(
                f"Sinkhorn did not settle in {steps} steps at epsilon={epsilon}; make epsilon or steps larger"
            )
        return float(max(0.0, float(value)) * scale)


@functools.partial(jax.jit, static_argnums=5)
def _sinkhorn_divergence(cost, within1, within2, epsilon, tolerance, steps: int) -> tuple[jax.Array, jax.Array]:
    """Return the divergence and the last error of each of its three problems."""
    # OTT-JAX brings matplotlib along, which takes a second that other measures need not wait for.
    with require_extra("distance"):
        from ott.geometry import geometry
        from ott.solvers.linear import acceleration
        from ott.tools import sinkhorn_divergence

    solver_options = {
        "threshold": tolerance,
        "max_iterations": steps,
        "momentum": acceleration.Momentum(value=RELAXATION, start=0),
        "implicit_diff": None,
    }
    value, output = sinkhorn_divergence.sinkhorn_divergence(
        geometry.Geometry, cost, within1, within2, epsilon=epsilon, solve_kwargs=solver_options
    )
    last_errors = [jnp.where(e == -1, jnp.inf, e).min() for e in output.errors]  # -1 where no step was taken
    return value, jnp.stack(last_errors)


METHODS = ("exact", "sinkhorn")
SINGLE_THREAD_SIZE = 512  # examples of a class up to which one thread is faster than several


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

    It is the least mean over plans of ``|x - x'|^2 + W2^2(y, y')``, in squared units; the examples of a side weigh the
    same.
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
    a, b = _inputs.feature_pair(x1, x2)
    labels1, labels2 = _inputs.dataset_labels(y1, len(a), "y1"), _inputs.dataset_labels(y2, len(b), "y2")
    num_pairs = len(a) * len(b) if method == "exact" else max(len(a), len(b)) ** 2
    if num_pairs > MAX_PAIRS:
        max_side = int(MAX_PAIRS**0.5)
        raise UserError(f"{len(a)} and {len(b)} examples are {num_pairs:.1e} pairs; pass a sample of {max_side} a side")
    origin = a.mean(0)  # far from it differences of squares would be rounding
    a, b = a - origin[None], b - origin[None]
    side1, side2 = (a, labels1, _class_gaussians(a, labels1)), (b, labels2, _class_gaussians(b, labels2))
    if method == "exact":
        return exact_cost(_transport_cost(side1, side2))
    costs = _transport_cost(side1, side2), _transport_cost(side1, side1), _transport_cost(side2, side2)
    return sinkhorn_cost(*costs, float(epsilon), float(tolerance), int(steps))


def _class_gaussians(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the mean (D,) and the factor (R, D) of the covariance of each class."""
    classes = [x[y == k] for k in range(y.max() + 1)]
    return [(members.mean(0), covariance_factor(members)) for members in classes]


def _transport_cost(side1: tuple, side2: tuple) -> np.ndarray:
    """Return (N1, N2), what it takes to bring an example and its label over."""
    (x1, y1, gaussians1), (x2, y2, gaussians2) = side1, side2
    cost = -2 * (x1 @ x2.T)
    cost += (x1**2).sum(1)[:, None]
    cost += (x2**2).sum(1)[None]
    np.maximum(cost, 0, out=cost)
    if side1 is side2:
        np.fill_diagonal(cost, 0)
    cost += _label_distances(gaussians1, gaussians2)[np.ix_(y1, y2)]
    return cost


def _label_distances(gaussians1: list, gaussians2: list) -> np.ndarray:
    """Return (K1, K2), W2^2 between the Gaussians of two lists; within one list each pair is computed once."""
    # On the host: each class has a size of its own, and a program for each pair of sizes would take longer to compile.
    same, traces = gaussians1 is gaussians2, [[(f**2).sum() for _, f in side] for side in (gaussians1, gaussians2)]
    squared = np.zeros((len(gaussians1), len(gaussians2)))
    is_small = all(len(f) <= SINGLE_THREAD_SIZE for _, f in gaussians1 + gaussians2)
    with threadpoolctl.threadpool_limits(1 if is_small else None):  # on a busy machine they wait for each other
        for i, (m1, f1) in enumerate(gaussians1):
            for j, (m2, f2) in enumerate(gaussians2):
                if same and j <= i:
                    squared[i, j] = squared[j, i] if j < i else 0
                    continue
                trace_term = traces[0][i] + traces[1][j] - 2 * factor_overlap(f1, f2)
                squared[i, j] = ((m1 - m2) ** 2).sum() + max(0.0, trace_term)
    return squared


MAX_EXACT = 2000  # rows of the assignment up to which OTDD is found exactly


def exact_is_cheap(n: int, m: int) -> bool:
    """Whether sets of n and m examples need not repeat them often to be assigned to one another."""
    return math.lcm(n, m) <= MAX_EXACT


@register_score("otdd", SETS)
def _fast_otdd(x1: np.ndarray, y1: np.ndarray, x2: np.ndarray, y2: np.ndarray, key: jax.Array) -> float:
    """Return OTDD, by assignment where that is cheap."""
    return otdd(x1, y1, x2, y2, "exact" if exact_is_cheap(len(x1), len(x2)) else "sinkhorn")
