"""Model card of a bundle: ``README.md``, generated from ``bundle.json``, with tested code that loads the bundle.

``bundle.json`` is generated from the run's files. The author writes one section of the card.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tl_jax import __version__
from tl_jax.export import stablehlo
from tl_jax.models.registry import MODELS, PretrainedSpec
from tl_jax.pretrained import formats
from tl_jax.pretrained.catalog import EMBEDDED_RESNET8
from tl_jax.report.html import facts_table, markdown_table
from tl_jax.train.run_config import RunConfig
from tl_jax.train.workdir import finite, read_facts, read_summary
from tl_jax.utils import disk
from tl_jax.utils.errors import UserError, join_names
from tl_jax.utils.scaling import SCALINGS

_HEADS = {"text": "SequenceClassification", "tokens": "TokenClassification", "masked": "MaskedLM"}

CLASS_NAMES_CODE = """
import json
from pathlib import Path
classes = json.loads(Path("bundle.json").read_text())["classes"]  # names of the outputs, in their order"""


class Loader(NamedTuple):
    """Code to run in the bundle's folder, with a description."""

    code: str
    description: str = ""


class BundleContents(NamedTuple):
    """Content of a bundle besides the weights.

    Attributes:
        program: see ``stablehlo.Program``.
        facts: further entries of ``bundle.json``.
        licence: licence of the initial weights; "" if unknown.
        files: name -> description.
        loaders: heading -> code.
        notes: further sentences for the card.
    """

    program: stablehlo.Program
    facts: dict[str, Any]
    licence: str
    files: dict[str, str]
    loaders: dict[str, Loader]
    notes: tuple[str, ...] = ()


def jax_loader(file: str, io: Mapping[str, Any]) -> dict[str, Loader]:
    """Return the loader of the program; ``io`` is its entry in ``bundle.json``."""
    output, call = io["output"], ", ".join(io["inputs"])
    signature = "; ".join(f"`{name}`: {entry['dtype']} {_shape(entry)}" for name, entry in io["inputs"].items())
    code = f"""from pathlib import Path
from jax import export
program = export.deserialize(bytearray(Path("{file}").read_bytes()))
{output["name"]} = program.call({call})"""
    description = (
        f"Needs only `pip install jax flatbuffers`. {signature} -> `{output['name']}`: float32 {_shape(output)}"
    )
    description += f"; {', '.join(io['limits'])}. " if io["limits"] else ". "
    description += (
        "It runs on CPU, CUDA and TPU, with a jaxlib up to six months newer, or three weeks older, than the one "
    )
    description += "that wrote it. For longer use, keep the weights."
    return {"With JAX alone": Loader(code, description)}


def _shape(entry: Mapping[str, Any]) -> str:
    return "(" + ", ".join(map(str, entry["shape"])) + ")"


def image_loader(model: str, size: int) -> dict[str, Loader]:
    """Return the loader of an image network with tl_jax."""
    code = """from tl_jax import pretrained
net = pretrained.load(source="tl_jax", path=".")
logits, endpoints = net.model.apply(net.variables, net.preprocess(images), train=False)"""
    description = f'`images`: uint8 (n, H, W, C) of any size, resized to {size} pixels. `tl_jax.load_learner(".")` '
    description += "predicts, evaluates and explains with the bundle. " + _transfer_hint("--config.model.name=MODEL ")
    return {"With tl_jax": Loader(code, description)}


