"""Losses, metrics and boxes of a detector, each made from hashable facts so that runs share compiled code."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl_jax.data.augment import Augment
from tl_jax.data.box_augment import augment_boxes
from tl_jax.data.boxes import CLASS, CROWD
from tl_jax.models import heatmap
from tl_jax.models.box_ops import giou
from tl_jax.tasks.objectives import Network
from tl_jax.transfer import penalties
from tl_jax.transfer.adapters import Adapters
from tl_jax.transfer.penalties import Regularize

BOXES = 5.0  # weight of the boxes in the loss beside that of the middles, as TTFNet has it
FOCUS, NEAR = 2, 4  # exponents of the focal loss, as CenterNet has them


class Finding(NamedTuple):
    """Which boxes are given: at most ``most`` of a picture, none with an IoU above ``overlap`` with a better one."""

    most: int
    overlap: float


@functools.cache
def make_loss(net: Network, how: Augment, visible: float, regularize: Regularize):
    """Return the training loss on augmented pictures: of middles and of boxes, mean over objects; penalties are added.

    ``visible`` is the share of a box that a crop must leave.
    """

    def loss(variables, batch, key):
        images, labels = augment_boxes(batch["image"], batch["label"], key, how, visible)
        out, end, stats = net.train(variables, net.inputs(images), key)
        sums: dict[str, Any] = loss_terms(out, labels, batch["mask"], images.shape)
        value = sums["loss"][0] / jnp.maximum(sums["loss"][1], 1.0)
        source = variables.get("source", {})
        source_end = net._replace(adapters=Adapters()).predict(source, images)[1] if regularize.compares_maps else {}
        extra = penalties.penalty(regularize, variables["params"], end, batch, source, source_end)
        if extra is not None:
            value, sums["penalty"] = value + extra, (extra, 1.0)
        return value, (stats, sums)

    return loss


@functools.cache
def make_metrics(net: Network):
    """Return the evaluation function: sums over pictures and counts of objects, of the loss and its two terms."""

    def metrics(variables, batch):
        out, _ = net.predict(variables, batch["image"])
        return loss_terms(out, batch["label"], batch["mask"], batch["image"].shape)

    return metrics


@functools.cache
def make_predict(net: Network, how: Finding):
    """Return the function (variables, batch) -> boxes (N, D, 6), see ``heatmap.detections``."""

    def predict(variables, batch):
        out, _ = net.predict(variables, batch["image"])
        return heatmap.detections(out, batch["image"].shape[1:3], *how)

    return predict


def focal_loss(logits: jax.Array, heat: jax.Array) -> jax.Array:
    """Return the focal loss of middles, elementwise, in nats (CenterNet, arXiv:1904.07850, equation 1).

    Args:
        logits: of the probability that an object has its middle here.
        heat: 1 where it has, and up to 1 near it, where less is said against it.
    """
    log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    p = jax.nn.sigmoid(logits)
    there, absent = (1 - p) ** FOCUS * log_p, (1 - heat) ** NEAR * p**FOCUS * log_q
    return -jnp.where(heat == 1.0, there, absent)


def loss_terms(out: Any, labels: jax.Array, mask: jax.Array, shape: tuple[int, ...]):
    """Return sums and counts of objects, of the whole loss and of its terms; ``shape`` is that of the pictures."""
    high, wide, count = out["heat"].shape[1:]
    cell = shape[1] / high, shape[2] / wide

    def one(label):
        classes = label[:, CLASS].astype(jnp.int32)
        return heatmap.targets(label[:, :4], classes, label[:, CROWD] > 0, count, (high, wide), cell)

    wanted = jax.vmap(one)(labels)
    counted = jnp.maximum(wanted.counted[..., None], wanted.heat == 1.0)  # an object in a crowd is still to be found
    middles = (focal_loss(out["heat"], wanted.heat) * counted).sum((1, 2, 3))
    boxes = ((1 - giou(heatmap.boxes_of(out["sides"], cell), wanted.boxes)) * wanted.weights).sum((1, 2))
    objects = ((labels[..., CLASS] >= 0) & (labels[..., CROWD] == 0)).sum(1)
    total = (objects * mask).sum().astype(jnp.float32)
    terms = {"middles": (middles * mask).sum(), "boxes": (boxes * mask).sum()}
    terms = {"loss": terms["middles"] + BOXES * terms["boxes"], **terms}
    return {name: (value, total) for name, value in terms.items()}
