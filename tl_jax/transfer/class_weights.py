"""Factors on the loss of each class, where some have few examples or matter more."""

import numpy as np

from tl_jax.errors import UserError


def class_weights(said: str, labels: np.ndarray, classes: tuple[str, ...]) -> tuple[float, ...]:
    """Return the factors on the loss of K classes, () for none.

    Args:
        said: "balanced" for N / (K N_k), which scikit-learn calls so too; or K numbers with commas between; or "".
        labels: (N,) of the training part.
        classes: K names.

    Raises:
        UserError: something else, or a class without training examples cannot be balanced.
    """
    if said == "balanced":
        counts = np.bincount(labels, minlength=len(classes))
        if not counts.all():
            name = classes[int(counts.argmin())]
            raise UserError(f"config.regularize.class_weights=balanced, but {name!r} has no training example; add some")
        return tuple(float(w) for w in len(labels) / (len(classes) * counts))
    try:
        weights = tuple(float(w) for w in said.split(",")) if said else ()
    except ValueError:
        weights = (-1.0,)
    if said and (len(weights) != len(classes) or min(weights) < 0 or not sum(weights) > 0):
        raise UserError(
            f"config.regularize.class_weights={said!r} must be balanced, or {len(classes)} factors such as "
            f"{','.join(['1'] * len(classes))}, for {', '.join(classes)}"
        )
    return weights