def text_loaders(output: str, pooling: str, length: int) -> dict[str, Loader]:
    """Return the loaders of a text network, with tl_jax and transformers; ``output`` and ``pooling`` as in ``Bert``."""
    ours = f"""from tl_jax import pretrained
net = pretrained.load(source="tl_jax", path=".")
tokens = net.tokenize(texts, max_length={length})
logits, endpoints = net.model.apply(net.variables, **tokens, train=False)"""
    if (output, pooling) == ("text", "mean"):
        theirs = f"""from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModel.from_pretrained(".")
weights = load_file("model.safetensors")
tokens = tokenizer(texts, padding=True, truncation=True, max_length={length}, return_tensors="pt")
mask = tokens["attention_mask"][..., None]
mean = (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
logits = mean @ weights["classifier.weight"].T + weights["classifier.bias"]"""
        description = "The head reads the mean of the tokens, for which transformers has no class. Its warning "
        description += "about a new pooler can be ignored, since the pooler is not used."
        return {"With tl_jax": Loader(ours, _transfer_hint()), "With transformers": Loader(theirs, description)}
    head = _HEADS[output]
    theirs = f"""from transformers import AutoModelFor{head}, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelFor{head}.from_pretrained(".")
tokens = tokenizer(texts, padding=True, truncation=True, max_length={length}, return_tensors="pt")
logits = model(**tokens).logits"""
    return {"With tl_jax": Loader(ours, _transfer_hint()), "With transformers": Loader(theirs)}


def policy_loader() -> dict[str, Loader]:
    """Return the loader of a policy with tl_jax."""
    code = """from tl_jax.rl import policy_transfer
policy = policy_transfer.load(".")  # policy.leaves, policy.options, policy.world"""
    return {"With tl_jax": Loader(code, _transfer_hint())}


def _transfer_hint(flags: str = "") -> str:
    return f"To fine-tune it, pass `{flags}--config.init.source=tl_jax --config.init.path=THIS_FOLDER`."


NOT_STATED = "not stated in the weights' files; see their source"


def network_modules(config: RunConfig) -> list[str]:
    """Return the module outside the package that registered the network, which must be imported before loading."""
    module = MODELS.module(config.model.name) if config.model.name in MODELS else "tl_jax"
    return [] if module.partition(".")[0] == "tl_jax" else [module]


def describe_run(config: RunConfig, workdir: Path, step: int, licence: str) -> dict[str, Any]:
    """Return name, data, metrics, weights, versions and configuration of a run.

    Args:
        config: configuration of the run.
        workdir: folder of the run.
        step: step of the weights.
        licence: licence of the initial weights; "" if unknown.
    """
    summary, run_facts = read_summary(workdir), read_facts(workdir)
    tested = summary.get("tested_step") == step  # the metrics are of these weights
    exported = {"tl_jax": __version__, **{name: version(name) for name in ("jax", "jaxlib")}}
    return finite(
        {
            "name": config.name,
            "task": config.task,
            "model": config.model.name,
            "step": step,
            "seed": config.seed,
            "data": run_facts.get("data") or run_facts.get("world", ""),
            "examples": summary.get("examples", {}),
            "tested_on": run_facts.get("tested", "") if tested else "",
            "examples_evaluated": summary.get("examples_evaluated", 0) if tested else 0,
            "metrics": summary.get("metrics", {}) if tested else {},
            "parameters": summary.get("parameters", {}),
            "weights": {
                "source": config.init.source,
                "file": Path(run_facts.get("weights", "random")).name,
                "sha256": run_facts.get("weights_sha256", ""),
                "licence": describe_licence(config, licence, run_facts.get("weights_sha256", "")),
            },
            "versions": {"trained": summary.get("versions", {}), "exported": exported},
            "changed": changed_fields(config),
            **({"modules": modules} if (modules := network_modules(config)) else {}),
        }
    )


def describe_licence(config: RunConfig, licence: str, sha256: str = "") -> str:
    """Return a description of the licence; that of a bundle if the run started from one.

    Args:
        config: configuration of the run.
        licence: licence of the initial weights; "" if unknown.
        sha256: hash of their file; "" if unknown.
    """
    if config.init.source == "random":
        return "training started from random weights: the author's choice"
    if not licence and config.init.source == "tl_jax":
        if not config.init.path or config.init.path in EMBEDDED_RESNET8:
            return "Apache-2.0 (ships with tl_jax)"
        bundle_path = Path(config.init.path).expanduser()
        try:
            weights = (
                formats.read_bundle(bundle_path if bundle_path.is_dir() else bundle_path.parent).get("weights") or {}
            )
            licence = str(weights.get("licence") or "")
        except UserError:
            licence = ""
    if not licence and config.init.path and sha256 and config.init.source != "huggingface":
        return f"own file, SHA-256 {sha256[:16]}..., licence unknown"
    return licence or NOT_STATED


