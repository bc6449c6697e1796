"""Scores and distances by name: ``transferability.report`` and the study of transfer distances have all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from tl_jax.utils.errors import UserError
from tl_jax.utils.registry import Registry

# What the function of a measure takes.
FEATURES = "features"  # (features (N, D), labels (N,), key) -> a float, the higher the better
MOMENTS = "moments"  # (``_statistics.Moments``) -> a scalar, the higher the better
PROBABILITIES = (
    "probabilities"  # (p (N, Z), its classes (N,), labels (N,), weights (B, N), K) -> (B,), the higher the better
)
CLASSIFIER = "classifier"  # (features, labels, queries) -> classes, of which the accuracy on held-out parts is a score
SETS = "sets"  # (features and labels of one set, of another, key) -> a float, the closer the lower


class Measure(NamedTuple):
    """A score or distance, and what its function takes: one of the constants above."""

    function: Callable[..., Any]
    takes: str


SCORES: Registry[Measure] = Registry("score")
_F = TypeVar("_F", bound=Callable[..., Any])


def register_score(name: str, takes: str = FEATURES) -> Callable[[_F], _F]:
    """Return a decorator that makes a function known as a score, or of ``SETS`` as a distance."""

    if takes not in (FEATURES, MOMENTS, PROBABILITIES, CLASSIFIER, SETS):
        raise UserError(f"score {name!r}: takes={takes!r} is none of the constants of {__name__}; take one of them")

    def register(function: _F) -> _F:
        SCORES.add(name, Measure(function, takes), function.__module__)
        return function

    return register


def measures(takes: str) -> dict[str, Callable[..., Any]]:
    """Return the functions that take this by name, sorted."""
    return {name: measure.function for name, measure in sorted(SCORES.items()) if measure.takes == takes}
