"""Regularizers for fine-tuning: L2-SP, DELTA, BSS, Co-Tuning and SAM, with their strengths and class weights.

Every regularizer is a pure function that runs under jit. Arguments that determine shapes (``classes``, ``k``, the
leaf ``mask``) are static.
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
    """Return half the squared distance of trained leaves from the source, and half the squared norm of new leaves.

    L2-SP (Li et al. 2018, arXiv:1802.01483) adds ``alpha * to_source + beta * to_zero`` to the loss.

    Args:
        params: nested dict of arrays.
        source: parameters of the source network.
        mask: nested dict of booleans like ``params``, True where a leaf trains; other leaves are ignored.

    Returns:
        ``(to_source, to_zero)``, float scalars. A leaf is new if it belongs to a head, or if the source has no leaf
        with its path and shape.
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
    """Return the distance between features and the source network's on the same images, averaged over examples.

    The distance sums weight times squared distance over endpoints and channels. This is the behavioral term of DELTA
    (Li et al. 2019, arXiv:1901.09229); with equal weights it is the hint loss of FitNets (arXiv:1412.6550) without
    its regressor. Squared distances are averaged over the H * W positions, as in DELTA's published code but not in its
    equations, so the strength does not depend on the image size. No gradient flows to the source.

    Args:
        maps: endpoints (N, H, W, C) or (N, D), by name.
        source_maps: the same endpoints of the source network.
        weights: channel weights (C,) by name, with mean 1 to keep the scale; None for equal weights.

    Raises:
        UserError: The endpoints differ in name or shape.
    """
    shapes, source_shapes = ({name: x.shape for name, x in side.items()} for side in (maps, source_maps))
    if shapes != source_shapes or (weights is not None and set(weights) != set(maps)):
        weights_text = "" if weights is None else f", weights for {sorted(weights)}"
        raise UserError(
            f"endpoints: {shapes} differ from the source's {source_shapes}{weights_text}; pass the same ones"
        )
    total = jnp.zeros(())
    for name, x in maps.items():
        change = jnp.square((x - jax.lax.stop_gradient(source_maps[name])).astype(jnp.float32))
        change = change.mean(tuple(range(1, x.ndim - 1)))  # over positions: (N, C)
        change = change if weights is None else change * weights[name][None]
        total += change.sum(1).mean()
    return total


def channel_attention(drops: jax.Array) -> jax.Array:
    """Return DELTA's channel weights (arXiv:1901.09229): C times the softmax of each channel's importance.

    Args:
        drops: (C,) rise of the source network's loss, in nats, when the channel is removed. If the rises are far below
            1, the weights are nearly equal; DELTA's published code passes ``(drops - mean) / std / 5`` instead.

    Returns:
        (C,) positive weights with mean 1, so ``feature_distance`` keeps its scale.
    """
    return jax.nn.softmax(drops) * drops.shape[0]


def first_order_drops(activations: jax.Array, gradients: jax.Array) -> jax.Array:
    """Estimate the rise of the loss when each channel is removed, for all channels from one backward pass.

    This is the first-order term for zeroing a channel's map (Molchanov et al. 2017, arXiv:1611.06440, here with its
    sign). DELTA instead removes one channel at a time, with a forward pass for each.

    Args:
        activations: (N, H, W, C) or (N, D).
        gradients: per-example gradients (of the sum of the losses, not of their mean); same shape.

    Returns:
        (C,) minus the sum over positions of activation times gradient, averaged over examples.
    """
    products = activations.astype(jnp.float32) * gradients.astype(jnp.float32)
    return -products.sum(tuple(range(1, products.ndim - 1))).mean(0)


def batch_spectral_shrinkage(features: jax.Array, k: int = 1) -> jax.Array:
    """Return the sum of the ``k`` smallest squared singular values of a batch of features.

    This is BSS (Chen et al., NeurIPS 2019, "Catastrophic Forgetting Meets Negative Transfer"). The gradient is finite
    for repeated and zero singular values too: unlike singular vectors, values need no division by differences.

    Args:
        features: (N, D).
        k: number of singular values, in [1, min(N, D)].

    Raises:
        UserError: ``k`` is out of range.
    """
    max_k = min(features.shape)
    if not 1 <= k <= max_k:
        raise UserError(
            f"batch_spectral_shrinkage: k={k} is out of range for features {features.shape}; use 1 to {max_k}"
        )
    values = jnp.linalg.svd(features.astype(jnp.float32), full_matrices=False, compute_uv=False)
    return jnp.sum(jnp.square(values[max_k - k :]))


def category_relation(source_probs: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """Return p(source class | target class) for Co-Tuning (You et al., NeurIPS 2020), by the direct estimate.

    Args:
        source_probs: (N, Z) calibrated probabilities of the source network on target examples; rows sum to 1.
        labels: (N,) int in [0, K); rows with other labels are ignored.
        classes: K.

    Returns:
        (K, Z) mean of the rows of each class; uniform for a class without examples.
    """
    # Segment sums rather than a matrix product, whose inputs accelerators would round.
    sums = jax.ops.segment_sum(source_probs.astype(jnp.float32), labels, classes)
    counts = jax.ops.segment_sum(jnp.ones(labels.shape), labels, classes)[:, None]
    return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), 1 / source_probs.shape[1])


