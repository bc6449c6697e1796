"""OTDD: optimal transport distance between labelled datasets, exact or by Sinkhorn iterations.

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
MAX_ASSIGNMENT = 6000  # rows and columns of an assignment with repeated examples: about 20 seconds on one core
MAX_VARIABLES = 2**20  # of a linear program: about 30 seconds on one core
RELAXATION = 1.5  # over-relaxation of Sinkhorn steps, which halves their number (arXiv:1711.01851)


def exact_cost(cost: np.ndarray) -> float:
    """Return the minimum over transport plans of sum pi c for uniform marginals.

    Equal sizes, or sizes with a common multiple of at most ``MAX_ASSIGNMENT``, are solved as an assignment (of repeated
    examples); others as a linear program, which is far slower.

    Args:
        cost: (N1, N2) float64.

    Raises:
        UserError: There are too many pairs for a linear program.
    """
    n, m = cost.shape
    multiple = math.lcm(n, m)
    if n != m and multiple > MAX_ASSIGNMENT:
        if n * m > MAX_VARIABLES:
            raise UserError(
                f"exact plan: {n} and {m} examples are too many; pass equal numbers on both sides, at most "
                f"{MAX_VARIABLES} pairs, or method='sinkhorn'"
            )
        return _linear_program(cost)
    # With equal weights an optimal plan is a permutation, also if each example is repeated.
    cost = np.repeat(np.repeat(cost, multiple // n, 0), multiple // m, 1) if n != m else cost
    return float(cost[scipy.optimize.linear_sum_assignment(cost)].mean())


def _linear_program(cost: np.ndarray) -> float:
    """Return the minimum mean cost by HiGHS. Masses are integers, n m in total, which keeps its arithmetic exact."""
    n, m = cost.shape
    i, j = (index.ravel() for index in np.indices(cost.shape))
    rows, columns = np.concatenate([i, n + j]), np.tile(np.arange(n * m), 2)
    sums = scipy.sparse.csc_array((np.ones(2 * n * m), (rows, columns)), shape=(n + m, n * m))
    masses = np.concatenate([np.full(n, float(m)), np.full(m, float(n))])
    scale = cost.max() or 1.0  # HiGHS' tolerances are absolute
    result = scipy.optimize.linprog(cost.ravel() / scale, A_eq=sums, b_eq=masses, method="highs")
    if result.status:
        raise UserError(f"exact plan: not found ({result.message}); pass method='sinkhorn'")
    return float(result.fun * scale / (n * m))


def sinkhorn_cost(
    cost: np.ndarray, within1: np.ndarray, within2: np.ndarray, epsilon: float, tolerance: float, steps: int
) -> float:
    """Return the Sinkhorn divergence S(a, b) - (S(a, a) + S(b, b)) / 2 (Feydy et al. 2019, arXiv:1810.08278).

    Args:
        cost: (N1, N2) float64, between the datasets.
        within1: (N1, N1), within the first.
        within2: (N2, N2), within the second.
        epsilon: entropic regularization, as a fraction of the mean of ``cost``, for all three terms.
        tolerance: total error of the marginals at which the iterations stop.
        steps: maximum number of iterations.

    Raises:
        UserError: The iterations did not converge.
    """
    scale = cost.mean()
    if not scale:  # all examples are equal
        return 0.0
    costs = [c / scale for c in (cost, within1, within2)]
    # OTT-JAX relies on implicit rank promotion, which the caller may forbid.
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        value, errors = _sinkhorn_divergence(*map(jnp.asarray, costs), epsilon, tolerance, steps)
        if not bool((errors < tolerance).all()):
            raise UserError(f"Sinkhorn: not converged in {steps} steps at epsilon={epsilon}; increase epsilon or steps")
        return float(max(0.0, float(value)) * scale)


@functools.partial(jax.jit, static_argnums=5)
def _sinkhorn_divergence(cost, within1, within2, epsilon, tolerance, steps: int) -> tuple[jax.Array, jax.Array]:
    """Return the divergence and the final error of each of its three problems."""
    # Imported here because OTT-JAX imports matplotlib, which takes a second.
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
    last_errors = [jnp.where(e == -1, jnp.inf, e).min() for e in output.errors]  # -1 for steps not taken
    return value, jnp.stack(last_errors)


METHODS = ("exact", "sinkhorn")
SINGLE_THREAD_SIZE = 512  # class size up to which one thread is faster than several


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
    """Return the optimal transport dataset distance (Alvarez-Melis and Fusi 2020, arXiv:2002.02923).

    It is the minimum over transport plans of the mean of ``|x - x'|^2 + W2^2(y, y')``, in squared units. All examples
    of a dataset have equal weight. A label is represented by the Gaussian of its examples, with covariance 1 / (n - 1),
    zero for one example; W2 is the Bures-Wasserstein distance. So the datasets need no common classes, and class names
    do not matter. Computed in double precision.

    Args:
        x1: (N1, D) float.
        y1: (N1,) int from 0 on; gaps are allowed.
        x2: (N2, D) float, from the same layer of the same network.
        y2: (N2,) int from 0 on.
        method: "exact", by assignment; unequal sizes without a small common multiple need a linear program, for at most
            a million pairs. "sinkhorn", by OTT-JAX: the debiased entropic cost S(1, 2) - (S(1, 1) + S(2, 2)) / 2. On
            the datasets of the tests it is below the exact value by less than 1 % at the default epsilon.
        epsilon: entropic regularization of "sinkhorn", as a fraction of the mean cost between the datasets.
        tolerance: total error of the marginals at which "sinkhorn" stops.
        steps: maximum number of iterations of "sinkhorn".

    Raises:
        UserError: The shapes do not match, values are not finite, labels are not class indices, the method is unknown,
            the datasets are too large for it, or the iterations did not converge.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; {nearest(method, METHODS)}")
    if not epsilon > 0:
        raise UserError(f"epsilon={epsilon}: out of range; it must be above 0")
    a, b = _inputs.feature_pair(x1, x2)
    labels1, labels2 = _inputs.dataset_labels(y1, len(a), "y1"), _inputs.dataset_labels(y2, len(b), "y2")
    num_pairs = len(a) * len(b) if method == "exact" else max(len(a), len(b)) ** 2
    if num_pairs > MAX_PAIRS:
        max_side = int(MAX_PAIRS**0.5)
        raise UserError(
            f"{len(a)} and {len(b)} examples: {num_pairs:.1e} pairs are too many; pass at most {max_side} each"
        )
    origin = a.mean(0)  # reduces rounding in differences of squares
    a, b = a - origin[None], b - origin[None]
    side1, side2 = (a, labels1, _class_gaussians(a, labels1)), (b, labels2, _class_gaussians(b, labels2))
    if method == "exact":
        return exact_cost(_transport_cost(side1, side2))
    costs = _transport_cost(side1, side2), _transport_cost(side1, side1), _transport_cost(side2, side2)
    return sinkhorn_cost(*costs, float(epsilon), float(tolerance), int(steps))


