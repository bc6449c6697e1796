"""Text into the ids of its tokens, by the ``tokenizers`` library, from the files that come with a network."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import BertWordPieceTokenizer

from tl_jax import disk
from tl_jax.data.text_files import read_text
from tl_jax.errors import UserError
from tl_jax.json_files import read_json

FILES = ("tokenizer.json", "vocab.txt")
CAPITALS = 0.01  # share of words with capitals in a vocabulary that tells them; bert-base-cased has a third
PROBE = ("a", "\u0378 b")  # a pair of texts, one with a letter that no vocabulary has
NEEDED = ("[PAD]", "[CLS]", "[SEP]")


def read(folder: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer of a folder: its ``tokenizer.json``, or WordPiece with its ``vocab.txt``.

    It neither cuts nor pads, whatever the file says. For ``vocab.txt``, ``tokenizer_config.json`` says whether capitals
    and accents matter; where it does not, capitals matter if the vocabulary has words with capitals.

    Raises:
        UserError: none of these files, one that cannot be read, or one without the tokens that BERT needs.
    """
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has neither {' nor '.join(FILES)}; copy the one that came with the weights there")
    options = word_options(folder) if file.suffix == ".txt" else {}
    try:
        if file.suffix == ".json":
            made = tokenizers.Tokenizer.from_file(str(file))
        else:
            made = BertWordPieceTokenizer(str(file), **options)._tokenizer
    except Exception as e:  # the library's own errors are plain exceptions
        raise UserError(f"cannot read {file} as a tokenizer ({e}); copy it anew") from None
    absent = [token for token in NEEDED if made.token_to_id(token) is None]
    if absent:
        raise UserError(f"{file} has no {', '.join(absent)}; is it the vocabulary of a BERT?")
    made.no_truncation()
    made.no_padding()
    try:
        reach(made)
    except Exception as e:
        raise UserError(f"{file} cannot make tokens of texts ({e}); copy it anew") from None
    return made


def reach(tokenizer: tokenizers.Tokenizer) -> tuple[int, int]:
    """Return the largest id of a token and the largest number of a text, in its vocabulary or around a pair."""
    pair = tokenizer.encode(*PROBE)
    return max((*tokenizer.get_vocab().values(), *pair.ids)), max((0, *pair.type_ids))


def word_options(folder: Path) -> dict[str, Any]:
    """Return how texts become words, for ``vocab.txt``: from ``tokenizer_config.json``, else from the vocabulary."""
    file = folder / "tokenizer_config.json"
    config = read_json(file, "copy it anew") if file.is_file() else {}
    lower = config.get("do_lower_case")
    return {
        "lowercase": not has_capitals(folder / "vocab.txt") if lower is None else bool(lower),
        "strip_accents": config.get("strip_accents"),
        "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
    }


def has_capitals(vocabulary: Path) -> bool:
    """Whether a vocabulary is one of a network that tells capitals: a hundredth of its words or more have some."""
    words = [line for line in read_text(vocabulary).splitlines() if not line.startswith("[")]
    cased = sum(word != word.lower() for word in words)
    return cased > CAPITALS * len(words)


def make_vocabulary(lines: Iterable[str], size: int, folder: Path, capitals: bool = False) -> None:
    """Write ``vocab.txt`` with ``size`` WordPiece entries, made of texts, and ``tokenizer_config.json``."""
    made = BertWordPieceTokenizer(lowercase=not capitals)
    made.train_from_iterator(lines, vocab_size=size, min_frequency=2, show_progress=False)
    numbers = made.get_vocab()
    disk.write_text(folder / "vocab.txt", "".join(f"{word}\n" for word in sorted(numbers, key=numbers.__getitem__)))
    disk.write_text(folder / "tokenizer_config.json", json.dumps({"do_lower_case": not capitals}))


def encode(tokenizer: tokenizers.Tokenizer, texts: Sequence[Any], max_length: int) -> list[tokenizers.Encoding]:
    """Return the tokens of texts, each with [CLS] and [SEP] and cut to ``max_length``.

    Args:
        tokenizer: from ``read``.
        texts: N str; or pairs of str, of which the longer is cut first; or lists of words.
        max_length: tokens at most.
    """
    words = bool(texts) and isinstance(texts[0], list)
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    try:
        return tokenizer.encode_batch(list(texts), is_pretokenized=words)
    except Exception as e:  # the library's own errors are plain exceptions
        raise UserError(f"the tokenizer cannot take these texts ({e}); copy its files anew") from None
    finally:
        tokenizer.no_truncation()


def padded(encodings: Sequence[tokenizers.Encoding], pad: int) -> dict[str, np.ndarray]:
    """Return int32 arrays (N, L), L that of the longest text, filled up on the right.

    Args:
        encodings: of N texts.
        pad: id of the filling.

    Returns:
        ``input_ids``, ``attention_mask`` (1 for tokens, 0 for filling) and ``token_type_ids`` (1 in second texts).
    """
    length = max(len(e.ids) for e in encodings)
    return {
        "input_ids": filled([e.ids for e in encodings], length, pad),
        "attention_mask": filled([e.attention_mask for e in encodings], length, 0),
        "token_type_ids": filled([e.type_ids for e in encodings], length, 0),
    }


def filled(rows: Sequence[Sequence[int]] | np.ndarray, length: int, fill: int) -> np.ndarray:
    """Return rows of numbers as int32 (N, L), filled up on the right."""
    found = np.full((len(rows), length), fill, np.int32)
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return found