def co_tuning(source_logits: jax.Array, labels: jax.Array, relation: jax.Array, mask: jax.Array) -> jax.Array:
    """Return Co-Tuning's second loss, which trains the source head on target labels mapped to source classes.

    Args:
        source_logits: (N, Z) of the source head on the trained features.
        labels: (N,) int in [0, K).
        relation: (K, Z) from ``category_relation``.
        mask: (N,) 1 for examples that count.

    Returns:
        Cross-entropy in nats against ``relation[labels]``, averaged over unmasked examples; 0 if all are masked.
    """
    losses = optax.softmax_cross_entropy(source_logits.astype(jnp.float32), relation[labels])
    count = jnp.sum(mask != 0)
    return jnp.sum(jnp.where(mask != 0, losses, 0.0)) / jnp.maximum(count, 1)


def sam_point(params: Any, grads: Any, rho: float | jax.Array, mask: Any) -> Any:
    """Return ``params + rho * g / |g|``, the point of SAM's gradient (Foret et al. 2021, arXiv:2010.01412, eq. 2).

    Args:
        params: tree of arrays.
        grads: gradient at ``params``.
        rho: radius, in the units of the parameters.
        mask: boolean tree, True where a leaf trains. The norm covers these leaves, and only these move.

    Returns:
        A tree like ``params``. Frozen leaves are the same arrays; all leaves are if the gradient is zero.
    """
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(mask), strict=True)
    square = sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g, trains in pairs if trains)

    def ascend(params: Any, grads: Any, square: jax.Array) -> Any:
        scale = rho * jax.lax.rsqrt(square)
        return jax.tree.map(lambda p, g, trains: p + (scale * g).astype(p.dtype) if trains else p, params, grads, mask)

    # cond instead of where: XLA on CPU would recompute the norm for every use of these parameters, which makes
    # MobileNetV2's step six times as long.
    return jax.lax.cond(square > 0, ascend, lambda params, *_: params, params, grads, square)


class PenaltyInputs(NamedTuple):
    """Inputs of a penalty.

    Attributes:
        params: trained parameters.
        endpoints: outputs of the trained network on the batch by name, including ``features`` (N, D).
        batch: with ``label`` (N,) and ``mask`` (N,).
        source: ``params`` of the source, ``attention`` (C,) by endpoint, ``relation`` (K, Z), if needed.
        source_endpoints: outputs of the source network on the same examples, if a penalty compares feature maps.
        compared: names of the feature maps that are compared.
    """

    params: tree.Tree
    endpoints: Mapping[str, jax.Array]
    batch: Mapping[str, jax.Array]
    source: Mapping[str, Any]
    source_endpoints: Mapping[str, jax.Array]
    compared: tuple[str, ...]

    def maps(self) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Return the compared feature maps of the trained network and of the source network."""
        trained = {name: self.endpoints[name] for name in self.compared}
        return trained, {name: self.source_endpoints[name] for name in self.compared}


class Penalty(NamedTuple):
    """A loss term with its own strength, ``config.regularize.NAME``.

    Attributes:
        function: returns the term for strength 1, a float scalar.
        doc: description of the field, with the usual strength.
        needs_source: whether the initial weights must be kept.
        compares_maps: whether the source network runs next to the trained one.
        needs_classes: whether each example must have a class.
        needs_features: whether it uses ``features``, the input of the head.
        on_backbone: whether it affects the layers below the head only.
        inputs: ``Task.input_kind`` of the supported tasks; empty for all.
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
    """Return a decorator that registers a penalty; the field ``config.regularize.NAME`` is its strength (0: off).

    Args:
        name: name of the field.
        doc: description of the field, with the usual strength.
        **facts: further attributes of ``Penalty``.
    """

    penalty = functools.partial(Penalty, doc=doc, **facts)
    if not name.isidentifier() or name in {field.name for field in fields(RegularizeConfig)}:
        raise UserError(f"regularizer {name!r}: the name is taken or not a valid field name; choose another")
    if facts.get("inputs", "") not in ("", "images", "texts"):
        raise UserError(f"regularizer {name!r}: unknown inputs={facts['inputs']!r}; use images or texts")

    def register(function: _F) -> _F:
        REGULARIZERS.add(name, penalty(function), function.__module__, function.__qualname__)
        return function

    return register


