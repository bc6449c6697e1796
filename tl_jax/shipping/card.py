"""The card of a bundle, ``README.md``: made from ``bundle.json`` alone, with one part that the author writes."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl_jax import disk
from tl_jax.errors import listed
from tl_jax.report.card import facts, table
from tl_jax.shipping.loaders import Loader

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
        facts(_rows(bundle)),
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
    parts += ["## Files", table(("file", "what it is", "bytes", "SHA-256"), listed)]
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
    return f"{facts(shown)}\n\n{smoke}{what}"


def _changes(changed: Mapping[str, Mapping[str, Any]]) -> str:
    if not changed:
        return "Nothing: the fields are those of `configs/base.py`."
    rows = [
        (f"`{field}`", *(f"`{json.dumps(each[side])}`" for side in ("here", "base"))) for field, each in changed.items()
    ]
    return table(("field", "here", "`configs/base.py`"), rows)
