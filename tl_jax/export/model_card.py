"""The model card of a bundle: ``README.md`` made from ``bundle.json``, with tested code that loads the bundle.

``bundle.json`` is made from the run's own files. The author writes one section of the card.
"""

import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from tl_jax import __version__
from tl_jax.config import recipe
from tl_jax.data.preprocess import SCALINGS
from tl_jax.pretrained import formats
from tl_jax.pretrained.catalog import BANK, PretrainedSpec
from tl_jax.report.html import facts_table, markdown_table
from tl_jax.train.run_files import read_facts, read_summary
from tl_jax.train.workdir import finite
from tl_jax.utils import disk
from tl_jax.utils.errors import UserError, listed

_HEADS = {"text": "SequenceClassification", "tokens": "TokenClassification", "masked": "MaskedLM"}

NAMES = """
import json
from pathlib import Path
classes = json.loads(Path("bundle.json").read_text())["classes"]  # names of the outputs, in their order"""


class Loader(NamedTuple):
    """Code, to be run in the bundle's folder, and what must be said of it."""

    code: str
    words: str = ""


def jax_alone(file: str, io: Mapping[str, Any]) -> dict[str, Loader]:
    """Return what runs the program; ``io`` is its entry in ``bundle.json``."""
    output, call = io["output"], ", ".join(io["inputs"])
    needs = "; ".join(f"`{name}`: {each['dtype']} {_shape(each)}" for name, each in io["inputs"].items())
    code = f"""from pathlib import Path
from jax import export
program = export.deserialize(bytearray(Path("{file}").read_bytes()))
{output["name"]} = program.call({call})"""
    words = f"Needs `pip install jax flatbuffers` alone. {needs} -> `{output['name']}`: float32 {_shape(output)}"
    words += f"; {', '.join(io['limits'])}. " if io["limits"] else ". "
    words += "It runs on CPU, CUDA and TPU, with a jaxlib up to six months newer, or three weeks older, than the one "
    words += "that wrote it; for longer keep the weights."
    return {"With JAX alone": Loader(code, words)}


def _shape(entry: Mapping[str, Any]) -> str:
    return "(" + ", ".join(map(str, entry["shape"])) + ")"


def pictures(model: str, size: int) -> dict[str, Loader]:
    """Return what loads a network of pictures with tl_jax."""
    code = """from tl_jax import pretrained
net = pretrained.load(source="tl_jax", path=".")
logits, endpoints = net.model.apply(net.variables, net.preprocess(images), train=False)"""
    words = f"`images`: uint8 (n, H, W, C) of any size, resized to {size} pixels. " + _start(
        "--config.model.name=MODEL "
    )
    return {"With tl_jax": Loader(code, words)}


def texts(output: str, pooling: str, length: int) -> dict[str, Loader]:
    """Return what loads a text network, with tl_jax and with transformers; ``output``, ``pooling`` as of ``Bert``."""
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
seen = tokens["attention_mask"][..., None]
mean = (model(**tokens).last_hidden_state * seen).sum(1) / seen.sum(1)
logits = mean @ weights["classifier.weight"].T + weights["classifier.bias"]"""
        words = "The head reads the mean of tokens, for which transformers has no class; its warning of a new pooler "
        words += "does not matter, since that is not used."
        return {"With tl_jax": Loader(ours, _start()), "With transformers": Loader(theirs, words)}
    head = _HEADS[output]
    theirs = f"""from transformers import AutoModelFor{head}, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelFor{head}.from_pretrained(".")
tokens = tokenizer(texts, padding=True, truncation=True, max_length={length}, return_tensors="pt")
logits = model(**tokens).logits"""
    return {"With tl_jax": Loader(ours, _start()), "With transformers": Loader(theirs)}


def policies() -> dict[str, Loader]:
    """Return what loads a policy with tl_jax."""
    code = """from tl_jax.rl import policy_transfer
policy = policy_transfer.load(".")  # policy.leaves, policy.options, policy.world"""
    return {"With tl_jax": Loader(code, _start())}


def _start(more: str = "") -> str:
    return f"The next transfer starts from it with `{more}--config.init.source=tl_jax --config.init.path=THIS_FOLDER`."


NOT_STATED = "not stated in the files that the weights came in; see where they came from"


