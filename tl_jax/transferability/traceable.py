"""Scores and distances that can be traced by ``jax.jit``, ``jax.vmap`` and ``jax.lax.map``, for example in a search.

They compute the functions of the same names in ``tl_jax.transferability`` without checks: arrays must be finite, labels
whole numbers in [0, K), and K is given. Values are scalars in the widest enabled dtype: float64 under
``jax.enable_x64(True)``, else float32, in which scatters of nearly dependent features lose digits. Classes without
examples are ignored.

    jax.vmap(lambda f: traceable.logme(f, labels, 10))(features_of_layers)
"""

import jax
import jax.numpy as jnp

from tl_jax.transferability import _statistics
from tl_jax.transferability.cka import cka_from
from tl_jax.transferability.gbc import gbc_from
from tl_jax.transferability.h_score import h_score_from, regularized_h_score_from
from tl_jax.transferability.leep import leep_from, nce_from
from tl_jax.transferability.logme import logme_from
from tl_jax.transferability.mmd import KERNELS, energy_from, mmd_from
from tl_jax.transferability.parc import parc_from
from tl_jax.transferability.sfda import sfda_from
from tl_jax.transferability.sliced_wasserstein import random_directions, sliced_wasserstein_from
from tl_jax.transferability.transrate import transrate_from
from tl_jax.utils.errors import UserError, nearest


def leep(source_probs: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Return ``leep`` of (N, Z) probabilities and (N,) labels."""
    return leep_from(source_probs, labels, jnp.ones(len(labels)), classes=num_classes)


def nce(source_labels: jax.Array, labels: jax.Array, num_sources: int, num_classes: int) -> jax.Array:
    """Return ``nce`` of (N,) source labels in [0, num_sources) and (N,) labels."""
    return nce_from(source_labels, labels, jnp.ones(len(labels)), sources=num_sources, classes=num_classes)


def logme(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Return ``logme`` of (N, D) features and (N,) labels."""
    return logme_from(_moments(features, labels, num_classes))


def h_score(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Return ``h_score`` of (N, D) features and (N,) labels."""
    return h_score_from(_moments(features, labels, num_classes))


def regularized_h_score(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Return ``regularized_h_score`` of (N, D) features and (N,) labels."""
    return regularized_h_score_from(_moments(features, labels, num_classes))


def transrate(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Return ``transrate`` of (N, D) features and (N,) labels."""
    return transrate_from(_moments(features, labels, num_classes, rates=True))


def gbc(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Return ``gbc`` of (N, D) features and (N,) labels."""
    return gbc_from(_moments(features, labels, num_classes))


def sfda(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Return ``sfda`` of (N, D) features and (N,) labels."""
    return sfda_from(_moments(features, labels, num_classes), features, labels)[0]


def parc(source_probs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return ``parc`` of (N, Z) probabilities or features and (N,) labels, over all N^2 / 2 pairs."""
    return parc_from(source_probs, labels)


def linear_cka(x1: jax.Array, x2: jax.Array, debiased: bool = False) -> jax.Array:
    """Return ``linear_cka`` of (N, D1) and (N, D2) features of the same examples."""
    dtype = _statistics.widest()
    return cka_from(x1.astype(dtype), x2.astype(dtype), debiased)


def mmd(x1: jax.Array, x2: jax.Array, kernel: str = "poly", bandwidth: float | jax.Array = 1.0) -> jax.Array:
    """Return ``mmd`` of (N1, D) and (N2, D) features; "rbf" uses the given bandwidth."""
    if kernel not in KERNELS:
        raise UserError(f"unknown kernel {kernel!r}; {nearest(kernel, KERNELS)}")
    a, b = (x1, x2) if kernel == "poly" else _center(x1, x2)
    return mmd_from(a, b, kernel=kernel, scale=x1.shape[1] if kernel == "poly" else bandwidth)


def energy(x1: jax.Array, x2: jax.Array) -> jax.Array:
    """Return ``energy`` of (N1, D) and (N2, D) features."""
    return energy_from(*_center(x1, x2))


def sliced_wasserstein(
    x1: jax.Array, x2: jax.Array, key: jax.Array, projections: int = 256, order: float = 2.0
) -> jax.Array:
    """Return ``sliced_wasserstein`` of (N1, D) and (N2, D) features along random directions from ``key``."""
    a, b = _center(x1, x2)
    return sliced_wasserstein_from(a, b, random_directions(key, projections, x1.shape[1]), order=float(order))


def _moments(features: jax.Array, labels: jax.Array, num_classes: int, rates: bool = False) -> _statistics.Moments:
    longest = len(features) if rates else None
    weights = jnp.ones(len(features))
    return _statistics.weighted_moments(features, labels, weights, classes=num_classes, longest=longest)


def _center(x1: jax.Array, x2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Center both datasets at the mean of their means, in the widest dtype."""
    a, b = (x.astype(_statistics.widest()) for x in (x1, x2))
    origin = ((a.mean(0) + b.mean(0)) / 2)[None]
    return a - origin, b - origin
