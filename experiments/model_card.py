"""Weights that ship with the package: a finished run exported, tested as a file, and described by a card beside it."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import jax

from tl_jax import api
from tl_jax.config import recipe, stored
from tl_jax.pretrained.catalog import EMBEDDED_DIR
from tl_jax.report.html import facts_table
from tl_jax.tasks import image_classification
from tl_jax.train import evaluate
from tl_jax.train.state import initial_state
from tl_jax.utils import disk


class Card(NamedTuple):
    """What a model card says that no file knows: name of the weights, what they saw, day and commit of the run."""

    name: str
    data: str
    date: str
    commit: str


def embed_weights(workdir: Path, card: Card, command: str) -> None:
    """Export a finished run, test the exported file, and write it and its card; ``command`` is how it was made."""
    config = stored.get_config(str(workdir))
    exported = api.export(config, workdir, dtype="float16")
    target = EMBEDDED_DIR / f"{card.name}.safetensors"
    disk.write_bytes(target, exported.read_bytes())
    changes = (("init.source", "tl_jax"), ("init.path", str(target)), ("init.head", "keep"))
    task = image_classification.make_task(recipe.override(config, changes))
    values, examples, _, _ = evaluate.evaluate(task, initial_state(task, 0).variables, "test")
    summary = json.loads((workdir / "summary.json").read_text())
    sizes, inputs = summary["examples"], task.facts["input"]
    rows = {
        "network": f"`{config.model.name}`, {summary['parameters']['trainable']:,} parameters, "
        f"{len(task.classes)} classes",
        "data": card.data,
        "examples": f"{sizes['train']:,} for training, {sizes['validation']:,} for validation, "
        f"{sizes['test']:,} for testing",
        "command": f"`{command}`",
        "run": f"{card.date}, commit {card.commit}, seed {summary['seed']}, {summary['steps']:,} steps, "
        f"{jax.default_backend()}",
        "test accuracy": f"{values['accuracy']:.2%} on {examples:,} examples, one seed, of this file "
        "(values stored as float16)",
        "before rounding to float16": f"{summary['metrics']['accuracy']:.2%}",
        "inputs": f"{inputs['size']}x{inputs['size']} RGB, scaling `{inputs['scaling']}` of "
        "`tl_jax.data.preprocess.SCALINGS`",
        "SHA-256": f"`{hashlib.sha256(target.read_bytes()).hexdigest()}`",
        "licence": "Apache-2.0, as the code; no example of the data is contained",
    }
    text = f"# {card.name}\n\n{facts_table(rows)}\n"
    disk.write_text(target.with_suffix(".md"), text)
    print(text)