def _class_gaussians(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the mean (D,) and the covariance factor (R, D) of each class."""
    classes = [x[y == k] for k in range(y.max() + 1)]
    return [(members.mean(0), covariance_factor(members)) for members in classes]


def _transport_cost(side1: tuple, side2: tuple) -> np.ndarray:
    """Return the transport cost (N1, N2) of examples with their labels."""
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
    # On the host, since classes differ in size, and compiling a program per pair of sizes would take longer.
    same, traces = gaussians1 is gaussians2, [[(f**2).sum() for _, f in side] for side in (gaussians1, gaussians2)]
    squared = np.zeros((len(gaussians1), len(gaussians2)))
    is_small = all(len(f) <= SINGLE_THREAD_SIZE for _, f in gaussians1 + gaussians2)
    with threadpoolctl.threadpool_limits(1 if is_small else None):  # threads wait for each other on a busy machine
        for i, (m1, f1) in enumerate(gaussians1):
            for j, (m2, f2) in enumerate(gaussians2):
                if same and j <= i:
                    squared[i, j] = squared[j, i] if j < i else 0
                    continue
                trace_term = traces[0][i] + traces[1][j] - 2 * factor_overlap(f1, f2)
                squared[i, j] = ((m1 - m2) ** 2).sum() + max(0.0, trace_term)
    return squared


MAX_EXACT = 2000  # rows of the assignment up to which OTDD is exact


def exact_is_cheap(n: int, m: int) -> bool:
    """Return whether datasets of n and m examples can be assigned with few repetitions."""
    return math.lcm(n, m) <= MAX_EXACT


@register_score("otdd", SETS)
def _fast_otdd(x1: np.ndarray, y1: np.ndarray, x2: np.ndarray, y2: np.ndarray, key: jax.Array) -> float:
    """Return OTDD, exact if that is cheap."""
    return otdd(x1, y1, x2, y2, "exact" if exact_is_cheap(len(x1), len(x2)) else "sinkhorn")