@dataclass(frozen=True)
class RegularizeConfig(Options):
    """Regularization settings, each off at 0: the fields here, and one for each penalty of ``REGULARIZERS``.

    Attributes:
        weights: loss factor of each class, computed from ``class_weights``; empty for 1 each.
        penalties: (name, strength, penalty) of the active ``REGULARIZERS``, in order. The penalty itself is included so
            that registering it again compiles a new program.
    """

    dropout: float = option(0.0, "dropout rate of the features before the head", low=0.0, high=0.95)
    drop_path: float = option(0.0, "stochastic depth rate of the last residual block", low=0.0, high=0.95)
    label_smoothing: float = option(0.0, "probability spread evenly over the classes", low=0.0, high=1.0)
    class_weights: str = option("", "loss factor of each class: balanced (N / (K N_k)), or numbers such as '1,3'")
    mixup: float = option(0.0, "alpha of Mixup's Beta distribution; usually 0.2", low=0.0)
    cutmix: float = option(0.0, "alpha of CutMix's Beta distribution; usually 1", low=0.0)
    endpoints: tuple[str, ...] = option((), "feature maps that distill and delta compare; empty for the last two")
    stochastic_norm: float = option(
        0.0, "fraction of BatchNorm channels that use running statistics", low=0.0, high=1.0
    )
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
        """Whether the source network runs next to the trained one."""
        return any(penalty.compares_maps for *_, penalty in self.penalties)

    @property
    def needs_source(self) -> bool:
        """Whether the initial weights must be kept."""
        return any(penalty.needs_source for *_, penalty in self.penalties)


def _distances_from_source(inputs: PenaltyInputs) -> tuple[jax.Array, jax.Array]:
    mask = jax.tree.map(bool, label_leaves(inputs.params, ((EXTRA, ""), (".*", "counts"))))
    return l2_sp(inputs.params, inputs.source["params"], mask)


@register_regularizer(
    "l2_sp", "half the squared distance from the initial weights; for example 0.01", needs_source=True
)
def _l2_sp(inputs: PenaltyInputs) -> jax.Array:
    to_source, to_zero = _distances_from_source(inputs)
    # Without the second term XLA fuses the sum differently in programs of one and of several steps, and the log of a
    # resumed run would differ in the last bit.
    return to_source + 0.0 * to_zero


@register_regularizer("l2_sp_head", "half the squared norm of new leaves", needs_source=True, on_backbone=False)
def _l2_sp_head(inputs: PenaltyInputs) -> jax.Array:
    return _distances_from_source(inputs)[1]


@register_regularizer(
    "distill", "distance of the feature maps from the source network's", needs_source=True, compares_maps=True
)
def _distill(inputs: PenaltyInputs) -> jax.Array:
    return feature_distance(*inputs.maps())


@register_regularizer(
    "delta", "like distill, with channels weighted by their importance for the target (DELTA)",
    needs_source=True, compares_maps=True, needs_classes=True, inputs="images",
)  # fmt: skip
def _delta(inputs: PenaltyInputs) -> jax.Array:
    return feature_distance(*inputs.maps(), inputs.source["attention"])


@register_regularizer(
    "bss", "smallest squared singular value of a batch of features; usually 1e-3", needs_features=True
)
def _bss(inputs: PenaltyInputs) -> jax.Array:
    return batch_spectral_shrinkage(inputs.endpoints["features"])


@register_regularizer(
    "co_tuning", "cross-entropy of the source's own head (Co-Tuning); usually 2.3",
    needs_classes=True, needs_features=True, inputs="images",
)  # fmt: skip
def _co_tuning(inputs: PenaltyInputs) -> jax.Array:
    head, batch = inputs.params["extra"]["source_head"], inputs.batch
    logits = inputs.endpoints["features"] @ head["kernel"] + head["bias"][None]
    return co_tuning(logits, batch["label"], inputs.source["relation"], batch["mask"])


def mix(
    regularize: RegularizeConfig, images: jax.Array, targets: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Apply Mixup or CutMix, if enabled, to inputs (N, H, W, C) and targets (N, K)."""
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
    """Return the weighted sum of the active penalties, a float scalar; None if there are none.

    Args:
        regularize: the strengths.
        params: see ``PenaltyInputs``, also for the following.
        endpoints: of the trained network.
        batch: the examples.
        source: data of the source network.
        source_endpoints: of the source network.
    """
    inputs = PenaltyInputs(params, endpoints, batch, source, source_endpoints, regularize.endpoints)
    terms = [strength * penalty.function(inputs) for _, strength, penalty in regularize.penalties]
    return sum(terms, jnp.zeros(())) if terms else None


def class_weights(setting: str, labels: np.ndarray, classes: tuple[str, ...]) -> tuple[float, ...]:
    """Return the loss factors of K classes; () for equal weights.

    Args:
        setting: "balanced" for N / (K N_k), as in scikit-learn; K comma-separated numbers; or "".
        labels: (N,) of the training split.
        classes: K names.

    Raises:
        UserError: The setting is invalid, or "balanced" is used and a class has no training example.
    """
    if setting == "balanced":
        counts = np.bincount(labels, minlength=len(classes))
        if not counts.all():
            name = classes[int(counts.argmin())]
            raise UserError(f"config.regularize.class_weights=balanced: {name!r} has no training example; add some")
        return tuple(float(w) for w in len(labels) / (len(classes) * counts))
    try:
        weights = tuple(float(w) for w in setting.split(",")) if setting else ()
    except ValueError:
        weights = (-1.0,)
    if setting and (len(weights) != len(classes) or min(weights) < 0 or not sum(weights) > 0):
        raise UserError(
            f"config.regularize.class_weights={setting!r}: must be balanced or {len(classes)} factors; for example "
            f"{','.join(['1'] * len(classes))} for {', '.join(classes)}"
        )
    return weights
