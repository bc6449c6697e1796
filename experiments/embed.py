r"""Turn a finished run into weights that ship with the package, with a model card beside them.

python -m experiments.embed --workdir=RUN --name=resnet8_cifar10 --data="what the network saw" \
        --date=YYYY-MM-DD --commit=HASH
"""

import hashlib
import json
import shutil
from pathlib import Path

import jax
from absl import flags, logging

from configs import base, stored
from tl_jax import api, command
from tl_jax.tasks import image
from tl_jax.train import loop, metrics
from tl_jax.weights.catalog import EMBEDDED_DIR

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
NAME = flags.DEFINE_string("name", None, "Name of the file, without suffix.", required=True)
DATA = flags.DEFINE_string("data", None, "What the network was trained on, in words.", required=True)
DATE = flags.DEFINE_string("date", None, "Day of the run, YYYY-MM-DD.", required=True)
COMMIT = flags.DEFINE_string("commit", None, "Commit that the run was made at.", required=True)

CARD = """# {name}

| | |
|---|---|
| network | `{model}`, {parameters:,} parameters, {classes} classes |
| data | {data} |
| examples | {train:,} for training, {validation:,} for validation, {test:,} for testing |
| command | `python run.py --config=configs/{config}.py --config.data.dir=TFDS_FOLDER --workdir=RUN` |
| then | `python -m experiments.embed --workdir=RUN --name={name} ...` |
| run | {date}, commit {commit}, seed {seed}, {steps:,} steps, {devices} |
| test accuracy | {accuracy:.2%} on {examples:,} examples, one seed, of this file (values stored as float16) |
| before rounding to float16 | {before:.2%} |
| inputs | {size}x{size} RGB, scaling `{scaling}` of `tl_jax.specs.SCALINGS` |
| SHA-256 | `{sha}` |
| licence | Apache-2.0, as the code; no example of the data is contained |
"""


def main(_: list[str]) -> None:
    """Export, test the exported file, and write it and its card."""
    logging.set_verbosity(logging.WARNING)
    workdir = Path(WORKDIR.value)
    config = stored.get_config(str(workdir))
    exported = api.export(config, workdir, dtype="float16")
    target = EMBEDDED_DIR / f"{NAME.value}.safetensors"
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(exported, target)
    again = (("init.source", "tl_jax"), ("init.path", str(target)), ("init.head", "keep"))
    task = image.make(base.override(config, again))
    values, examples, _ = metrics.evaluate(task, loop.initial_state(task, 0).variables, "test")
    summary = json.loads((workdir / "summary.json").read_text())
    card = CARD.format(
        name=NAME.value,
        model=config.model.name,
        parameters=summary["parameters"]["trainable"],
        classes=len(task.classes),
        data=DATA.value,
        **summary["examples"],
        config=config.name,
        date=DATE.value,
        commit=COMMIT.value,
        seed=summary["seed"],
        steps=summary["steps"],
        devices=f"{jax.default_backend()}",
        accuracy=values["accuracy"],
        examples=examples,
        before=summary["metrics"]["accuracy"],
        size=task.facts["input"]["size"],
        scaling=task.facts["input"]["scaling"],
        sha=hashlib.sha256(target.read_bytes()).hexdigest(),
    )
    target.with_suffix(".md").write_text(card)
    print(card)


if __name__ == "__main__":
    command.run(main)
