"""How far the parts of a network moved between two states: in their weights, and in what they make of pictures."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tl_jax.config import recipe
from tl_jax.tasks import image_classification
from tl_jax.tasks.losses import Network, make_pooled
from tl_jax.train import evaluate
from tl_jax.transfer import adapters
from tl_jax.utils import tree


def load_run_network(config: recipe.Config, inputs: Mapping[str, Any]) -> Network:
    """Return the network of a run; its weights do not matter here."""
    loaded = (
        image_classification.draw_network(config, 0)
        if config.init.source == "random"
        else image_classification.load_network(config)
    )
    return Network(
        loaded.model.clone(num_classes=0),
        image_classification.Inputs(**inputs),
        adapters.Adapters(**config.adapt.to_dict()),
    )


def pooled_features(network: Network, variables: Any, task: Any) -> dict[str, np.ndarray]:
    """Return the averages over positions (N, C) of every part's map on the test pictures."""
    names = tuple(task.stages)
    rows = evaluate.extract(make_pooled(network, names), variables, task.eval_batches("test"))
    batch = next(task.eval_batches("test"))
    shapes = jax.eval_shape(lambda: network.predict(variables, batch["image"])[1])
    ends = np.cumsum([shapes[name].shape[-1] for name in names])
    return dict(zip(names, np.split(rows, ends[:-1], axis=1), strict=True))


def relative_change(before: Any, after: Any) -> float:
    """Return the norm of the change of a part over its norm at the start."""
    old, new = tree.flatten(before), tree.flatten(after)
    change = sum(float(np.square(np.asarray(new[path]) - np.asarray(leaf)).sum()) for path, leaf in old.items())
    return (change / sum(float(np.square(np.asarray(leaf)).sum()) for leaf in old.values())) ** 0.5
