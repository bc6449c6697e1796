r"""Train the weights that ship with the package, with their model cards: the bank of small networks, and a BERT.

    python -m experiments.pretrain_sources --data_dir=FOLDER --workdir=DIR [--sources=mnist,shapes]
    python -m experiments.pretrain_sources --what=words --output=tl_jax/pretrained/embedded/bert_docs
    python -m experiments.pretrain_sources --what=embed --workdir=RUN --name=resnet8_cifar10 \
        --data="description of the training data" --date=YYYY-MM-DD --commit=HASH

``images`` trains the bank; ``embed`` uses a finished run on images. Both test the exported file and write its model
card. FOLDER holds ``tfds`` (mnist), ``flowers``, ``faces_orl`` and ``ct_covid``. Finished runs are not repeated; the
files go to tl_jax/pretrained/embedded, as float16.

``words`` trains a vocabulary and a small BERT on the installed documentation. The corpus is "docs_corpus" of
``tl_jax.data.text_datasets``; it contains nothing of SciPy, from which the target tasks are made. The weights are
stored as float16. Training took 28 minutes on one CPU core.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags, logging

from configs import masked_words, source_small
from experiments import record
from tl_jax import training
from tl_jax.config import recipe, schema, stored
from tl_jax.data import text_datasets, tokenize
from tl_jax.export.bundle import export
from tl_jax.pretrained import huggingface
from tl_jax.pretrained.catalog import EMBEDDED_DIR
from tl_jax.report.html import facts_table
from tl_jax.tasks.image_classification import ImageClassification
from tl_jax.train import evaluate
from tl_jax.train.state import initial_state
from tl_jax.utils import command, disk
from tl_jax.utils.errors import UserError, nearest

WHAT = flags.DEFINE_enum("what", "images", ["images", "words", "embed"], "What to make.")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the runs; embed: a finished run.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "images: folder of the data.")
SOURCES = flags.DEFINE_list("sources", list(source_small.SOURCES), "images: sources to train.")
OUTPUT = flags.DEFINE_string("output", "", "words: folder for the network; empty for the run's folder only.")
NAME = flags.DEFINE_string("name", "", "embed: name of the file, without suffix.")
DATA = flags.DEFINE_string("data", "", "embed: description of the training data.")
DATE = flags.DEFINE_string("date", "", "embed: date of the run, YYYY-MM-DD.")
COMMIT = flags.DEFINE_string("commit", "", "embed: commit of the run.")
REQUIRED = {"images": (WORKDIR, DATA_DIR), "words": (), "embed": (WORKDIR, NAME, DATA, DATE, COMMIT)}

# folder under --data_dir, and what the network saw
IMAGE_DATA = {
    "mnist": ("tfds", "the first 20,000 training pictures of MNIST"),
    "shapes": ("", "ten drawn shapes (tl_jax/data/synthetic.py)"),
    "flowers": ("flowers", "photos of five kinds of flowers, enlarged from about 32x32"),
    "faces": ("faces_orl", "the ORL (AT&T) faces of 40 people; credit to Olivetti Research Laboratory"),
    "ct": ("ct_covid", "CT slices with and without covid, figures of papers; not fit for any clinical conclusion"),
}
VOCABULARY_SIZE = 4096  # entries of the vocabulary
MODEL_SIZES = {"width": 128, "depth": 4, "heads": 4, "hidden": 512, "positions": 128}


class Card(NamedTuple):
    """What a model card says that no file knows: name of the weights, what they saw, day and commit of the run."""

    name: str
    data: str
    date: str
    commit: str


def main(_: list[str]) -> None:
    """Make what is asked for."""
    logging.set_verbosity(logging.WARNING)
    if missing := [flag.name for flag in REQUIRED[WHAT.value] if not flag.value]:
        raise UserError(f"--what={WHAT.value} needs --{missing[0]}")
    {"images": train_bank, "words": train_words, "embed": embed_run}[WHAT.value]()


def train_bank() -> None:
    """Train and write what is still to be written."""
    for name in SOURCES.value:
        if name not in IMAGE_DATA:
            raise UserError(f"no source {name!r}; {nearest(name, IMAGE_DATA)}")
        folder, about = IMAGE_DATA[name]
        config, workdir = source_small.get_config(name), Path(WORKDIR.value) / name
        config.data.dir = str(Path(DATA_DIR.value) / folder) if folder else ""
        training.train(config, workdir)
        card = Card(f"resnet8_{name}", about, time.strftime("%Y-%m-%d"), record.commit())
        embed_weights(workdir, card, f"python -m experiments.pretrain_sources --sources={name} ...")


def embed_run() -> None:
    """Turn one finished run into weights that ship with the package."""
    config = stored.get_config(WORKDIR.value).name
    command_line = f"python run.py --config=configs/{config}.py --workdir=RUN ..., "
    command_line += "then python -m experiments.pretrain_sources --what=embed"
    embed_weights(Path(WORKDIR.value), Card(NAME.value, DATA.value, DATE.value, COMMIT.value), command_line)


def embed_weights(workdir: Path, card: Card, command_line: str) -> None:
    """Export a finished run, test the exported file, and write it and its card; ``command_line`` is how it was made."""
    config = stored.get_config(str(workdir))
    exported = export(config, workdir, dtype="float16")
    target = EMBEDDED_DIR / f"{card.name}.safetensors"
    disk.write_bytes(target, exported.read_bytes())
    changes = (("init.source", "tl_jax"), ("init.path", str(target)), ("init.head", "keep"))
    task = ImageClassification(schema.freeze(recipe.override(config, changes)))
    values, examples, _, _ = evaluate.evaluate(task, initial_state(task, 0).variables, "test")
    summary = json.loads((workdir / "summary.json").read_text())
    sizes, inputs = summary["examples"], task.facts["input"]
    rows = {
        "network": f"`{config.model.name}`, {summary['parameters']['trainable']:,} parameters, "
        f"{len(task.classes)} classes",
        "data": card.data,
        "examples": f"{sizes['train']:,} for training, {sizes['validation']:,} for validation, "
        f"{sizes['test']:,} for testing",
        "command": f"`{command_line}`",
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


def train_words() -> None:
    """Make the vocabulary, train, export."""
    folder = Path(WORKDIR.value or "runs/pretrain_words")
    vocabulary = folder / "vocabulary"
    if not (vocabulary / "vocab.txt").is_file():
        lines: Any = text_datasets.load_docstrings("docs_corpus").train.inputs
        tokenize.train_vocabulary(lines, VOCABULARY_SIZE, vocabulary)
    config = masked_words.get_config("small")
    config = recipe.override(config, (("model.options", {**MODEL_SIZES, "pooling": "mean"}),))
    config.init.path = str(vocabulary)
    summary = training.train(config, folder / "run")
    exported = export(config, folder / "run", "float16")
    disk.write_text(exported / "card.md", words_card(summary))
    if OUTPUT.value:
        for name in (*huggingface.SAVED_FILES, "card.md"):  # the package has its own card, and no program
            disk.write_bytes(Path(OUTPUT.value) / name, (exported / name).read_bytes())


def words_card(summary: dict) -> str:
    """Return what a user of the weights should know."""
    about = {name: summary[name] for name in ("metrics", "steps", "examples", "seconds", "versions", "devices")}
    return (
        "# bert_docs\n\nA BERT of 4 layers of 128 that guessed hidden words in docstrings of "
        f"{', '.join(text_datasets.CORPUS_PACKAGES)}, as installed (licences BSD, Apache 2.0, PSF and MIT-like); "
        "nothing of SciPy. "
        f"Made by `python -m experiments.pretrain_sources --what=words` at commit {record.commit()}; "
        "weights stored as float16.\n\n"
        f"```json\n{json.dumps(about, indent=2)}\n```\n"
    )


if __name__ == "__main__":
    command.run(main)
