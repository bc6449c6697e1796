"""Tokenize texts with ``tokenizers``, mask them for masked LM (BERT, arXiv:1810.04805), and form batches.

Batches are padded to the length of their longest text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.data.text import read_text
from tl_jax.utils import disk
from tl_jax.utils.errors import UserError
from tl_jax.utils.extras import require_extra
from tl_jax.utils.json_files import read_json

if TYPE_CHECKING:
    import tokenizers

FILES = ("tokenizer.json", "vocab.txt")
MIN_CAPITALS = 0.01  # share of capitalized words in a cased vocabulary; bert-base-cased has a third
PROBE = ("a", "\u0378 b")  # a pair of texts, one with a letter that is in no vocabulary
TOKEN_ARRAYS = ("input_ids", "attention_mask", "token_type_ids")  # inputs of networks
SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]")


def read_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer of a folder: its ``tokenizer.json``, or WordPiece with its ``vocab.txt``.

    It neither truncates nor pads, whatever the file sets. For ``vocab.txt``, ``tokenizer_config.json`` sets whether
    case and accents matter; otherwise, case matters if the vocabulary has capitalized words.

    Raises:
        UserError: the files are missing, cannot be read, or lack tokens that BERT needs.
    """
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has neither {' nor '.join(FILES)}; copy the tokenizer file of the weights there")
    options = wordpiece_options(folder) if file.suffix == ".txt" else {}
    with require_extra("text"):
        import tokenizers
    try:
        if file.suffix == ".json":
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        else:
            tokenizer = tokenizers.BertWordPieceTokenizer(str(file), **options)._tokenizer
    except Exception as e:  # the library raises plain exceptions
        raise UserError(f"cannot read {file} as a tokenizer ({e}); copy it again") from None
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        raise UserError(f"{file} has no {', '.join(missing)}; use the vocabulary of a BERT")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        max_ids(tokenizer)
    except Exception as e:
        raise UserError(f"{file} cannot tokenize texts ({e}); copy it again") from None
    return tokenizer


def max_ids(tokenizer: tokenizers.Tokenizer) -> tuple[int, int]:
    """Return the largest token id and the largest type id, in the vocabulary or around a pair."""
    pair = tokenizer.encode(*PROBE)
    return max((*tokenizer.get_vocab().values(), *pair.ids)), max((0, *pair.type_ids))


def wordpiece_options(folder: Path) -> dict[str, Any]:
    """Return the normalization options for ``vocab.txt``: from ``tokenizer_config.json``, else from the vocabulary."""
    file = folder / "tokenizer_config.json"
    config = read_json(file, "copy it again") if file.is_file() else {}
    lower = config.get("do_lower_case")
    return {
        "lowercase": not has_capitals(folder / "vocab.txt") if lower is None else bool(lower),
        "strip_accents": config.get("strip_accents"),
        "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
    }


def has_capitals(vocabulary: Path) -> bool:
    """Return whether a vocabulary is cased: at least a hundredth of its words have capitals."""
    words = [line for line in read_text(vocabulary).splitlines() if not line.startswith("[")]
    cased = sum(word != word.lower() for word in words)
    return cased > MIN_CAPITALS * len(words)


def train_vocabulary(lines: Iterable[str], size: int, folder: Path, capitals: bool = False) -> None:
    """Train a WordPiece vocabulary of ``size`` on texts; write ``vocab.txt`` and ``tokenizer_config.json``."""
    with require_extra("text"):
        import tokenizers
    tokenizer = tokenizers.BertWordPieceTokenizer(lowercase=not capitals)
    tokenizer.train_from_iterator(lines, vocab_size=size, min_frequency=2, show_progress=False)
    ids = tokenizer.get_vocab()
    disk.write_text(folder / "vocab.txt", "".join(f"{word}\n" for word in sorted(ids, key=ids.__getitem__)))
    disk.write_text(folder / "tokenizer_config.json", json.dumps({"do_lower_case": not capitals}))


