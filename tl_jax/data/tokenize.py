"""Tokenization with the ``tokenizers`` library, masking for masked LM (BERT, arXiv:1810.04805), and batches of texts.

Batches are padded to the length that their own texts need.
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
    with require_extra("text"):
        import tokenizers
    try:
        if file.suffix == ".json":
            made = tokenizers.Tokenizer.from_file(str(file))
        else:
            made = tokenizers.BertWordPieceTokenizer(str(file), **options)._tokenizer
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
    with require_extra("text"):
        import tokenizers
    made = tokenizers.BertWordPieceTokenizer(lowercase=not capitals)
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


def padding(tokenizer: tokenizers.Tokenizer) -> int:
    """Return the id that fills up."""
    found = tokenizer.token_to_id("[PAD]")
    assert found is not None  # ``read`` refuses a tokenizer without
    return found


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


HIDDEN, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stays as it is


class Masking(NamedTuple):
    """What is hidden, and how.

    Attributes:
        share: of a text's tokens.
        mask: id of the token that hides.
        vocabulary: ids below which a random one is drawn.
        special: ids that are never chosen.
    """

    share: float
    mask: int
    vocabulary: int
    special: tuple[int, ...]


class Hidden(NamedTuple):
    """Texts with hidden words.

    Attributes:
        ids: (N, L) int, changed where something is hidden.
        positions: (N, P) int, where something is.
        weights: (N, P) float, 1, or 0 where a text has fewer hidden words.
    """

    ids: jax.Array
    positions: jax.Array
    weights: jax.Array


def of(tokenizer: tokenizers.Tokenizer, share: float) -> Masking:
    """Return how the texts of a tokenizer are masked; a UserError where it has no [MASK]."""
    mask = tokenizer.token_to_id("[MASK]")
    if mask is None:
        raise UserError("the vocabulary has no [MASK], so that no words can be hidden; take another one")
    special = tuple(sorted(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special))
    return Masking(share, mask, tokenizer.get_vocab_size(), special)


def hide(ids: jax.Array | np.ndarray, there: jax.Array | np.ndarray, key: jax.Array, how: Masking) -> Hidden:
    """Choose tokens of each text; of these 80 % become [MASK], 10 % a random token, and 10 % stay.

    Of a text with any words one at least is chosen.

    Args:
        ids: (N, L) int.
        there: (N, L), 0 where a token is padding.
        key: of the draw.
        how: what is hidden.
    """
    ids, (draws, kinds, words) = jnp.asarray(ids), jax.random.split(key, 3)
    eligible = (there > 0) & ~jnp.isin(ids, jnp.asarray(how.special))
    most = max(1, round(how.share * ids.shape[1]))  # P: known beforehand, so that only these go through the head
    _, chosen = jax.lax.top_k(jnp.where(eligible, jax.random.uniform(draws, ids.shape), -1.0), most)
    count = eligible.sum(1, keepdims=True)
    wanted = jnp.minimum(jnp.maximum(1, jnp.round(how.share * count)), count)
    weights = (jnp.arange(most)[None] < wanted).astype(jnp.float32)
    kind = jax.random.uniform(kinds, chosen.shape)
    random = jax.random.randint(words, chosen.shape, 0, how.vocabulary)
    old = jnp.take_along_axis(ids, chosen, 1)
    new = jnp.where(kind < HIDDEN, how.mask, jnp.where(kind < HIDDEN + RANDOM, random, old))
    rows = jnp.arange(len(ids))[:, None]
    return Hidden(ids.at[rows, chosen].set(jnp.where(weights > 0, new, old)), chosen, weights)


LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # that batches may have: each is a program to compile
WINDOW = 50  # batches whose texts are sorted by length together
IGNORED = -1  # label of a token that counts for nothing: a special one, the rest of a word, padding


class Texts(NamedTuple):
    """N texts as ids.

    Attributes:
        ids: object array (N,) of int32 arrays, the tokens of each text.
        types: the same shapes, which of two texts a token belongs to.
        labels: int32 (N,), or an object array (N,) of int32 arrays with a label for each token.
        pad: id that fills up.
        tags: of tagged sentences, an object array (N,) of int32 arrays with the label of every word.
        read: the same shapes, 1 if the network reads a word: it has a token, which is not cut off.
    """

    ids: np.ndarray
    types: np.ndarray
    labels: np.ndarray
    pad: int
    tags: np.ndarray | None = None
    read: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each text, (N,)."""
        return np.asarray([len(ids) for ids in self.ids])

    def order(self) -> np.ndarray:
        """Return the rows (N,) by the number of their tokens, as ``eval_batches`` takes them."""
        return np.argsort(self.lengths, kind="stable")

    def batch(self, rows: np.ndarray, mask: np.ndarray, length: int = 0) -> dict[str, np.ndarray]:
        """Return the texts ``rows`` (B,), filled up on the right to the least of ``LENGTHS`` that holds them all.

        Args:
            rows: (B,).
            mask: (B,) 0 where a row only fills up the batch.
            length: L; 0 for the least that does.

        Returns:
            ``input_ids``, ``attention_mask``, ``token_type_ids`` int32 (B, L), ``label`` (B,) or (B, L), ``mask``.
        """
        ids, labels = self.ids[rows], self.labels[rows]
        length = length or fitting(max(map(len, ids)))
        return {
            "input_ids": filled(ids, length, self.pad),
            "attention_mask": filled([np.ones_like(each) for each in ids], length, 0),
            "token_type_ids": filled(self.types[rows], length, 0),
            "label": filled(labels, length, IGNORED) if labels.dtype == object else labels,
            "mask": mask.astype(np.float32),
        }

    def words(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return ``tags`` and ``read`` (B, W) of the words of tagged sentences, of the texts ``rows`` (B,).

        W is the same for all rows, so that evaluation compiles no program for it.
        """
        if self.tags is None or self.read is None:
            return {}
        width = max(map(len, self.tags))
        return {"tags": filled(self.tags[rows], width, IGNORED), "read": filled(self.read[rows], width, 0)}


def fitting(length: int) -> int:
    """Return the least of ``LENGTHS`` that holds so many tokens."""
    return next((size for size in LENGTHS if size >= length), int(length))


def texts(encodings: Sequence[tokenizers.Encoding], labels: np.ndarray, pad: int) -> Texts:
    """Return encodings with a label each, or with labels of words, which the first token of each word gets.

    A word that has no token, such as a zero-width space, or whose tokens are cut off, is not ``read``: nothing is
    learned of it, and nothing predicted.
    """
    ids, types = (_objects([np.asarray(getattr(e, name), np.int32) for e in encodings]) for name in ("ids", "type_ids"))
    if labels.dtype != object:
        return Texts(ids, types, labels, pad)
    spread = [_spread(e, tags) for e, tags in zip(encodings, labels, strict=True)]
    read = [_read(e, len(tags)) for e, tags in zip(encodings, labels, strict=True)]
    return Texts(ids, types, _objects(spread), pad, labels, _objects(read))


class TextStream:
    """Training batches of a seed, a pure function of the step.

    Texts come as one endless stream of reshuffled epochs, so each is used once before any is used again. Within an
    epoch ``WINDOW`` batches at a time are sorted by length, and the batches shuffled. A batch may straddle two epochs.
    """

    def __init__(self, data: Texts, seed: int, batch_size: int):
        self.data, self.seed, self.batch_size = data, seed, batch_size
        self._lengths, self._orders = data.lengths, {}

    def rows(self, step: int) -> np.ndarray:
        """Return the rows (B,) of batch ``step``."""
        n = len(self.data.ids)
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // n
        return np.concatenate([self._order(int(e))[positions[epochs == e] % n] for e in np.unique(epochs)])

    def __call__(self, step: int) -> Mapping[str, np.ndarray]:
        """Return batch ``step``, see ``Texts.batch``."""
        return self.data.batch(self.rows(step), np.ones(self.batch_size))

    def distinct(self, first: int, stop: int) -> list[int]:
        """Return steps from ``first`` to before ``stop``, one for each length that their batches have."""
        found: dict[int, int] = {}
        for step in range(first, stop):
            found.setdefault(fitting(self._lengths[self.rows(step)].max()), step)
        return list(found.values()) or [first]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = self._shuffled(epoch)
        return self._orders[epoch]

    def _shuffled(self, epoch: int) -> np.ndarray:
        n, size = len(self._lengths), self.batch_size
        rng = np.random.default_rng((self.seed, 3, epoch))
        order = rng.permutation(n)
        first = min(n, -epoch * n % size)  # the rest of a batch that the epoch before began
        whole = (n - first) // size * size
        middle = order[first : first + whole]
        batches = [
            window[np.argsort(self._lengths[window], kind="stable")].reshape(-1, size)
            for window in np.split(middle, range(size * WINDOW, whole, size * WINDOW))
            if len(window)
        ]
        if batches:
            middle = rng.permutation(np.concatenate(batches)).ravel()
        return np.concatenate([order[:first], middle, order[first + whole :]])


def eval_batches(data: Texts, batch_size: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield every text once, by length; the last batch is filled up with rows whose ``mask`` is 0."""
    order = data.order()
    for first in range(0, len(order), batch_size):
        rows = np.arange(first, first + batch_size)
        chosen = order[np.minimum(rows, len(order) - 1)]
        yield {**data.batch(chosen, rows < len(order)), **data.words(chosen)}


def _objects(arrays: Sequence[np.ndarray]) -> np.ndarray:
    found = np.empty(len(arrays), object)
    found[:] = arrays
    return found


def _spread(encoding: tokenizers.Encoding, tags: np.ndarray) -> np.ndarray:
    found, before = np.full(len(encoding.ids), IGNORED, np.int32), None
    for i, word in enumerate(encoding.word_ids):
        if word is not None and word != before:
            found[i] = tags[word]
        before = word
    return found


def _read(encoding: tokenizers.Encoding, words: int) -> np.ndarray:
    found = np.zeros(words, np.int32)
    found[[word for word in encoding.word_ids if word is not None]] = 1
    return found
