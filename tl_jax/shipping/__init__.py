"""Make of an exported run a bundle that others can load: a program, files for other libraries, facts and a card."""

from pathlib import Path
from typing import Any, NamedTuple

from configs import base
from configs.fields import OF_PICTURES
from tl_jax import pretrained
from tl_jax.report.reliability import at_bound
from tl_jax.rl import source as policies
from tl_jax.shipping import card, facts, foreign, loaders, program
from tl_jax.train.log import say
from tl_jax.train.run_files import read_facts, read_summary
from tl_jax.weights import bundles, own

PROGRAM, DELTA = "model.stablehlo", "delta.safetensors"


class Contents(NamedTuple):
    """What is shipped of one kind of task.

    Attributes:
        program: see ``program``.
        facts: further entries of ``bundle.json``.
        licence: of the weights at the start, "" where nobody said.
        files: name -> what it is.
        loaders: heading -> code, see ``loaders``.
        notes: what the card should say beside them.
    """

    program: program.Program
    facts: dict[str, Any]
    licence: str
    files: dict[str, str]
    loaders: dict[str, loaders.Loader]
    notes: tuple[str, ...] = ()


def ship(config: base.Config, workdir: Path, step: int) -> None:
    """Write the rest of the bundle beside the weights in ``workdir/export``, all of it made from these.

    Args:
        config: of the run.
        workdir: its folder, with result files and the weights of ``exporting.export``.
        step: of the weights.
    """
    folder = workdir / "export"
    for stale in (bundles.FILE, PROGRAM, foreign.KERAS, foreign.TORCH):  # of an earlier export of this run
        (folder / stale).unlink(missing_ok=True)
    made = _OF_TASKS[config.task](config, folder, step)
    shape = program.write(folder / PROGRAM, made.program)
    io = {
        "inputs": {name: {"shape": list(s), "dtype": dtype} for name, (s, dtype) in made.program.inputs.items()},
        "limits": list(made.program.limits),
        "output": {"name": made.program.output, "shape": list(shape), "dtype": "float32"},
        "platforms": list(program.PLATFORMS),
    }
    about = {**facts.of_run(config, workdir, step, made.licence), **made.facts, "program": io}
    files = {**made.files, PROGRAM: f"program for {', '.join(program.PLATFORMS)}: {made.program.output}"}
    if (folder / DELTA).is_file():
        files[DELTA] = "only what changed, for pretrained.load(..., delta=FILE) on the weights it started from"
    content = bundles.seal(folder, about, files)
    shown = {**made.loaders, **loaders.jax_alone(PROGRAM, io)}
    if about["classes"] and made.program.output == "probabilities":
        shown = {heading: loader._replace(code=loader.code + loaders.NAMES) for heading, loader in shown.items()}
    card.write(folder, content, shown, made.notes)
    say(f"wrote the bundle {folder}; {folder / card.FILE} says how others load it")


def _of_pictures(config: base.Config, folder: Path, step: int) -> Contents:
    net = pretrained.load(config.model.name, "tl_jax", folder / bundles.WEIGHTS)
    embeddings = config.task == "faces"
    output = {"faces": "embeddings", "detection": "features"}.get(config.task, "probabilities")
    summary, classes = read_summary(folder.parent), own.class_names(folder / bundles.WEIGHTS)
    fitted = summary.get("calibration", {}) if summary.get("tested_step") == step else {}  # to these weights
    temperature = fitted.get("temperature", 1.0)
    origin = config.init.layout if config.init.source == "random" else config.init.source
    other = foreign.write(folder, net, origin, embeddings, classes)
    limits = read_facts(folder.parent).get("value_range", ())
    told = facts.of_pictures(net.spec, config.data.fit, limits)
    files = {bundles.WEIGHTS: "weights of tl_jax, with the facts to build the network"}
    found = loaders.pictures(net.spec.model, net.spec.image_size)
    if other.file:
        files[other.file] = other.what
        found[other.what] = loaders.Loader(other.code, told["words"])
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
        bound = f" ({words})" if (words := at_bound(temperature)) else ""
        note = f"Logits are divided by {temperature:.4g}, the temperature of the calibration{bound}, in"
        notes += (f"{note} model.stablehlo alone.",)
    made = program.of_pictures(net, output, temperature)
    return Contents(made, about, net.spec.licence, files, found, notes)


def _of_texts(config: base.Config, folder: Path, _: int) -> Contents:
    from tl_jax import huggingface  # with the tokenizers, which pictures have no use for

    net = huggingface.load(config.model.name, folder)
    length = min(config.input.length or net.model.positions, net.model.positions)
    what = ("weights in Hugging Face's names", "the network", "the tokenizer", "what transformers calls the tokenizer")
    files = dict(zip(huggingface.FILES, what, strict=True))
    about = {"classes": list(net.classes), "preprocessing": facts.of_texts(length)}
    found = loaders.texts(net.model.output if net.model.num_classes else "masked", net.model.pooling, length)
    return Contents(program.of_texts(net), about, "", files, found)


def _of_policy(_: base.Config, folder: Path, __: int) -> Contents:
    source = policies.load(folder / bundles.WEIGHTS)
    about = {"classes": [], "world": source.world, "preprocessing": facts.of_policy(source.spaces)}
    about |= {"options": dict(source.options)}
    files = {bundles.WEIGHTS: "weights of tl_jax, with the facts to build the policy"}
    return Contents(program.of_policy(source), about, "", files, loaders.policies())


_OF_TASKS = {"policy": _of_policy, **dict.fromkeys(OF_PICTURES, _of_pictures)}
_OF_TASKS |= dict.fromkeys(("text", "tokens", "masked"), _of_texts)
