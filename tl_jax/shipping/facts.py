"""What ``bundle.json`` says of a run, made from the run's own files."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from configs import base
from tl_jax import __version__
from tl_jax.data.preprocess import SCALINGS
from tl_jax.errors import UserError
from tl_jax.specs import PretrainedSpec
from tl_jax.train.run_files import read_facts, read_summary
from tl_jax.train.workdir import finite
from tl_jax.weights import bundles
from tl_jax.weights.catalog import BANK

NOT_STATED = "not stated in the files that the weights came in; see where they came from"


def of_run(config: base.Config, workdir: Path, step: int, licence: str) -> dict[str, Any]:
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


def licence_of(config: base.Config, licence: str, sha256: str = "") -> str:
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
            about = bundles.read(given if given.is_dir() else given.parent).get("weights") or {}
            licence = str(about.get("licence") or "")
        except UserError:
            licence = ""
    if not licence and config.init.path and sha256 and config.init.source != "huggingface":
        return f"own file, SHA-256 {sha256[:16]}..., licence unknown"
    return licence or NOT_STATED


def changed(config: base.Config) -> dict[str, dict[str, Any]]:
    """Return the fields that differ from those of ``configs/base.py``, which recipes start from, and both values.

    Of folders on this machine only the last part is told.
    """
    found = {}
    for path, field in base.FIELDS.items():
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
