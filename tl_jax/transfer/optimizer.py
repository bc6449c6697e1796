"""Optimizers by name: one transform for each trained group, nothing at all for frozen leaves."""

import functools
from typing import NamedTuple

import jax
import optax

from tl_jax.transfer.partition import FROZEN, Rules, groups, trainable
from tl_jax.tree import label_leaves


class OptimSpec(NamedTuple):
    """How the trained leaves move in one phase.

    Attributes:
        name: "adam" or "sgd".
        lr: peak learning rate.
        steps: length of the phase in steps; the schedule ends there.
        schedule: "constant" or "cosine" (to zero), after the warm-up.
        warmup: share of the steps in which the rate rises linearly.
        weight_decay: for adam decoupled (AdamW, arXiv:1711.05101), for sgd added to the gradient; kernels only.
        momentum: of sgd.
        epsilon: of adam.
        clip_norm: largest global norm of the trained leaves' gradients; 0 for no clipping.
    """

    name: str
    lr: float
    steps: int
    schedule: str = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    momentum: float = 0.9
    epsilon: float = 1e-8
    clip_norm: float = 0.0


def make_schedule(spec: OptimSpec) -> optax.Schedule:
    """Return the learning rate as a function of the step within the phase."""
    warm = round(spec.warmup * spec.steps)
    rest = max(1, spec.steps - warm)
    main = optax.cosine_decay_schedule(spec.lr, rest) if spec.schedule == "cosine" else optax.constant_schedule(spec.lr)
    if not warm:
        return main
    rise = optax.linear_schedule(spec.lr / warm, spec.lr, max(1, warm - 1))  # the first step moves already
    return optax.join_schedules([rise, main], [warm])


def make_optimizer(spec: OptimSpec, rules: Rules) -> optax.GradientTransformation:
    """Return the optimizer of a phase.

    Decay and clipping act on trained leaves only: outside of them decay would move frozen weights, and the clipping
    norm would count them. Frozen leaves have no optimizer state.
    """
    group = {"sgd": _sgd, "adam": _adam}[spec.name](spec)
    transforms = {**{label: group for label in groups(rules)}, FROZEN: optax.set_to_zero()}
    split = optax.multi_transform(transforms, functools.partial(label_leaves, rules=rules))
    if not spec.clip_norm:
        return split
    clip = optax.masked(optax.clip_by_global_norm(spec.clip_norm), functools.partial(trainable, rules=rules))
    return optax.chain(clip, split)


def _decay(spec: OptimSpec) -> list[optax.GradientTransformation]:
    def kernels(params):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return [optax.add_decayed_weights(spec.weight_decay, kernels)] if spec.weight_decay else []


def _sgd(spec: OptimSpec) -> optax.GradientTransformation:
    trace = [optax.trace(spec.momentum)] if spec.momentum else []
    return optax.chain(*_decay(spec), *trace, optax.scale_by_learning_rate(make_schedule(spec)))


def _adam(spec: OptimSpec) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(eps=spec.epsilon)
    return optax.chain(adam, *_decay(spec), optax.scale_by_learning_rate(make_schedule(spec)))
