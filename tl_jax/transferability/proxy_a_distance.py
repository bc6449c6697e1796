"""How easily two data sets are told apart, and how many of their classes go by one name."""

import re
from collections.abc import Iterable

import jax
import numpy as np

from tl_jax.transferability import _inputs
from tl_jax.transferability.probes import logistic_probe
from tl_jax.transferability.registry import SETS, register_score
from tl_jax.utils.errors import UserError


def proxy_a(x1: _inputs.Array, x2: _inputs.Array, key: jax.Array, c: float = 1.0) -> float:
    """Return the proxy A-distance of two data sets, 2 (1 - 2 err) (Ben-David et al. 2007).

    err is the error of a linear classifier (``logistic_probe``) that tells the sides apart, on examples that it was
    not fitted to: 2 where it never errs, about 0 where it does no better than chance, and by chance below. The half of
    the smaller side, and as many of the other, are fitted to; the errors on the rest of either side weigh the same, so
    that a side is not recognised by its size. Features are brought to one scale, so that units do not matter.

    Args:
        x1: (N1, D) float.
        x2: (N2, D) float, of the same layer of the same network.
        key: of what is fitted to and what is held out.
        c: inverse strength of the regularisation, as of ``logistic_probe``.

    Raises:
        UserError: other shapes, values that are not finite, or a side of one example.
    """
    pair = _inputs.feature_pair(x1, x2, min_rows=2)
    num_train = min(map(len, pair)) // 2
    orders = [np.asarray(jax.random.permutation(k, len(x))) for k, x in zip(jax.random.split(key), pair, strict=True)]
    train, held_out = zip(
        *((x[o[:num_train]], x[o[num_train:]]) for x, o in zip(pair, orders, strict=True)), strict=True
    )
    train = np.concatenate(train)
    mean, scale = train.mean(0), train.std(0).mean() or 1.0
    probe = logistic_probe((train - mean[None]) / scale, np.repeat([0, 1], num_train), c=c)
    accuracies = [probe.accuracy((x - mean[None]) / scale, np.full(len(x), side)) for side, x in enumerate(held_out)]
    return float(2 * (sum(accuracies) - 1))  # 1 - 2 err, of the mean error


def label_overlap(names1: Iterable[str], names2: Iterable[str]) -> float:
    """Return the share of class names that two data sets have in common, of all that either has (Jaccard 1912).

    Case and separators do not matter: "Polar_bear", "polar bear" and "PolarBear" are one name. Names that come several
    times count once.

    Raises:
        UserError: a side without names, or with what is no name.
    """
    first, second = _normalize_names(names1, "names1"), _normalize_names(names2, "names2")
    return len(first & second) / len(first | second)


def _normalize_names(names: Iterable[str], argument: str) -> set[str]:
    listed = [names] if isinstance(names, str) else list(names)
    normalized = [re.sub(r"[\W_]+", "", name.casefold()) if isinstance(name, str) else "" for name in listed]
    if isinstance(names, str) or not normalized or not all(normalized):
        invalid = listed[normalized.index("")] if "" in normalized else names
        raise UserError(f"{argument} must be class names, such as ['cat', 'polar bear'], not {invalid!r}")
    return set(normalized)


register_score("proxy_a", SETS)(lambda x1, y1, x2, y2, key: proxy_a(x1, x2, key))
