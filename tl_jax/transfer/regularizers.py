"""Regularizers for fine-tuning: L2-SP, DELTA, BSS, Co-Tuning and SAM, with their strengths and class weights.

Every regularizer is pure and runs under jit; arguments that decide shapes (``classes``, ``k``, ``mask`` of leaves) are
static.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tl_jax.config.options import Field, Options, option
from tl_jax.transfer import mixup
from tl_jax.transfer.freeze import EXTRA, HEAD
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError
from tl_jax.utils.registry import Registry
from tl_jax.utils.tree import label_leaves


def l2_sp(params: tree.Tree, source: tree.Tree, mask: tree.Tree) -> tuple[jax.Array, jax.Array]:
    """Return half the squared distance of trained leaves to where they started, and half the squared norm of new ones.

    L2-SP (Li et al. 2018, arXiv:1802.01483) adds ``alpha * to_source + beta * to_zero`` to the loss.

    Args:
        params: nested dict of arrays.
        source: parameters of the source network.
        mask: nested dict of booleans like ``params``, true where a leaf trains; other leaves count nowhere.

    Returns:
        ``(to_source, to_zero)``, float scalars. A leaf is new where the source has none of its path and shape, and in
        the heads.
    """
    starts, trains = tree.flatten(source), tree.flatten(mask)
    to_source = to_zero = jnp.zeros(())
    for path, leaf in tree.flatten(params).items():
        if not trains[path]:
            continue
        start = starts.get(path)
        if start is None or start.shape != leaf.shape or re.fullmatch(HEAD[0], path):
            to_zero += 0.5 * jnp.sum(jnp.square(leaf))
        else:
            to_source += 0.5 * jnp.sum(jnp.square(leaf - start))
    return to_source, to_zero


def feature_distance(
    maps: Mapping[str, jax.Array],
    source_maps: Mapping[str, jax.Array],
    weights: Mapping[str, jax.Array] | None = None,
) -> jax.Array:
    """Return how far features moved from the source network's on the same pictures, mean over examples.

    The sum over endpoints and channels of weight times squared distance of the channel's maps: the behavioural term of
    DELTA (Li et al. 2019, arXiv:1901.09229), and with equal weights the hint loss of FitNets (arXiv:1412.6550) without
    its regressor. The squared distance of a map is divided by its H * W positions, as in DELTA's published code and
    not in its equations, so that strength does not depend on the size of pictures. No gradient flows to the source.

    Args:
        maps: endpoints (N, H, W, C) or (N, D), by name.
        source_maps: the same of the source network.
        weights: (C,) by name, mean 1 to keep the scale; None for 1 everywhere.

    Raises:
        UserError: endpoints that differ in name or shape.
    """
    shapes, source_shapes = ({name: x.shape for name, x in side.items()} for side in (maps, source_maps))
    if shapes != source_shapes or (weights is not None and set(weights) != set(maps)):
        weights_text = "" if weights is None else f", weights for {sorted(weights)}"
        raise UserError(f"endpoints differ: {shapes} against the source's {source_shapes}{weights_text}; give the same")
    total = jnp.zeros(())
    for name, x in maps.items():
        change = jnp.square((x - jax.lax.stop_gradient(source_maps[name])).astype(jnp.float32))
        change = change.mean(tuple(range(1, x.ndim - 1)))  # over positions: (N, C)
        change = change if weights is None else change * weights[name][None]
        total += change.sum(1).mean()
    return total


def channel_attention(drops: jax.Array) -> jax.Array:
    """Return DELTA's weights of channels (arXiv:1901.09229): softmax of how much the loss rises without each, times C.

    Args:
        drops: (C,) rise of the source network's loss, in nats. Rises far below 1 give nearly equal weights; DELTA's
            published code passes ``(drops - mean) / std / 5`` instead.

    Returns:
        (C,) above 0, mean 1, so that ``feature_distance`` keeps the scale it has with equal weights.
    """
    return jax.nn.softmax(drops) * drops.shape[0]


def first_order_drops(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """Estimate how much the loss rises without each channel, for all channels from one backward pass.

    The first-order term of putting a channel's map to zero (Molchanov et al. 2017, arXiv:1611.06440, here with its
    sign). It replaces DELTA's removal of one channel after the other, a forward pass for each.

    Args:
        activations: (N, H, W, C) or (N, D).
        gradients: of each example's own loss, so of the sum over examples, not of their mean; the same shape.

    Returns:
        (C,) minus the sum over positions of activation times gradient, mean over examples.
    """
    products = activations.astype(jnp.float32) * gradients.astype(jnp.float32)
    return -products.sum(tuple(range(1, products.ndim - 1))).mean(0)


def batch_spectral_shrinkage(features: jax.Array, k: int = 1) -> jax.Array:
    """Return the sum of the ``k`` smallest squared singular values of a batch of features.

    BSS (Chen et al., NeurIPS 2019, "Catastrophic Forgetting Meets Negative Transfer"). There are min(N, D) singular
    values. The gradient is finite for repeated ones and zeros too: values alone, unlike vectors, have none of the
    divisions by differences.

    Args:
        features: (N, D).
        k: how many, from 1 to min(N, D).

    Raises:
        UserError: ``k`` outside that.
    """
    max_k = min(features.shape)
    if not 1 <= k <= max_k:
        raise UserError(f"k={k} of batch_spectral_shrinkage must be from 1 to {max_k} for features {features.shape}")
    values = jnp.linalg.svd(features.astype(jnp.float32), full_matrices=False, compute_uv=False)
    return jnp.sum(jnp.square(values[max_k - k :]))


def category_relation(source_probs: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """Return p(source class | target class) of Co-Tuning (You et al., NeurIPS 2020), the direct way.

    Args:
        source_probs: (N, Z) what the source network, calibrated, says of target examples; rows sum to 1.
        labels: (N,) int in [0, K); rows with others do not count.
        classes: K.

    Returns:
        (K, Z) mean of the rows of each class; uniform where a class has no example.
    """
    # Sums by index, not a matrix product: accelerators would round its inputs.
    sums = jax.ops.segment_sum(source_probs.astype(jnp.float32), labels, classes)
    counts = jax.ops.segment_sum(jnp.ones(labels.shape), labels, classes)[:, None]
    return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), 1 / source_probs.shape[1])


def co_tuning(source_logits: jax.Array, labels: jax.Array, relation: jax.Array, mask: jax.Array) -> jax.Array:
    """Return Co-Tuning's second loss: the source head is trained on target labels put into source classes.

    Args:
        source_logits: (N, Z) of the source head on the features in training.
        labels: (N,) int in [0, K).
        relation: (K, Z) from ``category_relation``.
        mask: (N,) 1 where an example counts.

    Returns:
        Cross-entropy in nats against ``relation[labels]``, mean over unmasked examples; 0 where all are masked.
    """
    losses = optax.softmax_cross_entropy(source_logits.astype(jnp.float32), relation[labels])
    count = jnp.sum(mask != 0)
    return jnp.sum(jnp.where(mask != 0, losses, 0.0)) / jnp.maximum(count, 1)


def sam_point(params: Any, grads: Any, rho: float | jax.Array, mask: Any) -> Any:
    """Return ``params + rho * g / |g|``, where SAM takes its gradient (Foret et al. 2021, arXiv:2010.01412, eq. 2).

    Args:
        params: tree of arrays.
        grads: gradient at ``params``.
        rho: radius, in the units of the parameters.
        mask: tree of booleans, true where a leaf trains. The norm is over these leaves and only these move.

    Returns:
        The tree of ``params``; frozen leaves are the same arrays, and all leaves where the gradient is zero.
    """
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(mask), strict=True)
    square = sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g, trains in pairs if trains)

    def ascend(params: Any, grads: Any, square: jax.Array) -> Any:
        scale = rho * jax.lax.rsqrt(square)
        return jax.tree.map(lambda p, g, trains: p + (scale * g).astype(p.dtype) if trains else p, params, grads, mask)

    # A branch, not a choice: XLA on CPUs would compute the norm anew for every number that these parameters go into,
    # and the step of MobileNetV2 would take six times as long.
    return jax.lax.cond(square > 0, ascend, lambda params, *_: params, params, grads, square)


class PenaltyInputs(NamedTuple):
    """What a penalty may read.

    Attributes:
        params: being trained.
        endpoints: outputs of the trained network on the batch by name, ``features`` (N, D) among them.
        batch: with ``label`` (N,) and ``mask`` (N,).
        source: ``params`` of the source, ``attention`` (C,) by endpoint, ``relation`` (K, Z), as far as needed.
        source_endpoints: outputs of the source network on the same examples, where a penalty compares maps.
        compared: names of the maps that are compared.
    """

    params: tree.Tree
    endpoints: Mapping[str, jax.Array]
    batch: Mapping[str, jax.Array]
    source: Mapping[str, Any]
    source_endpoints: Mapping[str, jax.Array]
    compared: tuple[str, ...]

    def maps(self) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Return the maps that are compared, of the trained network and of the source."""
        trained = {name: self.endpoints[name] for name in self.compared}
        return trained, {name: self.source_endpoints[name] for name in self.compared}


