"""Frechet distance between two sets of features, and distances between Gaussians."""

import numpy as np

from tl_jax.transferability import _inputs
from tl_jax.transferability.registry import SETS, register_score


def frechet(x1: _inputs.Array, x2: _inputs.Array) -> float:
    """Return the squared Frechet distance of two datasets, modelled as Gaussians.

    It is ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2)`` for means m and covariances S with 1 / (N - 1), which
    may be singular (Dowson and Landau 1982; for network features Heusel et al. 2017, arXiv:1706.08500). Computed on the
    host in double precision. The cost is N D min(N, D) plus min(N, D)^3; memory is three times both datasets in
    float64.

    Args:
        x1: (N1, D) float.
        x2: (N2, D) float, from the same layer of the same network.

    Raises:
        UserError: The shapes do not match, values are not finite, or a dataset has one example.
    """
    a, b = _inputs.feature_pair(x1, x2, min_rows=2)
    # Far from the origin, rounding of the means would matter.
    origin = a.mean(0)
    a -= origin[None]
    b -= origin[None]
    mean, f1, f2 = b.mean(0), covariance_factor(a), covariance_factor(b)
    return float(max(0.0, mean @ mean + (f1**2).sum() + (f2**2).sum() - 2 * factor_overlap(f1, f2)))


def covariance_factor(x: np.ndarray) -> np.ndarray:
    """Return F (R, D) such that F'F is the covariance of ``x`` (N, D), with 1 / (N - 1) and R <= min(N, D).

    The covariance of one example is zero.
    """
    x = (x - x.mean(0)[None]) / np.sqrt(max(1, len(x) - 1))
    if len(x) <= x.shape[1]:
        return x
    values, vectors = np.linalg.eigh(x.T @ x)
    # Zero eigenvalues are rounding noise, which the square root would amplify.
    keep = values > x.shape[1] * np.finfo(np.float64).eps * values.max(initial=0)
    return np.sqrt(values[keep])[:, None] * vectors.T[keep]


def factor_overlap(f1: np.ndarray, f2: np.ndarray) -> float:
    """Return tr (S1^1/2 S2 S1^1/2)^1/2 for covariances S = F'F: the sum of the singular values of F1 F2'.

    With fewer examples than features, the matrices are only as large as the datasets, and no square root of rounding
    noise is taken.
    """
    return float(np.linalg.svd(f1 @ f2.T, compute_uv=False).sum()) if len(f1) and len(f2) else 0.0


register_score("frechet", SETS)(lambda x1, y1, x2, y2, key: frechet(x1, x2))
