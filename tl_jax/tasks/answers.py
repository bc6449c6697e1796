"""Predictions of a trained text network for what a user typed, as numbers and drawn for the terminal."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tl_jax.data import token_batches, tokens
from tl_jax.data.tag_schemes import find_scheme
from tl_jax.data.texts import FIRST_LINE, Columns
from tl_jax.data.token_batches import IGNORED
from tl_jax.data.words import PLAIN_SPLITTER, Splitter
from tl_jax.report.probabilities import lines as drawn_probabilities
from tl_jax.tasks.details import PAIR
from tl_jax.tasks.text_objectives import Encoder, make_predict
from tl_jax.tasks.typed_texts import read_inputs
from tl_jax.text_network import TextNetwork
from tl_jax.train import devices
from tl_jax.train.log import say
from tl_jax.train.step import make_eval_step

BOLD, PLAIN = "\033[1m", "\033[0m"
BATCH = 256  # inputs that go through the network together
SHOWN = 100  # inputs that are drawn; the others are in predictions.json only


def answer(
    task: str,
    net: TextNetwork,
    encoder: Encoder,
    classes: Sequence[str],
    length: int,
    variables: Any,
    inputs: Sequence[Any],
    *,
    splitter: Splitter = PLAIN_SPLITTER,
    pairs: bool = False,
    columns: Columns = FIRST_LINE,
) -> tuple[list[dict[str, Any]], str]:
    """Return the prediction for each input, for JSON, and the first of them drawn as text.

    Args:
        task: "text" or "tokens".
        net: with the tokenizer.
        encoder: the network.
        classes: K names.
        length: tokens at most.
        variables: trained.
        inputs: sentences, files of them, pairs or lists of words: see ``typed_texts.read_inputs``.
        splitter: how sentences become words, for "tokens"; a list of words is taken as it is.
        pairs: whether the network was trained on pairs of texts.
        columns: of the training data, for tables that are read as inputs.
    """
    texts = read_inputs(inputs, task, pairs, columns)
    if task == "tokens":
        found, lines = _entities(net, encoder, classes, length, variables, texts, splitter)
    else:
        found, lines = _probabilities(net, encoder, classes, length, variables, texts)
    if len(found) > SHOWN:
        lines.append(f"... and {len(found) - SHOWN:,} more inputs: see predictions.json")
    return found, "\n".join(lines)


def _probabilities(
    net: TextNetwork, encoder: Encoder, classes: Sequence[str], length: int, variables: Any, texts: Sequence[Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    found, lines = [], []
    labels = np.zeros(len(texts), np.int32)
    for text, (row, _) in zip(texts, _predict(net, encoder, length, variables, texts, labels), strict=True):
        shown = text if isinstance(text, str) else PAIR.join(text)
        found.append({"input": shown, "probabilities": {c: float(p) for c, p in zip(classes, row, strict=True)}})
        lines += drawn_probabilities(shown, classes, row) if len(found) <= SHOWN else []
    return found, lines


def _entities(
    net: TextNetwork,
    encoder: Encoder,
    classes: Sequence[str],
    length: int,
    variables: Any,
    inputs: Sequence[Any],
    splitter: Splitter,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return and draw the entities of each sentence, or the tag of each word if the tags mark no entities."""
    texts = [text if isinstance(text, str) else " ".join(text) for text in inputs]
    spans = [splitter.spans(text) if isinstance(text, str) else _joined(text) for text in inputs]
    words = [[text[a:b] for a, b in own] for text, own in zip(texts, spans, strict=True)]
    labels = np.empty(len(words), object)
    labels[:] = [np.zeros(len(own), np.int32) for own in words]
    found, lines, scheme = [], [], find_scheme(classes)
    for i, (row, read) in enumerate(_predict(net, encoder, length, variables, words, labels)):
        best = iter(row.argmax(-1))
        tags = [classes[next(best)] if word else scheme.outside for word in read]
        if scheme.name:
            marked = scheme.entities(tags)
        else:
            marked = [(tag, at, at) for at, tag in enumerate(tags) if tag != scheme.outside]
        entities = [
            {"text": texts[i][spans[i][a][0] : spans[i][b][1]], "kind": kind, "begin": spans[i][a][0],
             "end": spans[i][b][1]}
            for kind, a, b in marked
        ]  # fmt: skip
        found.append({"input": texts[i], "words": words[i], "entities": entities})
        lines += [_drawn(texts[i], entities)] if i < SHOWN else []
    return found, lines


def _joined(words: Sequence[str]) -> list[tuple[int, int]]:
    """Return (begin, end) of words in the text that they are when joined by blanks."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    return [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]


def _drawn(text: str, entities: list[dict[str, Any]]) -> str:
    on, off = (BOLD, PLAIN) if sys.stdout.isatty() else ("", "")
    out, end = "", 0
    for entity in entities:
        out += text[end : entity["begin"]] + f"{on}[{entity['text']}]({entity['kind']}){off}"
        end = entity["end"]
    return out + text[end:]


def _predict(
    net: TextNetwork, encoder: Encoder, length: int, variables: Any, texts: Sequence[Any], labels: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the probabilities of each text (K,), or of each word that is read (W', K), and which words are read."""
    encodings = tokens.encode(net.tokenizer, list(texts), length)
    if cut := sum(bool(e.overflowing) for e in encodings):
        say(f"{cut:,} of {len(texts):,} inputs are cut to {length} tokens: what comes after them is not read")
    data = token_batches.texts(encodings, labels, net.tokenizer.token_to_id("[PAD]"))
    step, size = make_eval_step(make_predict(encoder)), min(BATCH, len(texts))
    n = devices.whole(size)
    for first in range(0, len(texts), size):
        rows = np.arange(first, min(first + size, len(texts)))
        batch = data.batch(np.resize(rows, n), np.arange(n) < len(rows))
        out, counted = np.asarray(step(variables, devices.put(batch))), np.asarray(batch["label"]) != IGNORED
        for i, row in enumerate(rows):
            if data.read is None:
                yield out[i], np.ones(1, bool)
            else:
                yield out[i][counted[i]], data.read[row] > 0
