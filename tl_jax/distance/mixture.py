"""N-LEEP: LEEP where the source has no classes, or they are not wanted, and clusters of features replace them."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from sklearn.mixture import GaussianMixture

from tl_jax.distance import checks, expected
from tl_jax.errors import UserError


def nleep(
    features: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    key: jax.Array,
    components: int | None = None,
    share: float = 0.8,
    dims: int = 64,
    most: int = 5000,
) -> float:
    """Return LEEP with the posterior of a Gaussian mixture for source probabilities (Li et al. 2021, arXiv:2011.11200).

    Features are reduced to the principal components that keep ``share`` of the variance, though to no more than
    ``dims``, and a mixture with full covariances is fitted by scikit-learn's ``GaussianMixture`` from one
    start by k-means. Fit and components come from ``most`` examples, spread evenly over the classes; the
    score is of all. Another key gives another mixture, and a score that differs by what chance does.

    Args:
        features: (N, D) float.
        labels: (N,) int; gaps are closed.
        key: a key of ``jax.random``, which seeds the mixture.
        components: Gaussians, five a class as in the public code where None; no more than there are examples to fit.
        share: of the variance, in (0, 1].
        dims: principal components at most.
        most: examples at most that the mixture is fitted to.

    Raises:
        UserError: shapes that do not belong together, values that are not finite, labels that are not whole numbers
            from 0 on, a single class, or numbers out of range.
    """
    if not (0 < share <= 1 and dims >= 1 and most >= 2 and (components is None or components >= 1)):
        raise UserError(
            f"nleep takes share in (0, 1] and components, dims, most above 0, not {share}, {components}, {dims}, {most}"
        )
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1))
    with jax.enable_x64(True):
        x, y, classes = checks.classified(features, labels)
        chosen = checks.spread(np.asarray(y), most)
        z = reduced(np.asarray(x), chosen, share, dims)
        count = min(len(chosen), components or 5 * classes)
        p = GaussianMixture(count, random_state=seed).fit(z[chosen]).predict_proba(z)
        return float(expected.leep_from(jnp.asarray(p), y, jnp.ones(len(p)), classes=classes))


def reduced(x: np.ndarray, chosen: np.ndarray, share: float, dims: int) -> np.ndarray:
    """Return the principal components of (N, D) features that keep ``share`` of the variance of the rows ``chosen``."""
    sample = x[chosen].astype(np.float64)
    mean = sample.mean(0)
    sample -= mean[None]
    wide = sample.shape[1] > sample.shape[0]
    gram = sample @ sample.T if wide else sample.T @ sample
    size = len(gram)
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=(max(0, size - dims), size - 1))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    kept = np.cumsum(values) / max(np.trace(gram), np.finfo(float).tiny)
    number = min(len(values), int(np.searchsorted(kept, share * (1 - 1e-12))) + 1)
    axes = sample.T @ vectors[:, :number] if wide else vectors[:, :number]
    axes /= np.maximum(np.linalg.norm(axes, axis=0, keepdims=True), np.finfo(float).tiny)
    # In blocks, since the features in double precision may be more than memory holds twice.
    return np.concatenate([(x[i : i + 4096] - mean[None]) @ axes for i in range(0, len(x), 4096)])
