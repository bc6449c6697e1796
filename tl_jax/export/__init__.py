"""Export of a trained network as a bundle for others: weights, StableHLO program, files for other libraries, card.

The weights are written in full, and as a delta against the published ones.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from tl_jax import pretrained
from tl_jax.config import recipe
from tl_jax.config.schema import IMAGE_TASKS
from tl_jax.export import frameworks, model_card, stablehlo
from tl_jax.pretrained import delta, formats
from tl_jax.pretrained.catalog import PretrainedSpec
from tl_jax.report.plots import describe_bound
from tl_jax.restore import optimizer_state, restore
from tl_jax.rl import policy_transfer
from tl_jax.train.logging import say
from tl_jax.train.state import TrainState
from tl_jax.train.task import Task
from tl_jax.train.workdir import read_facts, read_summary
from tl_jax.transfer import adapters, optimizer

PROGRAM_FILE, DELTA_FILE = "model.stablehlo", "delta.safetensors"


class BundleContents(NamedTuple):
    """Contents of the bundle of one kind of task.

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


def write_bundle(config: recipe.Config, workdir: Path, step: int) -> None:
    """Write all files of the bundle but the weights, from the weights in ``workdir/export``.

    Args:
        config: of the run.
        workdir: its folder, with result files and the weights that ``export`` wrote.
        step: of the weights.
    """
    folder = workdir / "export"
    # Of an earlier export of this run.
    for stale in (formats.BUNDLE_FILE, PROGRAM_FILE, frameworks.KERAS_FILE, frameworks.TORCHVISION_FILE):
        (folder / stale).unlink(missing_ok=True)
    contents = _CONTENTS[config.task](config, folder, step)
    shape = stablehlo.write_program(folder / PROGRAM_FILE, contents.program)
    io = {
        "inputs": {name: {"shape": list(s), "dtype": dtype} for name, (s, dtype) in contents.program.inputs.items()},
        "limits": list(contents.program.limits),
        "output": {"name": contents.program.output, "shape": list(shape), "dtype": "float32"},
        "platforms": list(stablehlo.PLATFORMS),
    }
    facts = {**model_card.describe_run(config, workdir, step, contents.licence), **contents.facts, "program": io}
    files = {**contents.files, PROGRAM_FILE: f"program for {', '.join(stablehlo.PLATFORMS)}: {contents.program.output}"}
    if (folder / DELTA_FILE).is_file():
        files[DELTA_FILE] = "only what changed, for pretrained.load(..., delta=FILE) on the weights it started from"
    bundle = formats.write_bundle_json(folder, facts, files)
    loaders = {**contents.loaders, **model_card.jax_loader(PROGRAM_FILE, io)}
    if facts["classes"] and contents.program.output == "probabilities":
        loaders = {
            heading: loader._replace(code=loader.code + model_card.CLASS_NAMES_CODE)
            for heading, loader in loaders.items()
        }
    model_card.write_card(folder, bundle, loaders, contents.notes)
    say(f"wrote the bundle {folder}; {folder / model_card.CARD_FILE} says how others load it")


def _image_contents(config: recipe.Config, folder: Path, step: int) -> BundleContents:
    net = pretrained.load(config.model.name, "tl_jax", folder / formats.WEIGHTS_FILE)
    embeddings = config.task == "faces"
    output = {"faces": "embeddings", "detection": "features"}.get(config.task, "probabilities")
    summary, classes = read_summary(folder.parent), formats.class_names(folder / formats.WEIGHTS_FILE)
    calibration = summary.get("calibration", {}) if summary.get("tested_step") == step else {}  # to these weights
    temperature = calibration.get("temperature", 1.0)
    origin = config.init.layout if config.init.source == "random" else config.init.source
    framework = frameworks.write_weights(folder, net, origin, embeddings, classes)
    limits = read_facts(folder.parent).get("value_range", ())
    preprocessing = model_card.describe_image_input(net.spec, config.data.fit, limits)
    files = {formats.WEIGHTS_FILE: "weights of tl_jax, with the facts to build the network"}
    loaders = model_card.image_loader(net.spec.model, net.spec.image_size)
    if framework.file:
        files[framework.file] = framework.description
        loaders[framework.description] = model_card.Loader(framework.code, preprocessing["words"])
    facts = {
        "classes": list(classes),
        "spec": net.spec.to_dict(),
        "preprocessing": preprocessing,
    }
    notes = (framework.reason,) if framework.reason else ()
    if output == "features":
        notes += ("This is the network below the detector's head, to be started from; `--mode=predict` finds boxes.",)
    if temperature != 1.0:
        facts["temperature"] = temperature
        bound = f" ({words})" if (words := describe_bound(temperature)) else ""
        note = f"Logits are divided by {temperature:.4g}, the temperature of the calibration{bound}, in"
        notes += (f"{note} model.stablehlo alone.",)
    program = stablehlo.image_program(net, output, temperature)
    return BundleContents(program, facts, net.spec.licence, files, loaders, notes)


