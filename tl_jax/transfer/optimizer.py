"""Optimizers with one transform per trained group, learning-rate schedules, and access to Adam's moments."""

import functools
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tl_jax.config.options import Options, option
from tl_jax.transfer.freeze import ADAPTERS, FROZEN, Rules, groups, trainable
from tl_jax.utils import tree
from tl_jax.utils.tree import label_leaves

SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True)
class OptimSpec(Options):
    """Optimizer settings of one phase, without the learning rate, which each step receives as an argument.

    ``stages`` are the names of the network's stages, input first; ``layer_decay`` counts them. If ``weight_decay`` is
    None, each step receives it as ``decay=``.
    """

    name: str = option("adam", "optimizer; adam with weight_decay is AdamW", ("adam", "sgd"))
    # Decoupled for adam (AdamW, arXiv:1711.05101), added to the gradient for sgd.
    weight_decay: float | None = option(0.0, "weight decay of the kernels", low=0.0)
    momentum: float = option(0.9, "momentum of sgd", low=0.0, high=1.0)
    epsilon: float = option(1e-8, "epsilon of adam (Keras uses 1e-7)", low=0.0)
    clip_norm: float = option(0.0, "maximum global norm of the gradients; 0 disables clipping", low=0.0)
    layer_decay: float = option(1.0, "learning-rate factor per stage, applied from the head down", low=0.0, high=1.0)
    # A new head has to move far; the features below it should not (ULMFiT, arXiv:1801.06146, section 3.2).
    backbone_lr_scale: float = option(
        0.0, "learning-rate factor of the backbone, adapters excluded; 0 leaves the rate unchanged", low=0.0
    )
    lr_multipliers: tuple[tuple[str, float], ...] = option((), "pairs (freeze-rule group, learning-rate factor)")
    sam: float = option(
        0.0,
        "radius of sharpness-aware minimization, for example 0.05; doubles the cost of a step; 0 disables it",
        low=0.0,
    )
    accumulate: int = option(1, "gradient accumulation: micro-batches per batch, to save memory", low=1)
    ema: float = option(
        0.0, "decay of the weights' moving average, which is evaluated instead; 0 disables it", low=0.0, high=0.99999
    )
    # Keras' networks use 0.99 or 0.999, for runs of 100,000 steps. A short run would update the weights but hardly the
    # running statistics, so evaluation would break.
    batch_norm_momentum: float = option(
        0.9,
        "BatchNorm momentum: fraction of the old statistics kept per step; 0 uses the network's",
        low=0.0,
        high=0.9999,
    )
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptimConfig(OptimSpec):
    """Optimizer settings of a run: those shared by its phases, and the learning rate."""

    lr: float = option(1e-3, "peak learning rate", low=0.0)
    schedule: str = option("constant", "learning-rate schedule of each phase after warmup", SCHEDULES)
    warmup: float = option(0.0, "fraction of a phase with linear warmup", low=0.0, high=1.0)


class RateSpec(NamedTuple):
    """Learning-rate schedule of one phase.

    Attributes:
        lr: peak learning rate.
        steps: length of the phase in steps; the schedule ends there.
        schedule: "constant", "cosine" or "linear" (both decay to zero), after the warmup.
        warmup: fraction of the steps with linear warmup.
    """

    lr: float
    steps: int
    schedule: str = "constant"
    warmup: float = 0.0


def learning_rates(spec: RateSpec) -> np.ndarray:
    """Return the learning rate of each step of a phase, float32 (steps,)."""
    warmup_steps = min(round(spec.warmup * spec.steps), spec.steps - 1)
    steps = np.arange(spec.steps, dtype=np.float64)
    progress = np.clip(steps - warmup_steps, 0, None) / max(1, spec.steps - warmup_steps)
    cosine = (1 + np.cos(np.pi * progress)) / 2
    decay = {"constant": np.ones_like(steps), "cosine": cosine, "linear": 1 - progress}[spec.schedule]
    warmup = np.minimum(1.0, (steps + 1) / warmup_steps) if warmup_steps else 1.0  # above 0 at the first step
    return np.asarray(spec.lr * warmup * decay, np.float32)