class Penalty(NamedTuple):
    """A term of the loss with a strength of its own, ``config.regularize.NAME``.

    Attributes:
        function: what is added, a float scalar, for strength 1.
        doc: what it is and which strength is usual, for the field.
        needs_source: whether the weights at the start must be kept.
        compares_maps: whether the source network runs beside the trained one.
        needs_classes: whether each example must have a class.
        needs_features: whether it reads ``features``, on which a head sits.
        on_backbone: whether it acts on nothing but what lies below the head.
        inputs: of the tasks that it is for, see ``Task.input_kind``; empty for all.
    """

    function: Callable[[PenaltyInputs], jax.Array]
    doc: str
    needs_source: bool = False
    compares_maps: bool = False
    needs_classes: bool = False
    needs_features: bool = False
    on_backbone: bool = True
    inputs: str = ""


REGULARIZERS: Registry[Penalty] = Registry("regularizer")
_F = TypeVar("_F", bound=Callable[[PenaltyInputs], jax.Array])


def register_regularizer(name: str, doc: str, **facts: Any) -> Callable[[_F], _F]:
    """Return a decorator that makes a penalty known: the field ``config.regularize.NAME`` is its strength, 0 for none.

    Args:
        name: of the field.
        doc: of the field: what it is, and which strength is usual.
        **facts: further ones of ``Penalty``.
    """

    penalty = functools.partial(Penalty, doc=doc, **facts)
    if not name.isidentifier() or name in {field.name for field in fields(RegularizeConfig)}:
        raise UserError(f"regularizer {name!r}: the name is taken, or no name of a field; choose another")
    if facts.get("inputs", "") not in ("", "images", "texts"):
        raise UserError(f"regularizer {name!r}: inputs={facts['inputs']!r} is none of images and texts; correct it")

    def register(function: _F) -> _F:
        REGULARIZERS.add(name, penalty(function), function.__module__, function.__qualname__)
        return function

    return register


