"""Make a WordPiece vocabulary from plain texts, for training a text network from scratch.

python -m experiments.build_vocabulary --input=TEXTS.txt --size=8000 --output=FOLDER
"""

from pathlib import Path
from typing import Any

from absl import flags

from tl_jax.data import text, tokenize
from tl_jax.utils import command
from tl_jax.utils.errors import UserError

MIN_ENTRIES = 100  # entries; letters and marks alone take as many

INPUT = flags.DEFINE_string("input", "", "Text file, or a folder with train.txt; one text per line.")
SIZE = flags.DEFINE_integer("size", 8000, "Vocabulary size.", lower_bound=MIN_ENTRIES)
OUTPUT = flags.DEFINE_string("output", "", "Output folder for vocab.txt and tokenizer_config.json.")
CAPITALS = flags.DEFINE_bool("capitals", False, "Make a cased vocabulary.")


def main(_: list[str]) -> None:
    """Read the texts, write the vocabulary."""
    if not INPUT.value or not OUTPUT.value:
        raise UserError("pass --input=TEXTS.txt and --output=FOLDER")
    source = text.read_text_dataset(Path(INPUT.value), "lines")
    folder = Path(OUTPUT.value).expanduser()
    lines: Any = source.train.inputs
    tokenize.train_vocabulary(lines, SIZE.value, folder, CAPITALS.value)
    count = len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    print(f"wrote {folder / 'vocab.txt'}: {count:,} entries from {len(lines):,} texts")


if __name__ == "__main__":
    command.run(main)
