"""Weight averaging: between initial and final weights (WiSE-FT), and over several runs (model soups)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tl_jax.utils.errors import UserError

Score = Callable[[Any], float]  # variables -> validation score; higher is better


def interpolate(start: Any, end: Any, share: float) -> Any:
    """Return ``start + share * (end - start)`` for every leaf: WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903.

    A ``share`` of 0 or 1 returns the start or end weights bit for bit.
    """
    _check_same_leaves([start, end])
    if share in (0.0, 1.0):
        return end if share else start
    return jax.tree.map(lambda a, b: a + share * (b - a), start, end)


def uniform_soup(runs: Sequence[Any]) -> Any:
    """Return the mean of each leaf over runs with the same initialization: Wortsman et al. 2022, arXiv:2203.05482."""
    _check_same_leaves(runs)
    return jax.tree.map(lambda *leaves: jnp.mean(jnp.stack(leaves), axis=0), *runs)


def greedy_soup(runs: Sequence[Any], score: Score) -> tuple[Any, list[int]]:
    """Return the greedy soup of arXiv:2203.05482, recipe 1, and the indices of its ingredients in order of addition.

    The soup starts with the best run. Each other run, from best to worst, is kept if the score does not drop.
    """
    _check_same_leaves(runs)
    scores = [score(run) for run in runs]
    order = sorted(range(len(runs)), key=lambda i: -scores[i])
    ingredients, soup, best = order[:1], runs[order[0]], scores[order[0]]
    for i in order[1:]:
        candidate = uniform_soup([runs[j] for j in (*ingredients, i)])
        if (value := score(candidate)) >= best:
            ingredients, soup, best = [*ingredients, i], candidate, value
    return soup, ingredients


def _check_same_leaves(runs: Sequence[Any]) -> None:
    if not runs:
        raise UserError("weight average: no runs given; pass at least one")
    shapes = [jax.tree.map(jnp.shape, run) for run in runs]
    if any(shape != shapes[0] for shape in shapes):
        raise UserError("weight average: the runs have different leaves; use runs of one network with the same classes")
