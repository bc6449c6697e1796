"""Optimal transport between uniform weights: the least mean cost, exactly and by Sinkhorn's iterations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse

from tl_jax.errors import UserError

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
