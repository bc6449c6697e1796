"""What is added to the loss of the labels so that a network keeps what it brought along; one place for every task."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl_jax import tree
from tl_jax.transfer import mixing, regularizers
from tl_jax.transfer.partition import EXTRA
from tl_jax.tree import label_leaves


class Regularize(NamedTuple):
    """Strengths, each 0 for none; ``regularizers`` has the papers.

    Attributes:
        label_smoothing: probability spread evenly over the classes.
        weights: factors on the loss of the examples of each class, empty for 1 each.
        mixup, cutmix: alpha of the Beta distribution.
        l2_sp: of half the squared distance of trained leaves from the source's.
        l2_sp_head: of half the squared norm of leaves that the source does not have.
        distill: of the distance of feature maps from the source's, all channels alike.
        delta: the same with the channels weighted.
        endpoints: maps that are compared.
        bss: of the smallest squared singular value of the features.
        co_tuning: of the cross-entropy of the source's own head.
        stochastic_norm: probability with which a BatchNorm channel uses running statistics in training.
    """

    label_smoothing: float = 0.0
    weights: tuple[float, ...] = ()
    mixup: float = 0.0
    cutmix: float = 0.0
    l2_sp: float = 0.0
    l2_sp_head: float = 0.0
    distill: float = 0.0
    delta: float = 0.0
    endpoints: tuple[str, ...] = ()
    bss: float = 0.0
    co_tuning: float = 0.0
    stochastic_norm: float = 0.0

    @property
    def compares_maps(self) -> bool:
        """Whether the source network runs beside the trained one."""
        return bool(self.distill or self.delta)

    @property
    def needs_source(self) -> bool:
        """Whether the weights at the start must be kept."""
        return bool(self.l2_sp or self.l2_sp_head or self.compares_maps)


def mix(how: Regularize, images: jax.Array, targets: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return inputs (N, H, W, C) and targets (N, K), mixed by mixup or cutmix where one is on."""
    if how.mixup:
        return mixing.mixup(images, targets, key, how.mixup)
    return mixing.cutmix(images, targets, key, how.cutmix) if how.cutmix else (images, targets)


def penalty(
    how: Regularize,
    params: tree.Tree,
    end: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    source: Mapping[str, Any],
    source_end: Mapping[str, jax.Array],
) -> jax.Array | None:
    """Return the weighted sum of the penalties that are on, a float scalar; None if none is.

    Which are on is decided here alone, so that a term that is added here acts in every task.

    Args:
        how: their strengths.
        params: being trained.
        end: endpoints of the trained network on the batch, ``features`` (N, D) among them.
        batch: with ``label`` (N,) and ``mask`` (N,).
        source: ``params`` of the source, ``attention`` (C,) by endpoint, ``relation`` (K, Z), as far as needed.
        source_end: endpoints of the source network on the same pictures, where maps are compared.
    """
    terms = []
    if how.l2_sp or how.l2_sp_head:
        counted = jax.tree.map(bool, label_leaves(params, ((EXTRA, ""), (".*", "counts"))))
        to_source, to_zero = regularizers.l2_sp(params, source["params"], counted)
        terms.append(how.l2_sp * to_source + how.l2_sp_head * to_zero)
    if how.compares_maps:
        maps, source_maps = ({name: side[name] for name in how.endpoints} for side in (end, source_end))
        if how.distill:
            terms.append(how.distill * regularizers.feature_distance(maps, source_maps))
        if how.delta:
            terms.append(how.delta * regularizers.feature_distance(maps, source_maps, source["attention"]))
    if how.bss:
        terms.append(how.bss * regularizers.batch_spectral_shrinkage(end["features"]))
    if how.co_tuning:
        head = params["extra"]["source_head"]
        logits = end["features"] @ head["kernel"] + head["bias"][None]
        terms.append(how.co_tuning * regularizers.co_tuning(logits, batch["label"], source["relation"], batch["mask"]))
    return sum(terms, jnp.zeros(())) if terms else None
