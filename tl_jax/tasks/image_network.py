"""The network of a run on images: read from its weights, rebuilt from what the run says of it, or drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax import models, pretrained
from tl_jax.pretrained import formats
from tl_jax.pretrained.network import Pretrained, variable_shapes
from tl_jax.tasks import head_init
from tl_jax.train.workdir import ACTION
from tl_jax.utils.errors import UserError

if TYPE_CHECKING:
    from tl_jax.tasks.image_task import ImageRunConfig


def load_network(config: ImageRunConfig) -> Pretrained:
    """Read the network of ``config`` with the head that the file has, where that is to be kept."""
    name, source, path = config.model.name, config.init.source, config.init.path or None
    options = {"head": "keep" if config.init.head == "keep" else "new", "rename": config.init.rename}
    return pretrained.load(name, source, path, seed=config.seed, **options, **model_options(config))


def build_network(config: ImageRunConfig, facts: Mapping[str, Any]) -> Pretrained:
    """Return the network that the facts of a run describe, with zeros for weights: a checkpoint has the right ones."""
    spec = formats.parse_spec(facts["spec"], "facts.json: spec", ACTION)
    model = models.create(config.model.name, spec.num_classes, **{**spec.options, **model_options(config)})
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(model))
    path, sha256 = Path(str(facts.get("weights", ""))), str(facts.get("weights_sha256", ""))
    return Pretrained(model, zeros, spec, bool(facts.get("new_head")), path, sha256)


def load_source_head(config: ImageRunConfig, width: int) -> dict[str, Any]:
    """Return the kernel (D, Z) and bias (Z,) of the head that the weights came with; D is the ``width`` of features.

    Raises:
        UserError: they came without one, or it sits on something other than ``features``.
    """
    head = None
    if config.init.source != "random" and not config.model.endpoint:
        net = pretrained.load(
            config.model.name, config.init.source, config.init.path or None, rename=config.init.rename
        )
        head = net.variables["params"].get("head")
    if head is None or head["kernel"].shape[0] != width:
        raise UserError(
            "config.regularize.co_tuning needs weights with their own head on the network's features; "
            "take a file with the top, leave model.endpoint empty, or set it to 0"
        )
    return dict(head)


def random_network(config: ImageRunConfig, classes: int) -> Pretrained:
    """Return the network of ``config`` with random weights."""
    return pretrained.random(config.model.name, classes, config.init.layout, **model_options(config))


def model_options(config: ImageRunConfig) -> dict[str, Any]:
    """Return the attributes of the model that ``config`` sets."""
    options = head_init.model_attributes(config)
    options |= {"dtype": jnp.dtype(config.model.dtype), "endpoint": config.model.endpoint}
    shares = {"dropout": config.regularize.dropout, "drop_path": config.regularize.drop_path}
    overrides: dict[str, Any] = {name: share for name, share in shares.items() if share}
    if config.adapt.kind == "bottleneck" and config.adapt.rank:
        overrides["adapter"] = config.adapt.rank
    return options | overrides | ({"channels": config.model.channels} if config.model.channels != 3 else {})
