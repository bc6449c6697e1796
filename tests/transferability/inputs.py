"""Features and labels of every kind that a score has to bear, for tests; all float64."""

import numpy as np


def draw(n, d, classes, apart=1.0, rank=None, seed=0):
    """Return features of classes whose centres are ``apart``, of a mean that is not zero, and labels in no order."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    x = rng.normal(size=(n, d)) + apart * rng.normal(size=(classes, d))[y]
    if rank:
        x = x[:, :rank] @ rng.normal(size=(rank, d))
    return x + 0.5 * rng.normal(size=d), y


def uneven():
    """Return features of which one is constant and one the copy of another, for classes of 40, 9 and 1 examples."""
    x, _ = draw(50, 6, 3, seed=5)
    x[:, 2], x[:, 4] = 3.3, x[:, 1]
    return x, np.repeat([1, 0, 2], [40, 9, 1])


CASES = {
    "random": draw(80, 12, 4, apart=0.0),
    "separable": draw(60, 5, 3, apart=6.0, seed=1),
    "small classes": draw(90, 70, 5, seed=2),
    "tiny": draw(15, 40, 3, seed=3),
    "rank deficient": draw(60, 10, 3, rank=4, seed=4),
    "rank deficient and tiny": draw(20, 50, 4, rank=6, seed=6),
    "uneven": uneven(),
    "one example each": draw(6, 4, 6, seed=7),
    "one example each, tiny": draw(5, 9, 5, seed=8),
    "square": draw(12, 12, 3, seed=9),
}


def gapped(y):
    """Return labels with gaps that stand for the classes of ``y`` in the same order."""
    return 3 * np.asarray(y) ** 2 + 2
