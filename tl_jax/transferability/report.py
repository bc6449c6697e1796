"""Report of all scores and distances of one set of features, with intervals and run times.

Measures that are biased by resampling with replacement get standard errors from the delete-half jackknife.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.transferability import _inputs, _statistics, probes
from tl_jax.transferability.registry import CLASSIFIER, FEATURES, MOMENTS, PROBABILITIES, SETS, measures
from tl_jax.transferability.sfda import sfda_from
from tl_jax.utils.errors import UserError


def standard_error(
    measure: Callable[..., float], sides: Sequence[np.ndarray], count: int, rng: np.random.Generator
) -> float:
    """Return the standard error of a measure by the delete-half jackknife (doi:10.1214/aos/1176347263).

    Over samples of m of n examples without replacement, a mean has variance (1 - m / n) s^2 / m. For half of the
    examples this is s^2 / n, its variance over new data. Other measures are means to first order; their dependence on
    the number of examples is ignored. Samples are stratified: half of each class, rounded up, so no class is missing.

    Args:
        measure: takes the indices (M,) for each side and returns a number.
        sides: labels (N,) of each side.
        count: number of samples.
        rng: random generator of the samples.

    Returns:
        The standard error; NaN if there are fewer than two samples, no example can be left out, or the measure raises
        an error for a sample.
    """
    total = sum(len(labels) for labels in sides)
    try:
        samples = [[_half_sample(labels, rng) for labels in sides] for _ in range(count)]
        values = [measure(*rows) for rows in samples]
    except UserError:
        return np.nan
    sampled = sum(map(len, samples[0])) if samples else total
    if count < 2 or sampled == total:
        return np.nan
    return float(np.std(values, ddof=1)) * (sampled / (total - sampled)) ** 0.5


def _half_sample(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    classes = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    return np.sort(np.concatenate([rng.permutation(c)[: -(-len(c) // 2)] for c in classes]))


MAX_RESAMPLED_PRODUCTS = 2**28  # multiplications of a scatter up to which scores are resampled by default
NUM_RESAMPLES, NUM_HALVES = 100, 20  # of all scores, and of measures that are recomputed for each sample
MAX_HALVED = 500  # examples per side up to which these are resampled by default; more take minutes
MAX_COMPARED = 2000  # examples per side of pairwise distances


class Row(NamedTuple):
    """One measure: value, 95 % interval (NaN if there is none), and seconds without the shared computation."""

    name: str
    value: float
    low: float
    high: float
    seconds: float


class Report(NamedTuple):
    """The rows of a report: scores, higher is better, then distances, lower is closer."""

    rows: tuple[Row, ...]

    def values(self) -> dict[str, float]:
        """Return the values by name."""
        return {row.name: row.value for row in self.rows}

    def __str__(self) -> str:
        lines = [f"{'measure':<22}{'value':>12}   {'95 % interval':<26}{'seconds':>8}"]
        for row in self.rows:
            interval = "" if np.isnan(row.low) else f"{row.low:.5g} to {row.high:.5g}"
            lines.append(f"{row.name:<22}{row.value:>12.5g}   {interval:<26}{row.seconds:>8.2f}")
        return "\n".join(lines)


def report(
    features: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    source_probs: np.ndarray | jax.Array | None = None,
    source: tuple[np.ndarray | jax.Array, np.ndarray | jax.Array] | None = None,
    key: jax.Array | None = None,
    resamples: int | None = None,
    folds: int = 5,
) -> Report:
    """Compute every measure that the arguments allow.

    From the features: LogME, both H-scores, TransRate, GBC and SFDA, which share one pass over them, PARC, N-LEEP, and
    the cross-validated accuracy of nearest neighbors (k = 5), ridge and logistic probe. With ``source_probs`` also LEEP
    and NCE; with ``source`` the distances between the two datasets.

    Intervals are the value plus and minus 1.96 standard errors: the standard deviation of the value over resampled
    examples, or for held-out accuracies over resampled predictions. For SFDA, PARC, N-LEEP and the distances, which
    repeated examples would bias, they come from 20 half samples (``standard_error``).

    Args:
        features: (N, D) float, of the target's examples in the source network.
        labels: (N,) int; gaps are closed.
        source_probs: (N, Z) float, probabilities of the source network's own head for the target's examples.
        source: features (M, D) of the source's examples in the same network, and their labels (M,). At most 2,000
            examples per side are compared.
        key: random key; None for key 0.
        resamples: number of resamples for the intervals. None uses 100 if they are fast, and 0 if each would take a
            second. Half samples number at most 20; with None there are none above 500 examples per side.
        folds: folds of the held-out accuracies; a class with fewer examples is not split evenly.

    Raises:
        UserError: An argument is invalid for a measure.
    """
    key = jax.random.key(0) if key is None else key
    with jax.enable_x64(True):
        x, y, classes = _inputs.score_inputs(features, labels)
        n, d = x.shape
        is_small = max(n, len(source[1]) if source else 0) <= MAX_HALVED
        count = NUM_HALVES if is_small or resamples else 0
        if resamples is None:
            resamples = NUM_RESAMPLES if n * d * min(n, d) <= MAX_RESAMPLED_PRODUCTS else 0
        count = min(count, resamples)
        weights = np.random.default_rng(_seed(key)).multinomial(n, np.full(n, 1 / n), size=resamples)
        rows = _moment_rows(x, y, classes, weights)
        if source_probs is not None:
            rows += _probability_rows(source_probs, y, weights)
    x, y = np.asarray(x), np.asarray(y)
    done = {row.name for row in rows}
    feature_scores = measures(FEATURES)
    rows += [_timed_row(name, lambda f=f: f(x, y, key)) for name, f in feature_scores.items() if name not in done]
    for i, row in enumerate(rows):
        if row.name in feature_scores:
            rows[i] = _add_interval(row, lambda a, f=feature_scores[row.name]: f(x[a], y[a], key), [y], count, key)
    rows += _probe_rows(x, y, folds, weights, _seed(key))
    if source is not None:
        (x1, y1), (x2, y2) = (_sample_side(*side) for side in (source, (x, y)))
        for name, distance in measures(SETS).items():
            row = _timed_row(name, lambda f=distance: f(x1, y1, x2, y2, key))
            rows.append(
                _add_interval(row, lambda a, b, f=distance: f(x1[a], y1[a], x2[b], y2[b], key), [y1, y2], count, key)
            )
    return Report(tuple(rows))


def _moment_rows(x: jax.Array, y: jax.Array, classes: int, weights: np.ndarray) -> list[Row]:
    start = time.perf_counter()
    m = jax.block_until_ready(_statistics.compute_moments(x, y, classes, rates=True))
    shared = time.perf_counter() - start
    resampled = _resampled_moments(x, y, classes, weights) if len(weights) else None
    rows = []
    for name, score in measures(MOMENTS).items():
        rows.append(
            _timed_row(
                name, lambda score=score: score(m), resampled and (lambda score=score: _map_moments(score)(resampled))
            )
        )
    rows.append(_timed_row("sfda", lambda: sfda_from(m, x, y, single=_statistics.allows_single(x))[0]))
    return [Row("moments (shared)", float(m.num_examples), np.nan, np.nan, shared), *rows]


# Resamples run one by one. A batched LAPACK call of jaxlib 0.10 waits in a thread of XLA's pool for tasks in the same
# pool, so two such calls at once deadlock on a machine with two cores.
@functools.cache  # so that a second report does not compile again
def _map_moments(score: Callable[[_statistics.Moments], jax.Array]) -> Any:
    return jax.jit(lambda moments: jax.lax.map(score, moments))


def _resampled_moments(x: jax.Array, y: jax.Array, classes: int, weights: np.ndarray) -> _statistics.Moments:
    """Return the moments for each row of weights (B, N)."""
    return _map_weights(x, y, jnp.asarray(weights, jnp.float64), classes, _statistics.max_class_size(x, y, classes))


@functools.partial(jax.jit, static_argnums=(3, 4))
def _map_weights(x: jax.Array, y: jax.Array, weights: jax.Array, classes: int, longest: int) -> _statistics.Moments:
    return jax.lax.map(lambda w: _statistics.weighted_moments(x, y, w, classes=classes, longest=longest), weights)


def _probability_rows(source_probs: Any, y: jax.Array, weights: np.ndarray) -> list[Row]:
    p, y, classes = _inputs.probability_inputs(source_probs, y)
    z = p.argmax(1)
    unweighted, resampled = jnp.ones((1, len(p))), jnp.asarray(weights, jnp.float64)
    return [
        _timed_row(
            name,
            lambda f=f: f(p, z, y, unweighted, classes)[0],
            len(resampled) and (lambda f=f: f(p, z, y, resampled, classes)),
        )
        for name, f in measures(PROBABILITIES).items()
    ]


def _probe_rows(x: np.ndarray, y: np.ndarray, folds: int, weights: np.ndarray, seed: int) -> list[Row]:
    rows = []
    for name, classify in measures(CLASSIFIER).items():
        start = time.perf_counter()
        hits = probes.cross_validated_hits(classify, x, y, folds, seed)
        seconds = time.perf_counter() - start
        rows.append(_make_row(name, hits.mean(), (weights @ hits) / len(hits) if len(weights) else None, seconds))
    return rows


def _timed_row(name: str, measure: Callable[[], Any], resample: Any = None) -> Row:
    """Return the row of a measure, with an interval from its values over resampled examples."""
    start = time.perf_counter()
    value = float(measure())
    seconds = time.perf_counter() - start
    return _make_row(name, value, np.asarray(resample()) if resample else None, seconds)


def _add_interval(row: Row, measure: Callable[..., float], sides: list[np.ndarray], count: int, key: jax.Array) -> Row:
    """Return a row with an interval from half samples of its measure, which takes the indices for each side."""
    half = 1.96 * standard_error(measure, sides, count, np.random.default_rng(_seed(key)))
    return row._replace(low=row.value - half, high=row.value + half)


def _make_row(name: str, value: float, resampled: np.ndarray | None, seconds: float) -> Row:
    half = np.nan if resampled is None else 1.96 * float(np.std(resampled, ddof=1))
    return Row(name, float(value), float(value) - half, float(value) + half, seconds)


def _sample_side(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x)
    y = _inputs.dataset_labels(y, len(x), "of the source")
    rows = _inputs.stratified_rows(y, MAX_COMPARED)
    return x[rows], y[rows]


def _seed(key: jax.Array) -> int:
    return int(jax.random.randint(key, (), 0, 2**31 - 1))
