"""A run's weights as files: whole, and as what changed on top of the published ones."""

import dataclasses
from pathlib import Path
from typing import Any

from configs import base
from configs.fields import OF_PICTURES
from tl_jax import shipping
from tl_jax.runs import optimizer_state, restore
from tl_jax.specs import PretrainedSpec
from tl_jax.task import Task
from tl_jax.train.log import say
from tl_jax.train.run_files import read_summary
from tl_jax.train.state import TrainState
from tl_jax.transfer import adapters, delta, moments
from tl_jax.weights import own

NOTHING = 0.95  # of the whole weights, from which on a delta is not worth its trouble


def export(config: base.Config, folder: str | Path, dtype: str = "float32") -> Path:
    """Write a run into ``export/`` as a bundle that others load, see ``shipping``, and return its weights.

    Those of a text network are the folder that transformers opens.

    Of an image network ``export/model.safetensors`` is what ``pretrained.load(source="tl_jax")`` reads, of a policy
    what ``init.path`` takes. That of faces puts out embeddings, whose length is not yet 1, that of a detector is the
    network below the head, to be started from.

    Beside it comes ``export/delta.safetensors``: only what changed, for ``pretrained.load(..., delta=FILE)`` on top of
    the weights that the run started from. Adapters are merged into plain kernels in the first and kept in the second.
    ``dtype`` is that of the values in the first: "float16" halves it.
    """
    folder = Path(folder).expanduser()
    task, start, state = restore(config, folder, data=False)
    if config.task == "policy":
        path = _export_policy(config, folder, task, state)
    elif config.task in OF_PICTURES:
        path = _export_pictures(config, folder, task, start, state, dtype)
    else:
        path = _export_text(config, folder / "export", task, state, dtype)
    shipping.ship(config, folder, int(state.step))
    return path


def _export_pictures(
    config: base.Config, folder: Path, task: Task, start: TrainState, state: TrainState, dtype: str
) -> Path:
    inputs, source = dict(task.facts["input"]), task.facts["spec"]
    spec = PretrainedSpec(
        model=config.model.name,
        source="tl_jax",
        options=source["options"],
        num_classes=source["num_classes"],
        image_size=inputs["size"],
        crop=inputs["crop"],
        interpolation=inputs["interpolation"],
        scaling=inputs["scaling"],
        licence=source["licence"],
    )
    about = {name: task.facts[name] for name in ("data", "weights_sha256")} | {"classes": task.classes}
    about |= {"step": int(state.step), "metrics": read_summary(folder).get("metrics", {})}
    how = adapters.Adapters(**config.adapt.to_dict())
    below = ("head",) if config.task == "detection" else ()
    trained = _network(state, below)
    path = folder / "export" / "model.safetensors"
    own.save(path, {**trained, "params": adapters.merge(trained["params"], how)}, spec, about, dtype)
    _wrote(path)
    if task.facts["weights_sha256"]:
        base_facts = {"source": config.init.source, "sha256": task.facts["weights_sha256"]}
        small = folder / "export" / "delta.safetensors"
        leaves = delta.changed(_network(start, below), trained)
        delta.save(small, leaves, dataclasses.replace(spec, source=config.init.source), how, base_facts, about)
        _wrote(small)
        if (whole := path.stat().st_size) * NOTHING <= (size := small.stat().st_size):
            say(
                f"{small.name} saves nothing ({size / 1e6:.2f} MB, {path.name} {whole / 1e6:.2f} MB): "
                "training changed nearly every value; ship the whole weights"
            )
    return path


def _export_text(config: base.Config, folder: Path, task: Task, state: TrainState, dtype: str) -> Path:
    from tl_jax import huggingface  # with the tokenizers, which pictures have no use for
    from tl_jax.tasks import text

    classes = () if config.task == "masked" else task.classes
    net = text.load_network(config, classes)._replace(variables={"params": text.trained(config, state.params)})
    huggingface.save(folder, net, classes, dtype)
    _wrote(folder / "model.safetensors")
    return folder


def _export_policy(config: base.Config, folder: Path, task: Task, state: TrainState) -> Path:
    from tl_jax.rl import source

    path = folder / "export" / "model.safetensors"
    about = {name: task.facts[name] for name in ("world", "physics", "spaces")} | {"step": int(state.step)}
    about |= {"metrics": read_summary(folder).get("metrics", {})}
    optimizer = moments.of(optimizer_state(config, folder, task, state))
    source.save(path, state.variables, task.facts["options"], about, optimizer)
    _wrote(path)
    return path


def _network(state: TrainState, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the variables without the further heads that only training had a use for, and ``without`` some parts."""
    params = {name: leaves for name, leaves in state.params.items() if name not in ("extra", *without)}
    return {"params": params, "batch_stats": state.batch_stats}


def _wrote(path: Path) -> None:
    say(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
