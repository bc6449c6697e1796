"""A training step of a text network in tl_jax or transformers, as a process that reports seconds (see ``peers.py``).

    python -m experiments.benchmarks.text_peers --peer=transformers --bert=FOLDER --data_dir=SST2

``length32 N`` and ``length128 N`` are N steps on 32 random texts of that length, ``epoch N`` the first N steps of an
epoch over SST-2: in length buckets in tl_jax, padded to 128 tokens in transformers. ``Trainer`` runs the same
fine-tuning in transformers on PyTorch, on the same batches.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from absl import flags
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from configs import sst2_bert
from experiments.benchmarks.turns import serve_calls
from tl_jax.config import recipe
from tl_jax.data.tokenize import IGNORED
from tl_jax.restore import make_task
from tl_jax.train import sharding
from tl_jax.train.loop import initial_state, stream_key
from tl_jax.train.step import make_optimizer_init, make_train_step
from tl_jax.transfer import phases
from tl_jax.utils import command

PEER = flags.DEFINE_enum("peer", "tl_jax", ["tl_jax", "transformers"], "Library.")
BERT = flags.DEFINE_string("bert", None, "Folder of the network.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of SST-2.", required=True)
LENGTHS = (32, 128)
RATE = 5e-5
Calls = Mapping[str, Callable[[int], object]]  # takes the number of steps


def main(_: list[str]) -> None:
    """Answer."""
    serve_calls(make_calls)


def make_calls() -> Calls:
    """Build what is asked for."""
    changes = (("init.path", BERT.value), ("data.dir", DATA_DIR.value), ("input.max_length", 128))
    config = recipe.override(sst2_bert.get_config(), changes)
    task = make_task(config)
    plan = phases.resolve(config, task.sizes, task.stages)[0]
    make = {"tl_jax": _tl_jax_calls, "transformers": _transformers_calls}[PEER.value]
    return make(task, plan, {f"length{length}": random_batch(task, length) for length in LENGTHS})


def random_batch(task, length):
    """Return a batch of the size of the task's whose texts are all ``length`` random words."""
    size = task.train_batch.batch_size
    ids = np.random.default_rng(0).integers(1000, 30000, (size, length)).astype(np.int32)
    ones, zeros = np.ones_like(ids), np.zeros_like(ids)
    labels = np.arange(size, dtype=np.int32) % 2
    inputs = {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros}
    return {**inputs, "label": labels, "mask": np.ones(size, np.float32)}


def _tl_jax_calls(task, plan, batches) -> Calls:
    state = initial_state(task, 0)
    state = state.replace(opt_state=make_optimizer_init(plan.optim, plan.rules)(state.params))
    step = make_train_step(task.loss, plan.optim, plan.rules, plan.batch_stats)
    stream = sharding.replicate(stream_key(0, "train"))
    holder = {"state": state}

    def run(make, count):
        for i in range(count):
            state, row = step(
                holder["state"], sharding.shard_batch(make(i)), stream, sharding.replicate(np.float32(RATE))
            )
            holder["state"] = state
        jax.block_until_ready(row)

    for step_index in task.train_batch.steps_by_length(0, plan.stop):  # compile every length before anything is timed
        run(lambda i, step_index=step_index: task.train_batch(step_index), 1)
    calls = {name: lambda count, batch=batch: run(lambda i: batch, count) for name, batch in batches.items()}
    return {**calls, "epoch": lambda count: run(task.train_batch, count)}


def _transformers_calls(task, plan, batches) -> Calls:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    trainer, stream = Trainer(Path(BERT.value), 2, False, 0, plan.optim), task.train_batch

    def run(make, count):
        for i in range(count):
            trainer.step(make(i), RATE)

    calls = {name: lambda count, batch=batch: run(lambda i: batch, count) for name, batch in batches.items()}
    padded = lambda i: stream.data.batch(stream.rows(i), np.ones(stream.batch_size), 128)  # noqa: E731
    return {**calls, "epoch": lambda count: run(padded, count)}


if __name__ == "__main__":
    command.run(main)


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
