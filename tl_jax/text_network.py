"""A text network with its weights and its tokenizer."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from tl_jax import tree
from tl_jax.data import tokens
from tl_jax.models.bert import Bert


class TextNetwork(NamedTuple):
    """A text model with its weights and its tokenizer.

    Attributes:
        model: linen module; ``model.apply(variables, **tokens, train=False)`` gives ``(output, endpoints)``.
        variables: ``{"params": ...}``, float32.
        tokenizer: of the folder; it neither cuts nor pads by itself.
        kind: "bert" or "distilbert".
        classes: names of the K classes, where there is a head.
        drawn: paths of the leaves that were drawn at random instead of loaded.
        path: the weights file, None for random weights.
        sha256: of that file.
        notes: what the user should know of it.
    """

    model: Bert
    variables: Mapping[str, Any]
    tokenizer: tokenizers.Tokenizer
    kind: str
    classes: tuple[str, ...] = ()
    drawn: frozenset[str] = frozenset()
    path: Path | None = None
    sha256: str = ""
    notes: tuple[str, ...] = ()

    @property
    def new(self) -> bool:
        """Whether the head was drawn at random instead of loaded."""
        return any(top(path) == "head" for path in self.drawn)

    def redraw(self, key: jax.Array) -> dict[str, Any]:
        """Return the variables with all that was not loaded drawn from ``key``."""
        fresh = drawer(self.model, self.drawn)(key) if self.drawn else {}
        return tree.unflatten({**tree.flatten(self.variables), **fresh})

    def tokenize(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], max_length: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return ids of the tokens of N texts, or of N pairs, as the model takes them.

        Args:
            texts: N texts, or N pairs of texts.
            max_length: tokens at most, [CLS] and [SEP] among them; None for what the model takes.

        Returns:
            ``input_ids``, ``attention_mask`` and ``token_type_ids``, int32 (N, L), L that of the longest text.
        """
        most = min(max_length or self.model.positions, self.model.positions)
        encodings = tokens.encode(self.tokenizer, texts, most)
        return tokens.padded(encodings, self.tokenizer.token_to_id("[PAD]"))


@functools.cache
def initializer(model: Bert) -> Any:
    """Return the jitted function key -> variables of a model."""
    return jax.jit(lambda key: dict(model.init(key, jnp.zeros((1, 2), jnp.int32))))


@functools.cache
def drawer(model: Bert, paths: frozenset[str]) -> Any:
    """Return the jitted function key -> these leaves; XLA leaves out all that is not asked for."""
    return jax.jit(lambda key: {p: leaf for p, leaf in tree.flatten(initializer(model)(key)).items() if p in paths})


def top(path: str) -> str:
    """Return the name of the part that a leaf belongs to."""
    return path.split("/")[1]