def of_run(config: recipe.Config, workdir: Path, step: int, licence: str) -> dict[str, Any]:
    """Return name, data, metrics, weights, versions and configuration of a run.

    Args:
        config: of the run.
        workdir: its folder.
        step: of the weights.
        licence: of the weights that training started from, "" where nobody said.
    """
    summary, known = read_summary(workdir), read_facts(workdir)
    tested = summary.get("tested_step") == step  # other weights have other metrics
    exported = {"tl_jax": __version__, **{name: version(name) for name in ("jax", "jaxlib")}}
    return finite(
        {
            "name": config.name,
            "task": config.task,
            "model": config.model.name,
            "step": step,
            "seed": config.seed,
            "data": known.get("data") or known.get("world", ""),
            "examples": summary.get("examples", {}),
            "tested_on": known.get("tested", "") if tested else "",
            "examples_evaluated": summary.get("examples_evaluated", 0) if tested else 0,
            "metrics": summary.get("metrics", {}) if tested else {},
            "parameters": summary.get("parameters", {}),
            "weights": {
                "source": config.init.source,
                "file": Path(known.get("weights", "random")).name,
                "sha256": known.get("weights_sha256", ""),
                "licence": licence_of(config, licence, known.get("weights_sha256", "")),
            },
            "versions": {"trained": summary.get("versions", {}), "exported": exported},
            "changed": changed(config),
        }
    )


def licence_of(config: recipe.Config, licence: str, sha256: str = "") -> str:
    """Return the licence in words; a bundle that the run started from says its own.

    Args:
        config: of the run.
        licence: of the weights that training started from, "" if nobody said.
        sha256: of their file, "" if it is not known.
    """
    if config.init.source == "random":
        return "training began with random weights: the author's choice"
    if not licence and config.init.source == "tl_jax":
        if not config.init.path or config.init.path in BANK:
            return "Apache-2.0 (ships with tl_jax)"
        given = Path(config.init.path).expanduser()
        try:
            about = formats.read_bundle(given if given.is_dir() else given.parent).get("weights") or {}
            licence = str(about.get("licence") or "")
        except UserError:
            licence = ""
    if not licence and config.init.path and sha256 and config.init.source != "huggingface":
        return f"own file, SHA-256 {sha256[:16]}..., licence unknown"
    return licence or NOT_STATED


def changed(config: recipe.Config) -> dict[str, dict[str, Any]]:
    """Return the fields that differ from the defaults, which recipes start from, and both values.

    Of folders on this machine only the last part is told.
    """
    found = {}
    for path, field in recipe.FIELDS.items():
        value = config
        for part in path.split("."):
            value = value[part]
        value = value.to_dict() if hasattr(value, "to_dict") else value
        if _plain(value) != _plain(field.default):
            found[path] = {"here": _told(_plain(value)), "base": _plain(field.default)}
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _told(value: Any) -> Any:
    if isinstance(value, list):
        return [_told(each) for each in value]
    local = isinstance(value, str) and value.startswith(("/", "~", "./", "../"))
    return f".../{Path(value).name}" if local else value


FITTED = {
    "crop": "",
    "pad": "make pictures square with black borders, ",
    "stretch": "make pictures square by stretching them, ",
}


def of_pictures(spec: PretrainedSpec, fit: str, value_range: Sequence[float] = ()) -> dict[str, Any]:
    """Return how pictures become inputs, in numbers and words.

    Args:
        spec: of the network.
        fit: ``config.data.fit``.
        value_range: the values that became 0 and 255 in training, if images had more than 8 bits.
    """
    rule = SCALINGS[spec.scaling]
    values = {"size": spec.image_size, "fit": fit, "crop": spec.crop, "interpolation": spec.interpolation}
    values |= rule._asdict()
    deep = ""
    if value_range:
        low, high = values["value_range"] = list(value_range)
        deep = f"images with more than 8 bits: round(255 * clip((value - {low:g}) / {high - low:g}, 0, 1)); "
    side = round(spec.image_size / spec.crop)
    resize = f"{deep}{FITTED[fit]}resize the shortest side to {side} pixels ({spec.interpolation}, antialiased)"
    cut = f"cut the central {spec.image_size}x{spec.image_size}"
    scale = f"(pixel * {rule.scale:.6g} - {list(rule.mean)}) / {list(rule.std)} with channels as {rule.order.upper()}"
    inside = "pictures of that size are left as they are; model.stablehlo does the last step alone"
    return {"words": f"{resize}, {cut}, {scale}; {inside}", **values}


def of_texts(length: int) -> dict[str, Any]:
    """Return how texts become inputs."""
    return {"words": f"tokenizer.json, at most {length} tokens with [CLS] and [SEP]", "length": length}


