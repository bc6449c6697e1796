"""Make the small BERT that ships with the package: a vocabulary and a network from the installed documentation.

python -m experiments.pretrain_words --workdir=DIR --output=tl_jax/pretrained/embedded/bert_docs

The corpus is what ``tl_jax.data.text_datasets`` calls "docs_corpus"; nothing of SciPy, which the target tasks are
made of, is in it. The weights are kept as float16. It took 28 minutes on one CPU core.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags, logging

from configs import masked_words
from experiments import record
from tl_jax import api
from tl_jax.config import recipe
from tl_jax.data import text_datasets, tokenize
from tl_jax.pretrained import huggingface
from tl_jax.utils import command, disk

VOCABULARY_SIZE = 4096  # entries of the vocabulary
MODEL_SIZES = {"width": 128, "depth": 4, "heads": 4, "hidden": 512, "positions": 128}
WORKDIR = flags.DEFINE_string("workdir", "runs/pretrain_words", "Folder of the run.")
OUTPUT = flags.DEFINE_string("output", "", "Folder for the network; empty writes it to the run's own folder only.")


def main(_: list[str]) -> None:
    """Make the vocabulary, train, export."""
    logging.set_verbosity(logging.WARNING)
    folder = Path(WORKDIR.value)
    vocabulary = folder / "vocabulary"
    if not (vocabulary / "vocab.txt").is_file():
        lines: Any = text_datasets.load_docstrings("docs_corpus").train.images
        tokenize.train_vocabulary(lines, VOCABULARY_SIZE, vocabulary)
    config = masked_words.get_config("small")
    config = recipe.override(config, (("model.options", {**MODEL_SIZES, "pooling": "mean"}),))
    config.init.path = str(vocabulary)
    summary = api.run(config, folder / "run")
    exported = api.export(config, folder / "run", "float16")
    disk.write_text(exported / "card.md", make_card(summary))
    if OUTPUT.value:
        for name in (*huggingface.SAVED_FILES, "card.md"):  # the package has its own card, and no program
            disk.write_bytes(Path(OUTPUT.value) / name, (exported / name).read_bytes())


def make_card(summary: dict) -> str:
    """Return what a user of the weights should know."""
    about = {name: summary[name] for name in ("metrics", "steps", "examples", "seconds", "versions", "devices")}
    return (
        "# bert_docs\n\nA BERT of 4 layers of 128 that guessed hidden words in docstrings of "
        f"{', '.join(text_datasets.CORPUS_PACKAGES)}, as installed (licences BSD, Apache 2.0, PSF and MIT-like); "
        "nothing of SciPy. "
        f"Made by `python -m experiments.pretrain_words` at commit {record.commit()}; weights stored as float16.\n\n"
        f"```json\n{json.dumps(about, indent=2)}\n```\n"
    )


if __name__ == "__main__":
    command.run(main)
