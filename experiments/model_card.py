"""Weights that ship with the package: a finished run exported, tested as a file, and described by a card beside it."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import jax

from configs import base, stored
from tl_jax import api
from tl_jax.tasks import image
from tl_jax.train import metrics
from tl_jax.train.state import initial_state
from tl_jax.weights.catalog import EMBEDDED_DIR

CARD = """# {name}

| | |
|---|---|
| network | `{model}`, {parameters:,} parameters, {classes} classes |
| data | {data} |
| examples | {train:,} for training, {validation:,} for validation, {test:,} for testing |
| command | `{command}` |
| run | {date}, commit {commit}, seed {seed}, {steps:,} steps, {devices} |
| test accuracy | {accuracy:.2%} on {examples:,} examples, one seed, of this file (values stored as float16) |
| before rounding to float16 | {before:.2%} |
| inputs | {size}x{size} RGB, scaling `{scaling}` of `tl_jax.specs.SCALINGS` |
| SHA-256 | `{sha}` |
| licence | Apache-2.0, as the code; no example of the data is contained |
"""


class Card(NamedTuple):
    """What a model card says that no file knows: name of the weights, what they saw, day and commit of the run."""

    name: str
    data: str
    date: str
    commit: str


def embed(workdir: Path, about: Card, how: str) -> None:
    """Export a finished run, test the exported file, and write it and its card; ``how`` is the command."""
    config = stored.get_config(str(workdir))
    exported = api.export(config, workdir, dtype="float16")
    target = EMBEDDED_DIR / f"{about.name}.safetensors"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(exported, target)
    again = (("init.source", "tl_jax"), ("init.path", str(target)), ("init.head", "keep"))
    task = image.make(base.override(config, again))
    values, examples, _, _ = metrics.evaluate(task, initial_state(task, 0).variables, "test")
    summary = json.loads((workdir / "summary.json").read_text())
    card = CARD.format(
        **about._asdict(),
        model=config.model.name,
        parameters=summary["parameters"]["trainable"],
        classes=len(task.classes),
        **summary["examples"],
        command=how,
        seed=summary["seed"],
        steps=summary["steps"],
        devices=jax.default_backend(),
        accuracy=values["accuracy"],
        examples=examples,
        before=summary["metrics"]["accuracy"],
        size=task.facts["input"]["size"],
        scaling=task.facts["input"]["scaling"],
        sha=hashlib.sha256(target.read_bytes()).hexdigest(),
    )
    target.with_suffix(".md").write_text(card)
    print(card)