@dataclass(frozen=True)
class RegularizeConfig(Options):
    """Strengths against overfitting, each off at 0: the fields here, and one for each penalty of ``REGULARIZERS``.

    Attributes:
        weights: factors on the loss of the examples of each class, empty for 1 each: what ``class_weights`` comes to.
        penalties: (name, strength, penalty) of those of ``REGULARIZERS`` that are on, in their order; with the penalty
            itself, so that one that is registered anew gets a program of its own.
    """

    dropout: float = option(0.0, "share of features dropped before the head", low=0.0, high=0.95)
    drop_path: float = option(0.0, "share of examples that skip the last residual block", low=0.0, high=0.95)
    label_smoothing: float = option(0.0, "probability spread evenly over the classes", low=0.0, high=1.0)
    class_weights: str = option(
        "", "factors on the loss of each class's examples: balanced (N / (K N_k)), or numbers such as '1,3'"
    )
    mixup: float = option(0.0, "alpha of the Beta distribution; 0.2 is usual", low=0.0)
    cutmix: float = option(0.0, "alpha of the Beta distribution; 1 is usual", low=0.0)
    endpoints: tuple[str, ...] = option((), "maps that distill and delta compare; empty for the last two")
    stochastic_norm: float = option(0.0, "share of BatchNorm channels on running statistics", low=0.0, high=1.0)
    weights: tuple[float, ...] = ()
    penalties: tuple[tuple[str, float, Penalty], ...] = ()

    @classmethod
    def fields(cls) -> dict[str, Field]:
        strengths = {name: Field(0.0, penalty.doc, low=0.0) for name, penalty in REGULARIZERS.items()}
        return {**super().fields(), **strengths}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        penalties = ((name, float(values.get(name) or 0.0), penalty) for name, penalty in REGULARIZERS.items())
        return replace(super().from_dict(values), penalties=tuple(entry for entry in penalties if entry[1]))

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), **{name: self.strength(name) for name in REGULARIZERS}}

    def strength(self, name: str) -> float:
        """Return the strength of a penalty."""
        return next((strength for known, strength, _ in self.penalties if known == name), 0.0)

    @property
    def compares_maps(self) -> bool:
        """Whether the source network runs beside the trained one."""
        return any(penalty.compares_maps for *_, penalty in self.penalties)

    @property
    def needs_source(self) -> bool:
        """Whether the weights at the start must be kept."""
        return any(penalty.needs_source for *_, penalty in self.penalties)


def _distances_from_source(inputs: PenaltyInputs) -> tuple[jax.Array, jax.Array]:
    mask = jax.tree.map(bool, label_leaves(inputs.params, ((EXTRA, ""), (".*", "counts"))))
    return l2_sp(inputs.params, inputs.source["params"], mask)


