"""Proxy A-distance (how well a classifier distinguishes two datasets), and overlap of class names."""

import re
from collections.abc import Iterable

import jax
import numpy as np

from tl_jax.transferability import _inputs
from tl_jax.transferability.probes import logistic_probe
from tl_jax.transferability.registry import SETS, register_score
from tl_jax.utils.errors import UserError


def proxy_a(x1: _inputs.Array, x2: _inputs.Array, key: jax.Array, c: float = 1.0) -> float:
    """Return the proxy A-distance of two datasets, 2 (1 - 2 err) (Ben-David et al. 2007).

    err is the held-out error of a linear classifier (``logistic_probe``) that distinguishes the datasets. The distance
    is 2 for a perfect classifier, about 0 at chance level, and can be slightly negative. The classifier is fitted to
    half of the smaller dataset and as many examples of the other. The errors on the rest of both datasets have equal
    weight, so the size of a dataset does not reveal it. Features are scaled, so units do not matter.

    Args:
        x1: (N1, D) float.
        x2: (N2, D) float, from the same layer of the same network.
        key: random key of the held-out split.
        c: inverse regularization strength of ``logistic_probe``.

    Raises:
        UserError: The shapes do not match, values are not finite, or a dataset has one example.
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
    return float(2 * (sum(accuracies) - 1))  # 1 - 2 err for the mean error


def label_overlap(names1: Iterable[str], names2: Iterable[str]) -> float:
    """Return the Jaccard overlap of two datasets' class names: shared names over all names (Jaccard 1912).

    Case and separators are ignored: "Polar_bear", "polar bear" and "PolarBear" are one name. Repeated names count once.

    Raises:
        UserError: A dataset has no names, or an invalid one.
    """
    first, second = _normalize_names(names1, "names1"), _normalize_names(names2, "names2")
    return len(first & second) / len(first | second)


def _normalize_names(names: Iterable[str], argument: str) -> set[str]:
    listed = [names] if isinstance(names, str) else list(names)
    normalized = [re.sub(r"[\W_]+", "", name.casefold()) if isinstance(name, str) else "" for name in listed]
    if isinstance(names, str) or not normalized or not all(normalized):
        invalid = listed[normalized.index("")] if "" in normalized else names
        raise UserError(f"{argument}: must be class names, such as ['cat', 'polar bear'], not {invalid!r}; correct it")
    return set(normalized)


register_score("proxy_a", SETS)(lambda x1, y1, x2, y2, key: proxy_a(x1, x2, key))
