"""Sample batches as a function of seed and step, so that a resumed run sees the same examples."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from tl_jax.data.dataset import Images, Split, is_encoded

PREFETCH_BATCHES = 4  # batches decoded ahead


# (seed, 1) and (seed, 2) are used in data.dataset.
@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, n: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, 3, epoch)).permutation(n)


def train_indices(seed: int, n: int, batch_size: int, step: int, views: int = 1) -> np.ndarray:
    """Return the indices (batch_size,) of training batch ``step``, in [0, views * n).

    Batches are cut from a stream of reshuffled epochs and may span two of them: each example is used once per epoch, no
    batch is short, and a data set may be smaller than a batch. Each epoch uses the next of ``views`` blocks of n
    examples.
    """
    start, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(start // n, (stop - 1) // n + 1)
    return np.concatenate(
        [e % views * n + _epoch_order(seed, n, e)[max(0, start - e * n) : stop - e * n] for e in epochs]
    )


class Stream(NamedTuple):
    """Training batches as a pure function of the step.

    Attributes:
        inputs: (V * N, ...): images uint8, or feature maps; V views of each example, view by view.
        labels: int32 (N,).
        seed: random seed of the order.
        batch_size: B.
    """

    inputs: Images
    labels: np.ndarray
    seed: int
    batch_size: int

    def rows(self, step: int) -> np.ndarray:
        """Return the rows (B,) of ``inputs`` in batch ``step``; each epoch uses the next view."""
        n = len(self.labels)
        return train_indices(self.seed, n, self.batch_size, step, len(self.inputs) // n)

    def __call__(self, step: int, share: slice = slice(None)) -> Mapping[str, np.ndarray]:
        """Return ``inputs`` (B, ...), ``label`` int32 (B,) and ``mask`` float32 (B,) of batch ``step``, or a slice."""
        rows = self.rows(step)[share]
        labels = self.labels[rows % len(self.labels)]
        return {"inputs": self.inputs[rows], "label": labels, "mask": np.ones(len(rows), np.float32)}

    def batches(self, first: int, stop: int, share: slice = slice(None)) -> Iterator[Mapping[str, np.ndarray]]:
        """Yield the batches ``first`` to ``stop``, or the slice of this process of each."""
        return _iterate_batches(functools.partial(self.__call__, share=share), first, stop, is_encoded(self.inputs))


def eval_batches(split: Split, batch_size: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield every example once, in order; the last batch is padded with rows of ``mask`` 0."""

    def batch(i: int) -> Mapping[str, np.ndarray]:
        rows = np.arange(i * batch_size, (i + 1) * batch_size)
        mask = rows < len(split.labels)
        rows = np.minimum(rows, len(split.labels) - 1)
        return {"inputs": split.inputs[rows], "label": split.labels[rows], "mask": mask.astype(np.float32)}

    return _iterate_batches(batch, 0, -(-len(split.labels) // batch_size), is_encoded(split.inputs))


def _iterate_batches(
    make_batch: Callable[[int], Mapping[str, np.ndarray]], first: int, stop: int, prefetch: bool
) -> Iterator:
    """Yield ``make_batch`` of each step; ahead of time, in threads, if ``prefetch``."""
    if not prefetch:
        return map(make_batch, range(first, stop))
    import grain  # takes 1 s, only for data decoded on read

    # Two threads suffice, as each batch is decoded by several.
    read_options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=PREFETCH_BATCHES)
    return iter(grain.MapDataset.range(first, stop).map(make_batch).to_iter_dataset(read_options))
