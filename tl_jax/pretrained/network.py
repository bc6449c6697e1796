"""A network with its weights, and its variants: another head, a shorter trunk, other input channels."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import models
from tl_jax.data import preprocess
from tl_jax.models.backbone import Backbone
from tl_jax.models.registry import PretrainedSpec
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

HEAD_LEAVES = r"params/(?:aux/)?head/.*"  # leaves that depend on the classes
NEW_LEAVES = rf"{HEAD_LEAVES}|params/adapter_\w+/.*"  # leaves that may be initialized next to loaded ones


class Pretrained(NamedTuple):
    """A model with its weights and their facts.

    Attributes:
        model: linen module; ``model.apply(variables, x, train=False)`` gives ``(logits, endpoints)``.
        variables: ``{"params": ..., "batch_stats": ...}``, float32.
        spec: facts of the weights; ``spec.options`` rebuilds the model.
        new_head: whether the head is randomly initialized.
        path: the weights file; None for random weights.
        sha256: hash of that file; "" for random weights.
        notes: lines for the user about what was used, dropped or changed.
        no_head: why the file's head does not fit the network and was dropped; "" otherwise.
    """

    model: Backbone
    variables: Mapping[str, Any]
    spec: PretrainedSpec
    new_head: bool
    path: Path | None
    sha256: str = ""
    notes: tuple[str, ...] = ()
    no_head: str = ""

    def preprocess(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Convert uint8 images (N, H, W, C) to network inputs, float32 (N, size, size, channels of the model).

        C is the model's number of channels; gray and RGB images are converted to each other.
        """
        images = images if isinstance(images, jax.Array) else np.asarray(images)
        if images.ndim != 4 or images.dtype != np.uint8:
            raise UserError(f"preprocess: got {images.dtype} {tuple(images.shape)}; pass uint8 images (N, H, W, C)")
        adjusted = preprocess.convert_channels(jnp.asarray(images), self.model.channels)
        fitted = preprocess.resize_and_crop(adjusted, self.spec.image_size, self.spec.crop, self.spec.interpolation)
        return preprocess.scale(fitted, self.spec.scaling)


@functools.cache
def initializer(model: Backbone):
    """Return the jitted function key -> variables of a model."""
    size = 299 if getattr(model, "aux", False) else max(32, model.min_size)  # the auxiliary head needs a 17x17 map
    return jax.jit(lambda key: dict(model.init(key, jnp.zeros((1, size, size, model.channels)))))


@functools.cache
def new_initializer(model: Backbone):
    """Return the jitted function key -> new leaves by path; XLA drops the rest of the initialization."""

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        return {p: leaf for p, leaf in tree.flatten(initializer(model)(key)).items() if re.fullmatch(NEW_LEAVES, p)}

    return jax.jit(draw)


@functools.cache
def variable_shapes(model: Backbone) -> Mapping[str, Any]:
    """Return the shapes and dtypes of a model's variables without computing anything."""
    return jax.eval_shape(initializer(model), jax.random.key(0))


def check_variables(variables: Mapping[str, Any], shapes: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Return the variables if their leaves match a network. Raises UserError with the first difference otherwise.

    Args:
        variables: variables of a network.
        shapes: see ``variable_shapes``.
        where: their origin, for the message.
    """
    found = {path: tuple(leaf.shape) for path, leaf in tree.flatten(variables).items()}
    expected = {path: tuple(leaf.shape) for path, leaf in tree.flatten(shapes).items()}
    if wrong := sorted(path for path in {*found, *expected} if found.get(path) != expected.get(path)):
        shape, right = found.get(wrong[0], "absent"), expected.get(wrong[0], "absent")
        raise UserError(f"{where}: {wrong[0]} is {shape}, but the network has {right}; export the run again")
    return dict(variables)


def init_new_leaves(net: Pretrained, key: jax.Array) -> dict[str, Any]:
    """Return the variables of ``net``, with new heads and bottleneck adapters initialized from ``key``."""
    loaded = tree.flatten(net.variables)
    if net.new_head:
        loaded = {p: leaf for p, leaf in loaded.items() if not re.fullmatch(HEAD_LEAVES, p)}
    missing = any(p not in loaded for p in tree.flatten(variable_shapes(net.model)))
    return tree.unflatten({**(new_initializer(net.model)(key) if missing else {}), **loaded})


def rebuild(net: Pretrained, **changes: Any) -> Pretrained:
    """Return ``net`` with other model attributes; leaves that the new model lacks are dropped."""
    model = net.model.clone(**changes)
    shapes = tree.flatten(variable_shapes(model))
    leaves = {p: leaf for p, leaf in tree.flatten(net.variables).items() if p in shapes}
    options = models.model_options(net.spec.model, model)
    spec = dataclasses.replace(net.spec, options=options, num_classes=model.num_classes)
    return net._replace(model=model, variables=tree.unflatten(leaves), spec=spec)


def with_head(net: Pretrained, num_classes: int, head: str = "auto", seed: int = 0) -> Pretrained:
    """Return ``net`` with a head of ``num_classes`` outputs on its features; 0 removes the head.

    Args:
        net: network with or without a head.
        num_classes: K.
        head: "auto" keeps the head if it has K outputs, "new" always initializes one, "keep" requires the old one.
        seed: random seed of a new head.

    Raises:
        UserError: ``head`` is "keep", but the head has another number of outputs.
    """
    current = net.spec.num_classes
    if head == "keep" and current != num_classes:
        raise head_error(net, f"has {current} classes, not {num_classes}")
    if head != "new" and current == num_classes:
        return net
    net = rebuild(net, num_classes=num_classes)._replace(new_head=num_classes > 0)
    return net._replace(variables=init_new_leaves(net, jax.random.key(seed)))


def head_error(net: Pretrained, reason: str) -> UserError:
    """Return the error for a head that cannot be kept; an empty ``reason`` is derived from ``net``."""
    if not net.spec.num_classes:
        reason = f"does not fit the network ({net.no_head})" if net.no_head else "is missing"
    return UserError(f"{net.path}: the head {reason}; pass config.init.head=new")


def with_endpoint(net: Pretrained, endpoint: str) -> Pretrained:
    """Return ``net`` truncated after the stage ``endpoint``, without a head; its features are from there."""
    changes: dict[str, Any] = {"fc": False} if hasattr(net.model, "fc") else {}
    return rebuild(net, endpoint=endpoint, num_classes=0, **changes)


def with_channels(net: Pretrained, channels: int) -> Pretrained:
    """Return ``net`` for images with another number of channels.

    For one channel the kernels of red, green and blue are summed, so a gray image gives the same output as its RGB
    version. For more channels they are repeated in turn and scaled by 3 / C, which keeps the scale of activations.
    """
    if channels == net.model.channels:
        return net
    adapted = net._replace(model=net.model.clone(channels=channels))
    shapes = tree.flatten(variable_shapes(adapted.model))
    leaves = dict(tree.flatten(net.variables))
    path = next(p for p, leaf in leaves.items() if leaf.shape != shapes[p].shape)
    kernel = leaves[path]
    if channels == 1:
        leaves[path], change = kernel.sum(axis=2, keepdims=True), "summed over red, green and blue"
    else:
        order = np.arange(channels) % kernel.shape[2]
        leaves[path], change = kernel[:, :, order] * (kernel.shape[2] / channels), f"repeated for {channels} channels"
    note = f"{path.removeprefix('params/')}: kernels {change}"
    return rebuild(adapted._replace(variables=tree.unflatten(leaves), notes=(*net.notes, note)))
