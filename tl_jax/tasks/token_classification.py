"""Token classification: a class per word, such as named entity tags."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tl_jax.data import word_splitting
from tl_jax.data.conll import find_scheme
from tl_jax.data.word_splitting import Splitter
from tl_jax.metrics import Batch, Evaluation, sequence
from tl_jax.tasks import error_analysis, probe_strength
from tl_jax.tasks.text import TextTask
from tl_jax.train.task import register_task

BOLD, PLAIN = "\033[1m", "\033[0m"


@register_task("tokens")
class TokenClassification(TextTask):
    """Token classification: one of K classes per word."""

    about = "texts with one class per word"
    unused_fields = (*TextTask.unused_fields, "cache.dir", "cache.gigabytes", "cache.views")  # features are not cached
    head = "tokens"
    tags_words = True
    has_classes = False  # per example
    synthetic = "docs_names"
    score = "f1"
    prediction_columns = ("words", "entities")

    @classmethod
    def conflicts(cls, config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
        return {**super().conflicts(config, changed), **word_head_conflicts(cls.kind, config)}

    def reading_options(self, texts: np.ndarray) -> dict[str, Any]:
        return {**super().reading_options(texts), "splitter": word_splitting.learn_splitter(texts).to_json()}

    def evaluate(self, outputs: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
        return sequence.token_evaluator(self.classes)(outputs, batches)

    def test_details(self, predictions: Any) -> dict[str, Any]:
        names = sequence.predicted_classes(self.classes, predictions)
        return error_analysis.tag_details(names, self.test_texts, self.test_order, *predictions)

    def split_inputs(self, texts: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], np.ndarray]:
        splitter = Splitter.from_json(self.reading["splitter"] or {})
        sentences = [text if isinstance(text, str) else " ".join(text) for text in texts]
        spans = [splitter.spans(text) if isinstance(text, str) else _word_spans(text) for text in texts]
        words = [[text[a:b] for a, b in text_spans] for text, text_spans in zip(sentences, spans, strict=True)]
        labels = np.empty(len(words), object)
        labels[:] = [np.zeros(len(sentence), np.int32) for sentence in words]
        return list(zip(sentences, spans, words, strict=True)), words, labels

    def make_row(self, text: Any, probabilities: np.ndarray, was_read: np.ndarray) -> dict[str, Any]:
        """Return the entities of a sentence, or the tag of each word if the tags mark no entities."""
        sentence, spans, words = text
        predicted, scheme = iter(probabilities.argmax(-1)), find_scheme(self.classes)
        tags = [self.classes[int(next(predicted))] if word else scheme.outside for word in was_read]
        if scheme.name:
            tagged_spans = scheme.entities(tags)
        else:
            tagged_spans = [(tag, at, at) for at, tag in enumerate(tags) if tag != scheme.outside]
        entities = [
            {"text": sentence[spans[a][0] : spans[b][1]], "kind": kind, "begin": spans[a][0], "end": spans[b][1]}
            for kind, a, b in tagged_spans
        ]
        return {"input": sentence, "words": words, "entities": entities}

    def draw_prediction(self, row: Mapping[str, Any]) -> str:
        return _mark_entities(row["input"], row["entities"])


def word_head_conflicts(kind: str, config: Any) -> dict[str, Any]:
    """Return the conflicts of a head that reads every word."""
    return {
        f"init.head={config.init.head} is not for task={kind}, whose head reads every word; use new or keep": (
            config.init.head in probe_strength.PROBES
        ),
        "data.per_class needs a label per example; use data.train_examples": config.data.per_class,
    }


def _word_spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Return the (begin, end) character offsets of words joined by spaces."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    return [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]


def _mark_entities(text: str, entities: list[dict[str, Any]]) -> str:
    on, off = (BOLD, PLAIN) if sys.stdout.isatty() else ("", "")
    line, end = "", 0
    for entity in entities:
        line += text[end : entity["begin"]] + f"{on}[{entity['text']}]({entity['kind']}){off}"
        end = entity["end"]
    return line + text[end:]