def encode_texts(tokenizer: tokenizers.Tokenizer, texts: Sequence[Any], max_length: int) -> list[tokenizers.Encoding]:
    """Tokenize texts, each with [CLS] and [SEP], truncated to ``max_length`` tokens.

    Args:
        tokenizer: from ``read_tokenizer``.
        texts: N str; or pairs of str, of which the longer is truncated first; or lists of words.
        max_length: largest number of tokens.
    """
    pretokenized = bool(texts) and isinstance(texts[0], list)
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    try:
        return tokenizer.encode_batch(list(texts), is_pretokenized=pretokenized)
    except Exception as e:  # the library raises plain exceptions
        raise UserError(f"the tokenizer fails on these texts ({e}); copy its files again") from None
    finally:
        tokenizer.no_truncation()


def pad_id(tokenizer: tokenizers.Tokenizer) -> int:
    """Return the padding id."""
    pad = tokenizer.token_to_id("[PAD]")
    assert pad is not None  # checked by ``read_tokenizer``
    return pad


def pad_encodings(encodings: Sequence[tokenizers.Encoding], pad: int) -> dict[str, np.ndarray]:
    """Return int32 arrays (N, L), padded on the right to the length L of the longest text.

    Args:
        encodings: encodings of N texts.
        pad: padding id.

    Returns:
        ``input_ids``, ``attention_mask`` (1 for tokens, 0 for padding) and ``token_type_ids`` (1 in second texts).
    """
    length = max(len(e.ids) for e in encodings)
    return {
        "input_ids": pad_rows([e.ids for e in encodings], length, pad),
        "attention_mask": pad_rows([e.attention_mask for e in encodings], length, 0),
        "token_type_ids": pad_rows([e.type_ids for e in encodings], length, 0),
    }


def pad_rows(rows: Sequence[Sequence[int]] | np.ndarray, length: int, value: int) -> np.ndarray:
    """Return rows of numbers as int32 (N, L), padded on the right with ``value``."""
    padded = np.full((len(rows), length), value, np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


MASK_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen tokens; the others are unchanged


class Masking(NamedTuple):
    """Options of masking.

    Attributes:
        mask_prob: share of a text's tokens to choose.
        mask_id: id of [MASK].
        vocab_size: random ids are below it.
        special_ids: ids that are never chosen.
    """

    mask_prob: float
    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...]


class MaskedTexts(NamedTuple):
    """Masked texts.

    Attributes:
        ids: (N, L) int, changed at chosen positions.
        positions: (N, P) int, chosen positions.
        weights: (N, P) float, 1, or 0 for padding if a text has fewer chosen tokens.
    """

    ids: jax.Array
    positions: jax.Array
    weights: jax.Array


def make_masking(tokenizer: tokenizers.Tokenizer, mask_prob: float) -> Masking:
    """Return the masking options of a tokenizer; raise a UserError if it has no [MASK]."""
    mask_id = tokenizer.token_to_id("[MASK]")
    if mask_id is None:
        raise UserError("the vocabulary has no [MASK], which masked LM needs; use another one")
    special_ids = tuple(sorted(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special))
    return Masking(mask_prob, mask_id, tokenizer.get_vocab_size(), special_ids)