def changed_fields(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the fields that differ from the defaults of recipes, with both values.

    Local folders are shortened to their last component.
    """
    changes, values = {}, config.flat()
    for path, field in config.fields().items():
        if _to_json(values[path]) != _to_json(field.default):
            changes[path] = {"here": _hide_folder(_to_json(values[path])), "base": _to_json(field.default)}
    return changes


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_json(entry) for key, entry in value.items()}
    return [_to_json(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _hide_folder(value: Any) -> Any:
    if isinstance(value, list):
        return [_hide_folder(entry) for entry in value]
    is_local = isinstance(value, str) and value.startswith(("/", "~", "./", "../"))
    return f".../{Path(value).name}" if is_local else value


FIT_TEXTS = {
    "crop": "",
    "pad": "pad images to a square with black borders, ",
    "stretch": "stretch images to a square, ",
}


def describe_image_input(spec: PretrainedSpec, fit: str, value_range: Sequence[float] = ()) -> dict[str, Any]:
    """Return the preprocessing of images, as values and as text.

    Args:
        spec: spec of the network.
        fit: ``config.data.fit``.
        value_range: values mapped to 0 and 255 in training, if the images had more than 8 bits.
    """
    rule = SCALINGS[spec.scaling]
    values = {"size": spec.image_size, "fit": fit, "crop": spec.crop, "interpolation": spec.interpolation}
    values |= rule._asdict()
    rescale = ""
    if value_range:
        low, high = values["value_range"] = list(value_range)
        rescale = f"images with more than 8 bits: round(255 * clip((value - {low:g}) / {high - low:g}, 0, 1)); "
    side = round(spec.image_size / spec.crop)
    resize = f"{rescale}{FIT_TEXTS[fit]}resize the shortest side to {side} pixels ({spec.interpolation}, antialiased)"
    crop = f"crop the central {spec.image_size}x{spec.image_size}"
    if len(set(rule.mean)) == 1 and set(rule.std) == {1.0}:
        scale = f"pixel / {1 / rule.scale:g}" + (f" - {rule.mean[0]:g}" if rule.mean[0] else "")
    else:
        scale = f"(pixel * {rule.scale:.6g} - {list(rule.mean)}) / {list(rule.std)}"
    scale += f" with channels as {rule.order.upper()}"
    note = "images of that size are not resized; model.stablehlo includes only the last step"
    return {"words": f"{resize}, {crop}, {scale}; {note}", **values}


def describe_text_input(length: int) -> dict[str, Any]:
    """Return the preprocessing of texts."""
    return {"words": f"tokenizer.json, at most {length} tokens with [CLS] and [SEP]", "length": length}


def describe_policy_input(spaces: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing of observations, and the meaning of outputs."""
    words = "observations of the environment, which the network normalizes if configured; "
    if "actions" in spaces:
        return {"words": words + "the most likely action is the highest logit", "spaces": dict(spaces)}
    bounded = "the most likely action is low + (clip(mean, -1, 1) + 1) / 2 * (high - low)"
    return {"words": words + bounded, "spaces": dict(spaces)}


CARD_FILE = "README.md"
INTENDED_USE_PLACEHOLDER = (
    "_To be filled in by the author: what this is for, what it is not for, and who has checked that._"
)
_INTENDED = re.compile(r"(?<=\n## Intended use\n\n).*?(?=\n\n## )", re.DOTALL)
_MAX_CLASSES = 20  # class names in the card


def write_card(folder: Path, bundle: Mapping[str, Any], loaders: Mapping[str, Loader], notes: Sequence[str]) -> None:
    """Write the card; the author's text about the intended use is kept from an earlier card.

    Args:
        folder: folder of the bundle.
        bundle: content of ``bundle.json``.
        loaders: heading -> how to load it.
        notes: further sentences about loading.
    """
    path = folder / CARD_FILE
    match = _INTENDED.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    disk.write_text(path, render_card(bundle, loaders, notes, match[0] if match else INTENDED_USE_PLACEHOLDER))


def render_card(bundle: Mapping[str, Any], loaders: Mapping[str, Loader], notes: Sequence[str], intended: str) -> str:
    """Return the card as Markdown."""
    file_rows = [(f"`{name}`", f["what"], f"{f['bytes']:,}", f"`{f['sha256']}`") for name, f in bundle["files"].items()]
    sections = [
        f"# {bundle['name']}",
        facts_table(_rows(bundle)),
        "## Intended use",
        intended,
        "## Test metrics",
        _metrics(bundle),
        "## How to load it",
        "Run the code in this folder." + "".join(f" {note}" for note in notes),
    ]
    for heading, loader in loaders.items():
        sections += [
            f"### {heading}",
            f"```python\n{loader.code}\n```",
            *([loader.description] if loader.description else []),
        ]
    sections += ["## What the configuration changed", _changes(bundle["changed"])]
    sections += ["## Files", markdown_table(("file", "what it is", "bytes", "SHA-256"), file_rows)]
    return "\n\n".join(sections) + "\n"


def _rows(bundle: Mapping[str, Any]) -> dict[str, str]:
    weights, parameters, classes = bundle["weights"], bundle["parameters"], bundle["classes"]
    sha = f", SHA-256 `{weights['sha256'][:16]}...`" if weights["sha256"] else ""
    start = "random weights" if weights["source"] == "random" else f"{weights['source']}: `{weights['file']}`{sha}"
    rows = {"network": f"`{bundle['model']}`"}
    if parameters:
        trained = f"{parameters['trainable']:,} of them trained" if parameters["trainable"] else "only a head fitted"
        rows["network"] += f", {sum(parameters.values()):,} parameters, {trained}"
    rows |= {"classes": f"{len(classes)}: {join_names(classes, _MAX_CLASSES)}"} if classes else {}
    rows |= {"trained on": bundle["data"] + _examples(bundle["examples"]), "started from": start}
    rows["licence of the weights it started from"] = weights["licence"]
    rows["run"] = f"task `{bundle['task']}`, seed {bundle['seed']}, step {bundle['step']:,}"
    rows["inputs"] = bundle["preprocessing"]["words"]
    versions = bundle["versions"]
    rows["versions"] = "; ".join(
        f"{stage} with {', '.join(f'{name} {version}' for name, version in versions[stage].items())}"
        for stage in ("trained", "exported")
        if versions[stage]
    )
    return rows


def _examples(sizes: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{split} {size:,}' for split, size in sizes.items())})" if sizes else ""


def _metrics(bundle: Mapping[str, Any]) -> str:
    if not bundle["metrics"]:
        return "These weights were not tested."
    values = {name: "not measured" if value is None else f"{value:.4f}" for name, value in bundle["metrics"].items()}
    smoke = "A smoke test: these metrics are not meaningful. " if "smoke" in bundle["changed"] else ""
    evaluation = (
        f"On {bundle['examples_evaluated']:,} examples ({bundle['tested_on']}), one run with seed {bundle['seed']}."
    )
    return f"{facts_table(values)}\n\n{smoke}{evaluation}"


def _changes(changed: Mapping[str, Mapping[str, Any]]) -> str:
    if not changed:
        return "Nothing: the fields are those of `tl_jax/config/recipe.py`."
    rows = [
        (f"`{field}`", *(f"`{json.dumps(values[side])}`" for side in ("here", "base")))
        for field, values in changed.items()
    ]
    return markdown_table(("field", "here", "`tl_jax/config/recipe.py`"), rows)