def of_policy(spaces: Mapping[str, Any]) -> dict[str, Any]:
    """Return how observations become inputs, and outputs actions."""
    words = "observations as the world gives them; bringing them to mean 0 and variance 1, where asked for, is inside; "
    if "actions" in spaces:
        return {"words": words + "the likeliest action is the highest logit", "spaces": dict(spaces)}
    bounded = "the likeliest action is low + (clip(mean, -1, 1) + 1) / 2 * (high - low)"
    return {"words": words + bounded, "spaces": dict(spaces)}


FILE = "README.md"
TO_FILL = "_To be filled in by the author: what this is for, what it is not for, and who has checked that._"
_INTENDED = re.compile(r"(?<=\n## Intended use\n\n).*?(?=\n\n## )", re.DOTALL)
_SHOWN = 20  # classes by name


def write(folder: Path, bundle: Mapping[str, Any], loaders: Mapping[str, Loader], notes: Sequence[str]) -> None:
    """Write the card; what the author wrote of the intended use into an earlier one is kept.

    Args:
        folder: of the bundle.
        bundle: what ``bundle.json`` says.
        loaders: heading -> how to load it.
        notes: further words on loading.
    """
    path = folder / FILE
    written = _INTENDED.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    disk.write_text(path, draw(bundle, loaders, notes, written[0] if written else TO_FILL))


def draw(bundle: Mapping[str, Any], loaders: Mapping[str, Loader], notes: Sequence[str], intended: str) -> str:
    """Return the card as Markdown."""
    listed = [(f"`{name}`", f["what"], f"{f['bytes']:,}", f"`{f['sha256']}`") for name, f in bundle["files"].items()]
    parts = [
        f"# {bundle['name']}",
        facts_table(_rows(bundle)),
        "## Intended use",
        intended,
        "## Test metrics",
        _metrics(bundle),
        "## How to load it",
        "The code runs in this folder." + "".join(f" {note}" for note in notes),
    ]
    for heading, loader in loaders.items():
        parts += [f"### {heading}", f"```python\n{loader.code}\n```", *([loader.words] if loader.words else [])]
    parts += ["## What the configuration changed", _changes(bundle["changed"])]
    parts += ["## Files", markdown_table(("file", "what it is", "bytes", "SHA-256"), listed)]
    return "\n\n".join(parts) + "\n"


def _rows(bundle: Mapping[str, Any]) -> dict[str, str]:
    weights, counted, classes = bundle["weights"], bundle["parameters"], bundle["classes"]
    sha = f", SHA-256 `{weights['sha256'][:16]}...`" if weights["sha256"] else ""
    start = "random weights" if weights["source"] == "random" else f"{weights['source']}: `{weights['file']}`{sha}"
    rows = {"network": f"`{bundle['model']}`"}
    if counted:
        rows["network"] += f", {sum(counted.values()):,} parameters, {counted['trainable']:,} of them trained"
    rows |= {"classes": f"{len(classes)}: {listed(classes, _SHOWN)}"} if classes else {}
    rows |= {"trained on": bundle["data"] + _examples(bundle["examples"]), "started from": start}
    rows["licence of the weights it started from"] = weights["licence"]
    rows["run"] = f"task `{bundle['task']}`, seed {bundle['seed']}, step {bundle['step']:,}"
    rows["inputs"] = bundle["preprocessing"]["words"]
    made = bundle["versions"]
    rows["versions"] = "; ".join(
        f"{when} with {', '.join(f'{name} {version}' for name, version in made[when].items())}"
        for when in ("trained", "exported")
        if made[when]
    )
    return rows


def _examples(sizes: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{part} {size:,}' for part, size in sizes.items())})" if sizes else ""


def _metrics(bundle: Mapping[str, Any]) -> str:
    if not bundle["metrics"]:
        return "These weights were not tested."
    shown = {name: "not measured" if value is None else f"{value:.4f}" for name, value in bundle["metrics"].items()}
    smoke = "A smoke run: these figures measure nothing. " if "smoke" in bundle["changed"] else ""
    what = f"On {bundle['examples_evaluated']:,} examples ({bundle['tested_on']}), one run with seed {bundle['seed']}."
    return f"{facts_table(shown)}\n\n{smoke}{what}"


def _changes(changed: Mapping[str, Mapping[str, Any]]) -> str:
    if not changed:
        return "Nothing: the fields are those of `tl_jax/config/recipe.py`."
    rows = [
        (f"`{field}`", *(f"`{json.dumps(each[side])}`" for side in ("here", "base"))) for field, each in changed.items()
    ]
    return markdown_table(("field", "here", "`tl_jax/config/recipe.py`"), rows)
