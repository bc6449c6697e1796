"""Masked language modelling: predict masked words from their context (BERT, arXiv:1810.04805)."""

from collections.abc import Callable
from typing import Any

from tl_jax.data import tokenize
from tl_jax.tasks import losses
from tl_jax.tasks.text import TextTask
from tl_jax.tasks.token_classification import word_head_conflicts
from tl_jax.train.task import Task, register_task


@register_task("masked")
class MaskedWords(TextTask):
    """Masked language modelling on texts without labels."""

    about = "unlabelled texts, for masked language modelling"
    # These need labels or cached features.
    unused_fields = (
        *TextTask.unused_fields, "cache.dir", "cache.gigabytes", "cache.views", "init.folds", "init.head",
        "init.start_loss", "init.strength",
        "regularize.", "wise_ft",
    )  # fmt: skip
    pretext_fields = ("pretext.mask_prob",)
    head = "masked"
    needs_labels = False
    evaluates_outputs = False
    predict = Task.predict  # not available

    @classmethod
    def conflicts(cls, config: Any, changed: Callable[..., bool]) -> dict[str, Any]:
        return {
            **super().conflicts(config, changed),
            "pretext.name has no effect with config.task=masked, which predicts masked words": config.pretext.name,
            **word_head_conflicts(cls.kind, config),
        }

    def _set_functions(self) -> None:
        masking = tokenize.make_masking(self.net.tokenizer, self.config.pretext.mask_prob)
        self.loss = losses.make_masked_lm_loss(self.encoder, masking)
        self.metrics = losses.make_masked_lm_metrics(self.encoder, masking)

    def cache_features(self, variables: Any, phase: Any) -> TextTask:
        return self
