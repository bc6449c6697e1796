"""Registry of scores and distances, used by ``transferability.report`` and the study of transfer distances."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from tl_jax.utils.errors import UserError
from tl_jax.utils.registry import Registry

# Signatures of measures.
FEATURES = "features"  # (features (N, D), labels (N,), key) -> float, higher is better
MOMENTS = "moments"  # (``_statistics.Moments``) -> scalar, higher is better
PROBABILITIES = (
    "probabilities"  # (p (N, Z), its classes (N,), labels (N,), weights (B, N), K) -> (B,), higher is better
)
CLASSIFIER = "classifier"  # (features, labels, queries) -> classes; the score is the held-out accuracy
SETS = "sets"  # (features and labels of one dataset, of another, key) -> float, lower is closer


_ARGUMENTS = {FEATURES: 3, MOMENTS: 1, PROBABILITIES: 5, CLASSIFIER: 3, SETS: 5}  # numbers of arguments


class Measure(NamedTuple):
    """A score or distance with its signature, one of the constants above."""

    function: Callable[..., Any]
    takes: str


SCORES: Registry[Measure] = Registry("score")
_F = TypeVar("_F", bound=Callable[..., Any])


def register_score(name: str, takes: str = FEATURES) -> Callable[[_F], _F]:
    """Return a decorator that registers a function as a score, or as a distance if it takes ``SETS``."""

    if takes not in (FEATURES, MOMENTS, PROBABILITIES, CLASSIFIER, SETS):
        raise UserError(f"score {name!r}: unknown takes={takes!r}; use one of the constants of {__name__}")

    def register(function: _F) -> _F:
        try:
            inspect.signature(function).bind(*[None] * _ARGUMENTS[takes])
        except ValueError:  # some functions in C do not say what they take
            pass
        except TypeError:
            raise UserError(
                f"score {name!r}: the function must take {_ARGUMENTS[takes]} arguments, see takes={takes!r} in "
                f"{__name__}; for features they are (features, labels, key), a random key of JAX"
            ) from None
        SCORES.add(name, Measure(function, takes), function.__module__)
        return function

    return register


def measures(takes: str) -> dict[str, Callable[..., Any]]:
    """Return the functions with this signature by name, sorted."""
    return {name: measure.function for name, measure in sorted(SCORES.items()) if measure.takes == takes}
