"""Batches of tokenised texts, each as long as its own texts need: short sentences do not pay for long ones."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from tl_jax.data.tokens import filled

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