@register_regularizer("l2_sp", "half squared distance from the weights at the start; 0.01 say", needs_source=True)
def _l2_sp(inputs: PenaltyInputs) -> jax.Array:
    to_source, to_zero = _distances_from_source(inputs)
    # Without the second, XLA fuses the sum into others, differently in programs of one step and of several: what a
    # resumed run logs would differ in its last bit, though its weights would not.
    return to_source + 0.0 * to_zero


@register_regularizer("l2_sp_head", "half squared norm of new leaves", needs_source=True, on_backbone=False)
def _l2_sp_head(inputs: PenaltyInputs) -> jax.Array:
    return _distances_from_source(inputs)[1]


@register_regularizer(
    "distill", "distance of feature maps from the source network's", needs_source=True, compares_maps=True
)
def _distill(inputs: PenaltyInputs) -> jax.Array:
    return feature_distance(*inputs.maps())


@register_regularizer(
    "delta", "the same, channels weighted by their use for the target (DELTA)",
    needs_source=True, compares_maps=True, needs_classes=True, inputs="images",
)  # fmt: skip
def _delta(inputs: PenaltyInputs) -> jax.Array:
    return feature_distance(*inputs.maps(), inputs.source["attention"])


@register_regularizer(
    "bss", "smallest squared singular value of a batch of features; 1e-3 is usual", needs_features=True
)
def _bss(inputs: PenaltyInputs) -> jax.Array:
    return batch_spectral_shrinkage(inputs.endpoints["features"])


@register_regularizer(
    "co_tuning", "cross-entropy of the source's own head (Co-Tuning); 2.3 is usual",
    needs_classes=True, needs_features=True, inputs="images",
)  # fmt: skip
def _co_tuning(inputs: PenaltyInputs) -> jax.Array:
    head, batch = inputs.params["extra"]["source_head"], inputs.batch
    logits = inputs.endpoints["features"] @ head["kernel"] + head["bias"][None]
    return co_tuning(logits, batch["label"], inputs.source["relation"], batch["mask"])


def mix(
    regularize: RegularizeConfig, images: jax.Array, targets: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return inputs (N, H, W, C) and targets (N, K), mixed by mixup or cutmix where one is on."""
    if regularize.mixup:
        return mixup.mixup(images, targets, key, regularize.mixup)
    return mixup.cutmix(images, targets, key, regularize.cutmix) if regularize.cutmix else (images, targets)


def penalty(
    regularize: RegularizeConfig,
    params: tree.Tree,
    endpoints: Mapping[str, jax.Array],
    batch: Mapping[str, jax.Array],
    source: Mapping[str, Any],
    source_endpoints: Mapping[str, jax.Array],
) -> jax.Array | None:
    """Return the weighted sum of the penalties that are on, a float scalar; None if none is.

    Args:
        regularize: their strengths.
        params: see ``PenaltyInputs``, as for what follows.
        endpoints: of the trained network.
        batch: of examples.
        source: the source's side.
        source_endpoints: of the source network.
    """
    inputs = PenaltyInputs(params, endpoints, batch, source, source_endpoints, regularize.endpoints)
    terms = [strength * penalty.function(inputs) for _, strength, penalty in regularize.penalties]
    return sum(terms, jnp.zeros(())) if terms else None


def class_weights(setting: str, labels: np.ndarray, classes: tuple[str, ...]) -> tuple[float, ...]:
    """Return the factors on the loss of K classes, () for none.

    Args:
        setting: "balanced" for N / (K N_k), which scikit-learn calls so too; or K numbers with commas between; or "".
        labels: (N,) of the training part.
        classes: K names.

    Raises:
        UserError: something else, or a class without training examples cannot be balanced.
    """
    if setting == "balanced":
        counts = np.bincount(labels, minlength=len(classes))
        if not counts.all():
            name = classes[int(counts.argmin())]
            raise UserError(f"config.regularize.class_weights=balanced, but {name!r} has no training example; add some")
        return tuple(float(w) for w in len(labels) / (len(classes) * counts))
    try:
        weights = tuple(float(w) for w in setting.split(",")) if setting else ()
    except ValueError:
        weights = (-1.0,)
    if setting and (len(weights) != len(classes) or min(weights) < 0 or not sum(weights) > 0):
        raise UserError(
            f"config.regularize.class_weights={setting!r} must be balanced, or {len(classes)} factors such as "
            f"{','.join(['1'] * len(classes))}, for {', '.join(classes)}"
        )
    return weights
