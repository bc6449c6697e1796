"""The network of an image run: loaded from weights, rebuilt from the run's facts, or randomly initialized."""

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
    """Load the network of ``config``, with the file's head if it is kept."""
    name, source, path = config.model.name, config.init.source, config.init.path or None
    options = {"head": "keep" if config.init.head == "keep" else "new", "rename": config.init.rename}
    return pretrained.load(name, source, path, seed=config.seed, **options, **model_options(config))


def build_network(config: ImageRunConfig, facts: Mapping[str, Any]) -> Pretrained:
    """Return the network described by the facts of a run, with zero weights, which a checkpoint replaces."""
    spec = formats.parse_spec(facts["spec"], "facts.json: spec", ACTION)
    model = models.create(config.model.name, spec.num_classes, **{**spec.options, **model_options(config)})
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(model))
    path, sha256 = Path(str(facts.get("weights", ""))), str(facts.get("weights_sha256", ""))
    return Pretrained(model, zeros, spec, bool(facts.get("new_head")), path, sha256)


def load_source_head(config: ImageRunConfig, width: int) -> dict[str, Any]:
    """Return the kernel (D, Z) and bias (Z,) of the source's own head; D is the ``width`` of the features.

    Raises:
        UserError: The weights have no head, or it does not sit on ``features``.
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
            "use a file with the top layer, leave model.endpoint empty, or set co_tuning to 0"
        )
    return dict(head)


def random_network(config: ImageRunConfig, classes: int) -> Pretrained:
    """Return the network of ``config`` with random initialization."""
    return pretrained.random(config.model.name, classes, config.init.layout, **model_options(config))


def model_options(config: ImageRunConfig) -> dict[str, Any]:
    """Return the model attributes set by ``config``."""
    options = head_init.model_attributes(config)
    options |= {"dtype": jnp.dtype(config.model.dtype), "endpoint": config.model.endpoint}
    shares = {"dropout": config.regularize.dropout, "drop_path": config.regularize.drop_path}
    overrides: dict[str, Any] = {name: share for name, share in shares.items() if share}
    if config.adapt.kind == "bottleneck" and config.adapt.rank:
        overrides["adapter"] = config.adapt.rank
    return options | overrides | ({"channels": config.model.channels} if config.model.channels != 3 else {})