def mask_tokens(
    ids: jax.Array | np.ndarray, attention_mask: jax.Array | np.ndarray, key: jax.Array, masking: Masking
) -> MaskedTexts:
    """Choose tokens of each text; of these, 80 % become [MASK], 10 % a random token, and 10 % are unchanged.

    At least one token is chosen in a text with words.

    Args:
        ids: (N, L) int.
        attention_mask: (N, L), 0 for padding.
        key: random key.
        masking: options.
    """
    ids, (draws, kinds, words) = jnp.asarray(ids), jax.random.split(key, 3)
    eligible = (attention_mask > 0) & ~jnp.isin(ids, jnp.asarray(masking.special_ids))
    # P is static, so that only these tokens go through the head.
    max_masked = max(1, round(masking.mask_prob * ids.shape[1]))
    _, positions = jax.lax.top_k(jnp.where(eligible, jax.random.uniform(draws, ids.shape), -1.0), max_masked)
    count = eligible.sum(1, keepdims=True)
    num_masked = jnp.minimum(jnp.maximum(1, jnp.round(masking.mask_prob * count)), count)
    weights = (jnp.arange(max_masked)[None] < num_masked).astype(jnp.float32)
    kind = jax.random.uniform(kinds, positions.shape)
    random = jax.random.randint(words, positions.shape, 0, masking.vocab_size)
    old = jnp.take_along_axis(ids, positions, 1)
    new = jnp.where(kind < MASK_SHARE, masking.mask_id, jnp.where(kind < MASK_SHARE + RANDOM_SHARE, random, old))
    rows = jnp.arange(len(ids))[:, None]
    return MaskedTexts(ids.at[rows, positions].set(jnp.where(weights > 0, new, old)), positions, weights)


# Lengths of batches, each of which needs a compiled program.
BATCH_LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SORT_WINDOW = 50  # batches that are sorted by length together
IGNORED = -1  # label of an ignored token: a special one, a further piece of a word, or padding


class TokenizedTexts(NamedTuple):
    """N tokenized texts.

    Attributes:
        ids: object array (N,) of int32 arrays, the tokens of each text.
        types: type ids of the same shapes: 1 for tokens of second texts.
        labels: int32 (N,), or an object array (N,) of int32 arrays with one label per token.
        pad: padding id.
        tags: of tagged sentences, an object array (N,) of int32 arrays with the label of every word.
        read_mask: the same shapes, 1 if a word has a token that is not truncated.
    """

    ids: np.ndarray
    types: np.ndarray
    labels: np.ndarray
    pad: int
    tags: np.ndarray | None = None
    read_mask: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each text (N,)."""
        return np.asarray([len(ids) for ids in self.ids])

    def order(self) -> np.ndarray:
        """Return the rows (N,) sorted by length, the order of ``eval_batches``."""
        return np.argsort(self.lengths, kind="stable")

    def batch(self, rows: np.ndarray, mask: np.ndarray, length: int = 0) -> dict[str, np.ndarray]:
        """Return the texts ``rows`` (B,), padded on the right to the smallest sufficient length in ``BATCH_LENGTHS``.

        Args:
            rows: (B,).
            mask: (B,), 0 for padding rows.
            length: L; 0 for the smallest sufficient one.

        Returns:
            ``input_ids``, ``attention_mask``, ``token_type_ids`` int32 (B, L), ``label`` (B,) or (B, L), ``mask``.
        """
        ids, labels = self.ids[rows], self.labels[rows]
        length = length or padded_length(max(map(len, ids)))
        return {
            "input_ids": pad_rows(ids, length, self.pad),
            "attention_mask": pad_rows([np.ones_like(row_ids) for row_ids in ids], length, 0),
            "token_type_ids": pad_rows(self.types[rows], length, 0),
            "label": pad_rows(labels, length, IGNORED) if labels.dtype == object else labels,
            "mask": mask.astype(np.float32),
        }

    def words(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return ``tags`` and ``read`` (B, W) of the words in the tagged sentences ``rows`` (B,).

        W is the same for all rows, so that evaluation is compiled once.
        """
        if self.tags is None or self.read_mask is None:
            return {}
        width = max(map(len, self.tags))
        return {"tags": pad_rows(self.tags[rows], width, IGNORED), "read": pad_rows(self.read_mask[rows], width, 0)}


def padded_length(length: int) -> int:
    """Return the smallest length in ``BATCH_LENGTHS`` of at least ``length``."""
    return next((size for size in BATCH_LENGTHS if size >= length), int(length))


