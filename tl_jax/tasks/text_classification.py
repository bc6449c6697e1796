"""Text classification: one of K classes per text or pair of texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tl_jax.metrics import Batch, Evaluation, sequence
from tl_jax.report.html import probability_bars
from tl_jax.tasks import error_analysis
from tl_jax.tasks.error_analysis import PAIR
from tl_jax.tasks.text import TextTask
from tl_jax.train.task import register_task


@register_task("text")
class TextClassification(TextTask):
    """Text classification: one of K classes per text or pair of texts."""

    about = "texts, or pairs of texts, with one class each"
    head = "text"
    caches_features = True
    can_choose_method = True
    can_average = True

    def reading_options(self, texts: np.ndarray) -> dict[str, Any]:
        return {**super().reading_options(texts), "pairs": isinstance(texts[0], tuple)}

    def evaluate(self, outputs: Sequence[Any], batches: Sequence[Batch]) -> Evaluation:
        return sequence.text_evaluator(self.classes)(outputs, batches)

    def test_details(self, predictions: Any) -> dict[str, Any]:
        return error_analysis.text_details(self.classes, self.test_texts, self.test_order, predictions)

    def make_row(self, text: Any, probabilities: np.ndarray, was_read: np.ndarray) -> dict[str, Any]:
        shown = text if isinstance(text, str) else PAIR.join(text)
        return {"input": shown, "probabilities": dict(zip(self.classes, map(float, probabilities), strict=True))}

    def draw_prediction(self, row: Mapping[str, Any]) -> str:
        return "\n".join(probability_bars(row["input"], self.classes, np.array(list(row["probabilities"].values()))))