def _text_contents(config: recipe.Config, folder: Path, _: int) -> BundleContents:
    from tl_jax.pretrained import huggingface  # with the tokenizers, which pictures have no use for

    net = huggingface.load(config.model.name, folder)
    length = min(config.input.max_length or net.model.positions, net.model.positions)
    descriptions = (
        "weights in Hugging Face's names",
        "the network",
        "the tokenizer",
        "what transformers calls the tokenizer",
    )
    files: dict[str, str] = dict(zip(huggingface.SAVED_FILES, descriptions, strict=True))
    facts = {"classes": list(net.classes), "preprocessing": model_card.describe_text_input(length)}
    loaders = model_card.text_loaders(
        net.model.output if net.model.num_classes else "masked", net.model.pooling, length
    )
    return BundleContents(stablehlo.text_program(net), facts, "", files, loaders)


def _policy_contents(_: recipe.Config, folder: Path, __: int) -> BundleContents:
    source = policy_transfer.load(folder / formats.WEIGHTS_FILE)
    facts = {"classes": [], "world": source.world, "preprocessing": model_card.describe_policy_input(source.spaces)}
    facts |= {"options": dict(source.options)}
    files = {formats.WEIGHTS_FILE: "weights of tl_jax, with the facts to build the policy"}
    return BundleContents(stablehlo.policy_program(source), facts, "", files, model_card.policy_loader())


_CONTENTS = {"policy": _policy_contents, **dict.fromkeys(IMAGE_TASKS, _image_contents)}
_CONTENTS |= dict.fromkeys(("text", "tokens", "masked"), _text_contents)


MAX_DELTA_SHARE = 0.95  # of the whole weights, from which on a delta is not worth its trouble


def export(config: recipe.Config, folder: str | Path, dtype: str = "float32") -> Path:
    """Write a run into ``export/`` as a bundle that others load, see ``write_bundle``, and return its weights.

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
    elif config.task in IMAGE_TASKS:
        path = _export_image(config, folder, task, start, state, dtype)
    else:
        path = _export_text(config, folder / "export", task, state, dtype)
    write_bundle(config, folder, int(state.step))
    return path


def _export_image(
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
    facts = {name: task.facts[name] for name in ("data", "weights_sha256")} | {"classes": task.classes}
    facts |= {"step": int(state.step), "metrics": read_summary(folder).get("metrics", {})}
    adapter_config = adapters.Adapters(**config.adapt.to_dict())
    excluded = ("head",) if config.task == "detection" else ()
    trained = _network_variables(state, excluded)
    path = folder / "export" / "model.safetensors"
    formats.save_native(
        path, {**trained, "params": adapters.merge(trained["params"], adapter_config)}, spec, facts, dtype
    )
    _log_file(path)
    if task.facts["weights_sha256"]:
        base_facts = {"source": config.init.source, "sha256": task.facts["weights_sha256"]}
        delta_path = folder / "export" / "delta.safetensors"
        leaves = delta.changed_leaves(_network_variables(start, excluded), trained)
        delta.save_delta(
            delta_path, leaves, dataclasses.replace(spec, source=config.init.source), adapter_config, base_facts, facts
        )
        _log_file(delta_path)
        if (full_size := path.stat().st_size) * MAX_DELTA_SHARE <= (delta_size := delta_path.stat().st_size):
            say(
                f"{delta_path.name} saves nothing ({delta_size / 1e6:.2f} MB, {path.name} {full_size / 1e6:.2f} MB): "
                "training changed nearly every value; ship the whole weights"
            )
    return path


def _export_text(config: recipe.Config, folder: Path, task: Task, state: TrainState, dtype: str) -> Path:
    from tl_jax.pretrained import huggingface  # with the tokenizers, which pictures have no use for
    from tl_jax.tasks import text

    classes = () if config.task == "masked" else task.classes
    net = text.load_network(config, classes)._replace(variables={"params": text.export_params(config, state.params)})
    huggingface.save(folder, net, classes, dtype)
    _log_file(folder / "model.safetensors")
    return folder


def _export_policy(config: recipe.Config, folder: Path, task: Task, state: TrainState) -> Path:
    path = folder / "export" / "model.safetensors"
    facts = {name: task.facts[name] for name in ("world", "physics", "spaces")} | {"step": int(state.step)}
    facts |= {"metrics": read_summary(folder).get("metrics", {})}
    adam_state = optimizer.adam_moments(optimizer_state(config, folder, task, state))
    policy_transfer.save(path, state.variables, task.facts["options"], facts, adam_state)
    _log_file(path)
    return path


def _network_variables(state: TrainState, excluded: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the variables without the further heads that only training had a use for, and ``excluded`` some parts."""
    params = {name: leaves for name, leaves in state.params.items() if name not in ("extra", *excluded)}
    return {"params": params, "batch_stats": state.batch_stats}


def _log_file(path: Path) -> None:
    say(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")
