"""What a trained text network says of sentences that a user typed, as numbers and drawn for the terminal."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import BertPreTokenizer

from tl_jax.data import token_batches, tokens
from tl_jax.data.texts import OUTSIDE
from tl_jax.data.token_batches import IGNORED
from tl_jax.errors import UserError
from tl_jax.report.probabilities import lines as drawn_probabilities
from tl_jax.tasks.text_objectives import Encoder, make_predict
from tl_jax.text_network import TextNetwork
from tl_jax.train import devices
from tl_jax.train.log import say
from tl_jax.train.step import make_eval_step

BOLD, PLAIN = "\033[1m", "\033[0m"
PAIR = " ||| "  # between the two texts of a pair


def answer(
    task: str,
    net: TextNetwork,
    encoder: Encoder,
    classes: Sequence[str],
    length: int,
    variables: Any,
    inputs: Sequence[str],
) -> tuple[list[dict[str, Any]], str]:
    """Return what is said of each input, for JSON, and all of it drawn as text.

    Args:
        task: "text" or "tokens".
        net: with the tokenizer.
        encoder: the network.
        classes: K names.
        length: tokens at most.
        variables: trained.
        inputs: sentences; the two of a pair stand on both sides of ``PAIR``.
    """
    if not inputs or not all(text.strip() for text in inputs):
        raise UserError("nothing to predict; pass --input=TEXT, once for each sentence")
    if task == "tokens":
        return _entities(net, encoder, classes, length, variables, inputs)
    pairs = [tuple(text.split(PAIR, 1)) if PAIR in text else text for text in inputs]
    probabilities, _ = _predict(net, encoder, length, variables, pairs, np.zeros(len(inputs), np.int32))
    found, lines = [], []
    for text, row in zip(inputs, probabilities, strict=True):
        found.append({"input": text, "probabilities": {c: float(p) for c, p in zip(classes, row, strict=True)}})
        lines += drawn_probabilities(text, classes, row)
    return found, "\n".join(lines)


def _entities(
    net: TextNetwork, encoder: Encoder, classes: Sequence[str], length: int, variables: Any, inputs: Sequence[str]
) -> tuple[list[dict[str, Any]], str]:
    """Return and draw what stands out in each sentence; words are split as BERT's tokenizer splits them."""
    spans = [[span for _, span in BertPreTokenizer().pre_tokenize_str(text)] for text in inputs]
    words = [[text[a:b] for a, b in own] for text, own in zip(inputs, spans, strict=True)]
    labels = np.empty(len(inputs), object)
    labels[:] = [np.zeros(len(own), np.int32) for own in words]
    probabilities, counted = _predict(net, encoder, length, variables, words, labels)
    found, lines = [], []
    for text, own, rows, counts in zip(inputs, spans, probabilities, counted, strict=True):
        best = rows[counts].argmax(-1)  # of words that were cut off there is none
        tags = [classes[i] for i in best] + [OUTSIDE] * (len(own) - len(best))
        entities = [
            {"text": text[own[a][0] : own[b][1]], "kind": kind, "begin": own[a][0], "end": own[b][1]}
            for kind, a, b in _spans(tags)
        ]
        found.append({"input": text, "entities": entities})
        lines.append(_drawn(text, entities))
    return found, "\n".join(lines)


def _spans(tags: list[str]) -> list[tuple[str, int, int]]:
    from seqeval.metrics.sequence_labeling import get_entities  # takes two seconds

    if not any(tag.startswith("B-") for tag in tags) and not any(tag.startswith("I-") for tag in tags):
        return [(tag, i, i) for i, tag in enumerate(tags) if tag != OUTSIDE]
    return get_entities(tags)


def _drawn(text: str, entities: list[dict[str, Any]]) -> str:
    on, off = (BOLD, PLAIN) if sys.stdout.isatty() else ("", "")
    out, end = "", 0
    for entity in entities:
        out += text[end : entity["begin"]] + f"{on}[{entity['text']}]({entity['kind']}){off}"
        end = entity["end"]
    return out + text[end:]


def _predict(
    net: TextNetwork, encoder: Encoder, length: int, variables: Any, texts: Sequence[Any], labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities of N texts, and where their labels count (N, ...)."""
    encodings = tokens.encode(net.tokenizer, list(texts), length)
    if cut := sum(bool(e.overflowing) for e in encodings):
        say(f"{cut:,} of {len(texts):,} inputs are cut to {length} tokens: what comes after them is not read")
    data = token_batches.texts(encodings, labels, net.tokenizer.token_to_id("[PAD]"))
    n = devices.whole(len(texts))
    batch = data.batch(np.minimum(np.arange(n), len(texts) - 1), np.arange(n) < len(texts))
    out = make_eval_step(make_predict(encoder))(variables, devices.put(batch))
    return np.asarray(out)[: len(texts)], np.asarray(batch["label"])[: len(texts)] != IGNORED
