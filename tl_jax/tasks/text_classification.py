"""Text classification task: one of K classes for each text or pair of texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tl_jax.metrics import Batch, Evaluation, sequence
from tl_jax.report.html import probability_bars
from tl_jax.tasks import error_analysis
from tl_jax.tasks.error_analysis import PAIR
from tl_jax.tasks.text import MAX_SHOWN, TextTask
from tl_jax.train.task import register_task


@register_task("text")
class TextClassification(TextTask):
    """One of K classes for each text or pair of texts."""

    about = "texts, or pairs of texts, with a class each"
    head = "text"
    caches_features = True

    def reading_options(self, texts: np.ndarray) -> dict[str, Any]:
        return {**super().reading_options(texts), "pairs": isinstance(texts[0], tuple)}

    def evaluate(self, outputs: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
        return sequence.text_evaluator(self.classes)(outputs, batches)

    def test_details(self, predictions: Any) -> dict[str, Any]:
        return error_analysis.text_details(self.classes, self.test_texts, self.test_order, predictions)

    def predict_rows(self, variables: Any, texts: Sequence[Any]) -> tuple[list[dict[str, Any]], list[str]]:
        results, lines = [], []
        labels = np.zeros(len(texts), np.int32)
        for text, (row, _) in zip(texts, self.predict_probabilities(variables, texts, labels), strict=True):
            shown, probabilities = text if isinstance(text, str) else PAIR.join(text), map(float, row)
            results.append({"input": shown, "probabilities": dict(zip(self.classes, probabilities, strict=True))})
            lines += probability_bars(shown, self.classes, row) if len(results) <= MAX_SHOWN else []
        return results, lines
