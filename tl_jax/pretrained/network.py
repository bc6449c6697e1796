"""A network with its weights, and what can be made of it: another head, a shorter trunk, other input channels."""

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

HEAD_LEAVES = r"params/(?:aux/)?head/.*"  # leaves that know the classes
NEW_LEAVES = rf"{HEAD_LEAVES}|params/adapter_\w+/.*"  # leaves that may be drawn beside loaded ones


class Pretrained(NamedTuple):
    """A model with its weights and the facts about them.

    Attributes:
        model: linen module; ``model.apply(variables, x, train=False)`` gives ``(logits, endpoints)``.
        variables: ``{"params": ..., "batch_stats": ...}``, float32.
        spec: facts of the weights; ``spec.options`` rebuilds the model.
        new_head: whether the head was drawn at random instead of loaded.
        path: the file that was read, None for random weights.
        sha256: of that file, "" for random weights.
        notes: what was taken, left out or changed in the weights, for the user to read.
        no_head: why a head in the file is not the network's and was left out; "" otherwise.
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
        """Turn uint8 pictures (N, H, W, C) into network inputs float32 (N, size, size, channels of the model).

        C is the model's number of channels, or 1 or 3 where the model has the other.
        """
        images = images if isinstance(images, jax.Array) else np.asarray(images)
        if images.ndim != 4 or images.dtype != np.uint8:
            raise UserError(f"preprocess takes uint8 (N, H, W, C), not {images.dtype} {tuple(images.shape)}")
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
    """Return the jitted function key -> new leaves by path; XLA drops the rest of the initialisation."""

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        return {p: leaf for p, leaf in tree.flatten(initializer(model)(key)).items() if re.fullmatch(NEW_LEAVES, p)}

    return jax.jit(draw)


@functools.cache
def variable_shapes(model: Backbone) -> Mapping[str, Any]:
    """Return the shapes and dtypes of a model's variables; nothing is computed."""
    return jax.eval_shape(initializer(model), jax.random.key(0))


def check_variables(variables: Mapping[str, Any], shapes: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Return variables if they have the leaves of a network, or say in which one they differ.

    Args:
        variables: of a network.
        shapes: see ``variable_shapes``.
        where: they were read, for the message.
    """
    found = {path: tuple(leaf.shape) for path, leaf in tree.flatten(variables).items()}
    expected = {path: tuple(leaf.shape) for path, leaf in tree.flatten(shapes).items()}
    if wrong := sorted(path for path in {*found, *expected} if found.get(path) != expected.get(path)):
        shape, right = found.get(wrong[0], "absent"), expected.get(wrong[0], "absent")
        raise UserError(f"{where}: {wrong[0]} is {shape}, where its network has {right}; export the run again")
    return dict(variables)


def init_new_leaves(net: Pretrained, key: jax.Array) -> dict[str, Any]:
    """Return the variables of ``net`` with what was not loaded drawn from ``key``: new heads, bottleneck adapters."""
    loaded = tree.flatten(net.variables)
    if net.new_head:
        loaded = {p: leaf for p, leaf in loaded.items() if not re.fullmatch(HEAD_LEAVES, p)}
    missing = any(p not in loaded for p in tree.flatten(variable_shapes(net.model)))
    return tree.unflatten({**(new_initializer(net.model)(key) if missing else {}), **loaded})


def rebuild(net: Pretrained, **changes: Any) -> Pretrained:
    """Return ``net`` with other attributes of its model; leaves that the new model does not have are left out."""
    model = net.model.clone(**changes)
    shapes = tree.flatten(variable_shapes(model))
    leaves = {p: leaf for p, leaf in tree.flatten(net.variables).items() if p in shapes}
    options = models.model_options(net.spec.model, model)
    spec = dataclasses.replace(net.spec, options=options, num_classes=model.num_classes)
    return net._replace(model=model, variables=tree.unflatten(leaves), spec=spec)


def with_head(net: Pretrained, num_classes: int, head: str = "auto", seed: int = 0) -> Pretrained:
    """Return ``net`` with a head of ``num_classes`` outputs on its features; 0 takes the head away.

    Args:
        net: network with or without a head.
        num_classes: K.
        head: "auto" keeps the head where it has K outputs, "new" always draws one, "keep" insists on the old one.
        seed: of a new head.

    Raises:
        UserError: the head is to be kept but has another number of outputs.
    """
    current = net.spec.num_classes
    if head == "keep" and current != num_classes:
        raise head_error(net, f"has {current} classes, not {num_classes}")
    if head != "new" and current == num_classes:
        return net
    net = rebuild(net, num_classes=num_classes)._replace(new_head=num_classes > 0)
    return net._replace(variables=init_new_leaves(net, jax.random.key(seed)))


def head_error(net: Pretrained, reason: str) -> UserError:
    """Return the error for a head that is to be kept; ``reason`` says why it cannot, if there is one."""
    if not net.spec.num_classes:
        reason = f"is not the network's ({net.no_head})" if net.no_head else "is not there"
    return UserError(f"the head in {net.path} {reason}; pass config.init.head=new")


def with_endpoint(net: Pretrained, endpoint: str) -> Pretrained:
    """Return ``net`` cut off after the part ``endpoint``, without a head; ``features`` is that part's average."""
    changes: dict[str, Any] = {"fc": False} if hasattr(net.model, "fc") else {}
    return rebuild(net, endpoint=endpoint, num_classes=0, **changes)


def with_channels(net: Pretrained, channels: int) -> Pretrained:
    """Return ``net`` for pictures with another number of channels.

    For one channel the kernels of red, green and blue are summed: grey gives what its three equal channels gave.
    For more they are repeated in turn and scaled by 3 / C, which keeps the size of the activations.
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
