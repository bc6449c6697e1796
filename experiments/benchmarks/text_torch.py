"""The peer of the text tasks: the same fine-tuning in transformers on PyTorch, fed with the same batches."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from tl_jax.data.token_batches import IGNORED

SKIPPED = -100  # label that transformers leaves out


class Trainer:
    """A network of a folder with a new head, and AdamW as the text recipes have it."""

    def __init__(self, folder: Path, classes: int, tokens: bool, seed: int, optim: Any):
        torch.manual_seed(seed)
        make = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
        self.model = make.from_pretrained(folder, num_labels=classes).train()
        self.clip = optim.clip_norm
        weights = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, eps=optim.epsilon)

    def step(self, batch: Any, rate: float) -> float:
        """Take a step on a batch as ``TextStream`` gives it; return the loss in nats."""
        labels = torch.from_numpy(np.where(batch["label"] == IGNORED, SKIPPED, batch["label"]).astype(np.int64))
        for group in self.optimizer.param_groups:
            group["lr"] = float(rate)
        loss = self.model(**_tokens(batch), labels=labels).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip or float("inf"))
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def classes(self, batch: Any) -> np.ndarray:
        """Return the predicted classes (N,) or (N, L)."""
        self.model.eval()
        return self.model(**_tokens(batch)).logits.argmax(-1).numpy()


def _tokens(batch: Any) -> dict[str, torch.Tensor]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: torch.from_numpy(np.asarray(batch[name], np.int64)) for name in names}
