"""Export of a trained network as a bundle for others: weights, StableHLO program, files for other libraries, card.

The weights are written in full, and as a delta against the published ones.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from tl_jax import pretrained
from tl_jax.config import recipe
from tl_jax.config.fields import OF_PICTURES
from tl_jax.export import frameworks, model_card, stablehlo
from tl_jax.pretrained import delta, formats
from tl_jax.pretrained.catalog import PretrainedSpec
from tl_jax.report.plots import describe_bound
from tl_jax.restore import optimizer_state, restore
from tl_jax.rl import policy_transfer as policies
from tl_jax.train.logging import say
from tl_jax.train.run_files import read_facts, read_summary
from tl_jax.train.state import TrainState
from tl_jax.train.task import Task
from tl_jax.transfer import adapters
from tl_jax.transfer import optimizer as optimizer_module

PROGRAM, DELTA = "model.stablehlo", "delta.safetensors"


class Contents(NamedTuple):
    """What is shipped of one kind of task.

    Attributes:
        program: see ``stablehlo.Program``.
        facts: further entries of ``bundle.json``.
        licence: of the weights at the start, "" where nobody said.
        files: name -> what it is.
        loaders: heading -> code, see ``model_card.Loader``.
        notes: what the card should say beside them.
    """

    program: stablehlo.Program
    facts: dict[str, Any]
    licence: str
    files: dict[str, str]
    loaders: dict[str, model_card.Loader]
    notes: tuple[str, ...] = ()


def ship(config: recipe.Config, workdir: Path, step: int) -> None:
    """Write the rest of the bundle beside the weights in ``workdir/export``, all of it made from these.

    Args:
        config: of the run.
        workdir: its folder, with result files and the weights that ``export`` wrote.
        step: of the weights.
    """
    folder = workdir / "export"
    for stale in (formats.FILE, PROGRAM, frameworks.KERAS, frameworks.TORCH):  # of an earlier export of this run
        (folder / stale).unlink(missing_ok=True)
    made = _OF_TASKS[config.task](config, folder, step)
    shape = stablehlo.write(folder / PROGRAM, made.program)
    io = {
        "inputs": {name: {"shape": list(s), "dtype": dtype} for name, (s, dtype) in made.program.inputs.items()},
        "limits": list(made.program.limits),
        "output": {"name": made.program.output, "shape": list(shape), "dtype": "float32"},
        "platforms": list(stablehlo.PLATFORMS),
    }
    about = {**model_card.of_run(config, workdir, step, made.licence), **made.facts, "program": io}
    files = {**made.files, PROGRAM: f"program for {', '.join(stablehlo.PLATFORMS)}: {made.program.output}"}
    if (folder / DELTA).is_file():
        files[DELTA] = "only what changed, for pretrained.load(..., delta=FILE) on the weights it started from"
    content = formats.seal(folder, about, files)
    shown = {**made.loaders, **model_card.jax_alone(PROGRAM, io)}
    if about["classes"] and made.program.output == "probabilities":
        shown = {heading: loader._replace(code=loader.code + model_card.NAMES) for heading, loader in shown.items()}
    model_card.write(folder, content, shown, made.notes)
    say(f"wrote the bundle {folder}; {folder / model_card.FILE} says how others load it")


def _of_pictures(config: recipe.Config, folder: Path, step: int) -> Contents:
    net = pretrained.load(config.model.name, "tl_jax", folder / formats.WEIGHTS)
    embeddings = config.task == "faces"
    output = {"faces": "embeddings", "detection": "features"}.get(config.task, "probabilities")
    summary, classes = read_summary(folder.parent), formats.class_names(folder / formats.WEIGHTS)
    fitted = summary.get("calibration", {}) if summary.get("tested_step") == step else {}  # to these weights
    temperature = fitted.get("temperature", 1.0)
    origin = config.init.layout if config.init.source == "random" else config.init.source
    other = frameworks.write(folder, net, origin, embeddings, classes)
    limits = read_facts(folder.parent).get("value_range", ())
    told = model_card.of_pictures(net.spec, config.data.fit, limits)
    files = {formats.WEIGHTS: "weights of tl_jax, with the facts to build the network"}
    found = model_card.pictures(net.spec.model, net.spec.image_size)
    if other.file:
        files[other.file] = other.what
        found[other.what] = model_card.Loader(other.code, told["words"])
    about = {
        "classes": list(classes),
        "spec": net.spec.to_dict(),
        "preprocessing": told,
    }
    notes = (other.why_not,) if other.why_not else ()
    if output == "features":
        notes += ("This is the network below the detector's head, to be started from; `--mode=predict` finds boxes.",)
    if temperature != 1.0:
        about["temperature"] = temperature
        bound = f" ({words})" if (words := describe_bound(temperature)) else ""
        note = f"Logits are divided by {temperature:.4g}, the temperature of the calibration{bound}, in"
        notes += (f"{note} model.stablehlo alone.",)
    made = stablehlo.of_pictures(net, output, temperature)
    return Contents(made, about, net.spec.licence, files, found, notes)


def _of_texts(config: recipe.Config, folder: Path, _: int) -> Contents:
    from tl_jax.pretrained import huggingface  # with the tokenizers, which pictures have no use for

    net = huggingface.load(config.model.name, folder)
    length = min(config.input.max_length or net.model.positions, net.model.positions)
    what = ("weights in Hugging Face's names", "the network", "the tokenizer", "what transformers calls the tokenizer")
    files: dict[str, str] = dict(zip(huggingface.FILES, what, strict=True))
    about = {"classes": list(net.classes), "preprocessing": model_card.of_texts(length)}
    found = model_card.texts(net.model.output if net.model.num_classes else "masked", net.model.pooling, length)
    return Contents(stablehlo.of_texts(net), about, "", files, found)


def _of_policy(_: recipe.Config, folder: Path, __: int) -> Contents:
    source = policies.load(folder / formats.WEIGHTS)
    about = {"classes": [], "world": source.world, "preprocessing": model_card.of_policy(source.spaces)}
    about |= {"options": dict(source.options)}
    files = {formats.WEIGHTS: "weights of tl_jax, with the facts to build the policy"}
    return Contents(stablehlo.of_policy(source), about, "", files, model_card.policies())


_OF_TASKS = {"policy": _of_policy, **dict.fromkeys(OF_PICTURES, _of_pictures)}
_OF_TASKS |= dict.fromkeys(("text", "tokens", "masked"), _of_texts)


NOTHING = 0.95  # of the whole weights, from which on a delta is not worth its trouble


def export(config: recipe.Config, folder: str | Path, dtype: str = "float32") -> Path:
    """Write a run into ``export/`` as a bundle that others load, see ``ship``, and return its weights.

    Those of a text network are the folder that transformers opens.

    Of an image network ``export/model.safetensors`` is what ``pretrained.load(source="tl_jax")`` reads, of a policy
    what ``init.path`` takes. That of faces puts out embeddings, whose length is not yet 1, that of a detector is the
    network below the head, to be started from.

    Beside it comes ``export/delta.safetensors``: only what changed, for ``pretrained.load(..., delta=FILE)`` on top of
    the weights that the run started from. Adapters are merged into plain kernels in the first and kept in the second.
    ``dtype`` is that of the values in the first: "float16" halves it.
    """
    stablehlo.check_serialization()  # before the weights, which alone would be half a bundle
    folder = Path(folder).expanduser()
    task, start, state = restore(config, folder, data=False)
    if config.task == "policy":
        path = _export_policy(config, folder, task, state)
    elif config.task in OF_PICTURES:
        path = _export_pictures(config, folder, task, start, state, dtype)
    else:
        path = _export_text(config, folder / "export", task, state, dtype)
    ship(config, folder, int(state.step))
    return path


def _export_pictures(
    config: recipe.Config, folder: Path, task: Task, start: TrainState, state: TrainState, dtype: str
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
    formats.save(path, {**trained, "params": adapters.merge(trained["params"], how)}, spec, about, dtype)
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


def _export_text(config: recipe.Config, folder: Path, task: Task, state: TrainState, dtype: str) -> Path:
    from tl_jax.pretrained import huggingface  # with the tokenizers, which pictures have no use for
    from tl_jax.tasks import text

    classes = () if config.task == "masked" else task.classes
    net = text.load_network(config, classes)._replace(variables={"params": text.trained(config, state.params)})
    huggingface.save(folder, net, classes, dtype)
    _wrote(folder / "model.safetensors")
    return folder


def _export_policy(config: recipe.Config, folder: Path, task: Task, state: TrainState) -> Path:
    from tl_jax.rl import policy_transfer

    path = folder / "export" / "model.safetensors"
    about = {name: task.facts[name] for name in ("world", "physics", "spaces")} | {"step": int(state.step)}
    about |= {"metrics": read_summary(folder).get("metrics", {})}
    optimizer = optimizer_module.of(optimizer_state(config, folder, task, state))
    policy_transfer.save(path, state.variables, task.facts["options"], about, optimizer)
    _wrote(path)
    return path


def _network(state: TrainState, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the variables without the further heads that only training had a use for, and ``without`` some parts."""
    params = {name: leaves for name, leaves in state.params.items() if name not in ("extra", *without)}
    return {"params": params, "batch_stats": state.batch_stats}


def _wrote(path: Path) -> None:
    say(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