def make_optimizer(spec: OptimSpec, rules: Rules) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer of a phase; ``update`` takes the step's learning rate as ``rate=``.

    Weight decay and clipping apply to trained leaves only. Otherwise decay would move frozen weights, and the clipping
    norm would include them. Frozen leaves have no optimizer state.
    """
    group_transform = {"sgd": _sgd, "adam": _adam}[spec.name](spec)
    transforms: dict[Hashable, optax.GradientTransformation] = {
        **{label: group_transform for label in groups(rules)},
        FROZEN: optax.set_to_zero(),
    }
    trained_mask = functools.partial(trainable, rules=rules)
    chain = [
        optax.multi_transform(transforms, functools.partial(label_leaves, rules=rules)),
        _scale_by_rate(spec, rules),
    ]
    if spec.clip_norm:
        chain.insert(0, optax.masked(optax.clip_by_global_norm(spec.clip_norm), trained_mask))
    if spec.ema:
        chain.append(optax.masked(_track_average(spec.ema), trained_mask))
    return optax.with_extra_args_support(optax.chain(*chain))


def leaf_rates(params: tree.Tree, spec: OptimSpec, rules: Rules) -> dict[str, float]:
    """Return the learning-rate factor of each trained leaf, by path.

    The factor is that of the leaf's group times ``layer_decay`` to the power of the leaf's distance from the head: 0
    for the head and all layers above the stages, 1 for the last stage, and so on. ELECTRA (arXiv:2003.10555) and BEiT
    (arXiv:2106.08254) call this layer-wise learning-rate decay. Leaves of the stages, except adapters, which are new,
    are also multiplied by ``backbone_lr_scale``.
    """
    factors = dict(spec.lr_multipliers)
    depth = {stage: len(spec.stages) - i for i, stage in enumerate(spec.stages)}
    labels = tree.flatten(label_leaves(params, rules))

    scale = spec.backbone_lr_scale or 1.0

    def factor(path: str, label: str) -> float:
        distance = depth.get(path.split("/")[0], 0)
        is_loaded = distance and not re.fullmatch(ADAPTERS, path)
        return factors.get(label, 1.0) * spec.layer_decay**distance * (scale if is_loaded else 1.0)

    return {path: factor(path, label) for path, label in labels.items() if label != FROZEN}


class Average(NamedTuple):
    """Moving average of the trained leaves, and its number of updates."""

    count: jax.Array
    average: Any


def averaged_params(params: Any, opt_state: Any) -> Any:
    """Replace the trained leaves of ``params`` by their moving average, if the optimizer keeps one."""
    average = optax.tree.get(opt_state, "average")
    if average is None:
        return params
    is_masked = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(lambda a, p: p if is_masked(a) else a, average, params, is_leaf=is_masked)


TOKENS = ("class_token", "positions", "registers", "probe")  # parameters of vision transformers


def _stateless(update: Callable[..., Any]) -> optax.GradientTransformationExtraArgs:
    """Return a transform without state; ``update`` takes further keyword arguments."""
    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _decay(spec: OptimSpec) -> list[optax.GradientTransformation]:
    def update(updates, state, params=None, *, decay, **_):
        return jax.tree.map(
            lambda u, p, is_decayed: u + decay * p if is_decayed else u, updates, params, _decayed(params)
        ), state

    if spec.weight_decay is None:
        return [_stateless(update)]
    return [optax.add_decayed_weights(spec.weight_decay, _decayed)] if spec.weight_decay else []


def _decayed(params: Any) -> Any:
    """Return which leaves decay: kernels and embeddings of words, but no tokens and positions of images, as in timm."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.ndim > 1 and path[-1].key not in TOKENS, params)


def _sgd(spec: OptimSpec) -> optax.GradientTransformation:
    trace = [optax.trace(spec.momentum)] if spec.momentum else []
    return optax.chain(optax.identity(), *_decay(spec), *trace)


def _adam(spec: OptimSpec) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(eps=spec.epsilon), *_decay(spec))


def _scale_by_rate(spec: OptimSpec, rules: Rules) -> optax.GradientTransformationExtraArgs:
    """Scale updates by minus the learning rate times each leaf's factor."""

    def update(updates, state, params=None, *, rate, **_):
        factors = leaf_rates(updates, spec, rules)
        steps = {path: leaf * (-rate * factors.get(path, 1.0)) for path, leaf in tree.flatten(updates).items()}
        return tree.unflatten(steps), state

    return _stateless(update)


def _track_average(decay: float) -> optax.GradientTransformation:
    """Track an exponential moving average of the parameters after each step; updates pass through unchanged.

    After t steps the decay is min(decay, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage, so early
    values are forgotten quickly.
    """

    def init(params):
        return Average(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state, params=None):
        count = state.count + 1
        keep_share = jnp.minimum(decay, (1 + count) / (10 + count))
        new = jax.tree.map(lambda a, p, u: a + (1 - keep_share) * (p + u - a), state.average, params, updates)
        return updates, Average(count, new)

    return optax.GradientTransformation(init, update)


MOMENTS = ("mu", "nu")  # moving averages of the gradients and of their squares


def adam_moments(opt_state: Any) -> dict[str, Any]:
    """Return Adam's moments as ``{"count": steps, "mu": ..., "nu": ...}``, nested as the parameters.

    Frozen leaves have no moments. The result is empty if the optimizer is not Adam.
    """
    states = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_adam) if _is_adam(node)]
    if not states:
        return {}
    moments: dict[str, Any] = {"count": states[0].count}
    for kind in MOMENTS:
        leaves = {path: leaf for state in states for path, leaf in tree.flatten(getattr(state, kind)).items()}
        moments[kind] = tree.unflatten(
            {p: leaf for p, leaf in leaves.items() if not isinstance(leaf, optax.MaskedNode)}
        )
    return moments


def set_adam_moments(opt_state: Any, moments: Mapping[str, Any]) -> Any:
    """Return an optimizer state with copies of ``moments``; unchanged if ``moments`` is empty."""
    if not moments:
        return opt_state
    flat = {kind: tree.flatten(moments[kind]) for kind in MOMENTS}

    def with_moments(node: Any) -> Any:
        if not _is_adam(node):
            return node
        new = {
            kind: tree.unflatten(
                {
                    path: leaf if isinstance(leaf, optax.MaskedNode) else jnp.copy(flat[kind][path])
                    for path, leaf in tree.flatten(getattr(node, kind)).items()
                }
            )
            for kind in MOMENTS
        }
        return node._replace(count=jnp.asarray(moments["count"], node.count.dtype), **new)

    return jax.tree.map(with_moments, opt_state, is_leaf=_is_adam)


def _is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)