def tokenized_texts(encodings: Sequence[tokenizers.Encoding], labels: np.ndarray, pad: int) -> TokenizedTexts:
    """Return encodings with one label each, or with labels of words, which go to the first token of each word.

    A word without a token, such as a zero-width space, or whose tokens are truncated, is 0 in ``read_mask``: it is
    ignored in training and predictions.
    """
    ids, types = (
        _object_array([np.asarray(getattr(e, name), np.int32) for e in encodings]) for name in ("ids", "type_ids")
    )
    if labels.dtype != object:
        return TokenizedTexts(ids, types, labels, pad)
    token_labels = [_token_labels(e, tags) for e, tags in zip(encodings, labels, strict=True)]
    read_mask = [_word_mask(e, len(tags)) for e, tags in zip(encodings, labels, strict=True)]
    return TokenizedTexts(ids, types, _object_array(token_labels), pad, labels, _object_array(read_mask))


class TextStream:
    """Training batches as a pure function of the step.

    Batches are cut from a stream of reshuffled epochs and may span two of them: each text is used once per epoch.
    Within an epoch, ``SORT_WINDOW`` batches at a time are sorted by length, and the batches are shuffled.
    """

    def __init__(self, data: TokenizedTexts, seed: int, batch_size: int):
        self.data, self.seed, self.batch_size = data, seed, batch_size
        self._lengths, self._orders = data.lengths, {}

    def rows(self, step: int) -> np.ndarray:
        """Return the rows (B,) of batch ``step``."""
        n = len(self.data.ids)
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // n
        return np.concatenate([self._order(int(e))[positions[epochs == e] % n] for e in np.unique(epochs)])

    def __call__(self, step: int) -> Mapping[str, np.ndarray]:
        """Return batch ``step``, see ``TokenizedTexts.batch``."""
        return self.data.batch(self.rows(step), np.ones(self.batch_size))

    def steps_by_length(self, first: int, stop: int) -> list[int]:
        """Return steps in [first, stop), one for each length of their batches."""
        steps: dict[int, int] = {}
        for step in range(first, stop):
            steps.setdefault(padded_length(self._lengths[self.rows(step)].max()), step)
        return list(steps.values()) or [first]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = self._shuffled(epoch)
        return self._orders[epoch]

    def _shuffled(self, epoch: int) -> np.ndarray:
        n, size = len(self._lengths), self.batch_size
        rng = np.random.default_rng((self.seed, 3, epoch))
        order = rng.permutation(n)
        first = min(n, -epoch * n % size)  # completes the last batch of the previous epoch
        in_batches = (n - first) // size * size
        middle = order[first : first + in_batches]
        batches = [
            window[np.argsort(self._lengths[window], kind="stable")].reshape(-1, size)
            for window in np.split(middle, range(size * SORT_WINDOW, in_batches, size * SORT_WINDOW))
            if len(window)
        ]
        if batches:
            middle = rng.permutation(np.concatenate(batches)).ravel()
        return np.concatenate([order[:first], middle, order[first + in_batches :]])


def eval_batches(data: TokenizedTexts, batch_size: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield every text once, sorted by length; the last batch is padded with rows of ``mask`` 0."""
    order = data.order()
    for first in range(0, len(order), batch_size):
        rows = np.arange(first, first + batch_size)
        batch_rows = order[np.minimum(rows, len(order) - 1)]
        yield {**data.batch(batch_rows, rows < len(order)), **data.words(batch_rows)}


def _object_array(arrays: Sequence[np.ndarray]) -> np.ndarray:
    array = np.empty(len(arrays), object)
    array[:] = arrays
    return array


def _token_labels(encoding: tokenizers.Encoding, tags: np.ndarray) -> np.ndarray:
    labels, previous = np.full(len(encoding.ids), IGNORED, np.int32), None
    for i, word in enumerate(encoding.word_ids):
        if word is not None and word != previous:
            labels[i] = tags[word]
        previous = word
    return labels


def _word_mask(encoding: tokenizers.Encoding, words: int) -> np.ndarray:
    mask = np.zeros(words, np.int32)
    mask[[word for word in encoding.word_ids if word is not None]] = 1
    return mask
