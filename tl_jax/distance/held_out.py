"""How often simple classifiers on features are right about examples that they were not fitted to."""

from collections.abc import Callable, Mapping

import numpy as np
from sklearn.model_selection import StratifiedKFold

from tl_jax.distance.neighbours import knn
from tl_jax.distance.probes import logistic_probe, ridge_probe
from tl_jax.errors import UserError

Classifier = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # features, labels, queries -> classes

# With k = 5 and strengths of 1.
CLASSIFIERS: Mapping[str, Classifier] = {
    "knn": lambda x, y, q: np.asarray(knn(x, y, q, min(5, len(x)))),
    "ridge_probe": lambda x, y, q: np.asarray(ridge_probe(x, y).predict(q)),
    "logistic_probe": lambda x, y, q: np.asarray(logistic_probe(x, y).predict(q)),
}


def right(classify: Classifier, x: np.ndarray, y: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """Return for each example whether a classifier fitted to the other parts knows its class, float (N,).

    Args:
        classify: fits and predicts.
        x: (N, D) float.
        y: (N,) int in [0, K).
        folds: parts, in which classes keep their shares.
        seed: of the parts.

    Raises:
        UserError: no class has as many examples as there are parts, or fewer than two parts.
    """
    most = np.bincount(y).max()
    if not 2 <= folds <= most:
        raise UserError(f"folds={folds} must be from 2 to {most}, the number of examples of the largest class")
    found = np.zeros(len(y))
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for fitted, held in parts.split(x, y):
        alone = len(np.unique(y[fitted])) < 2  # the one example of the other class is held out
        found[held] = (y[fitted][0] if alone else classify(x[fitted], y[fitted], x[held])) == y[held]
    return found
