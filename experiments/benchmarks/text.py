"""Benchmark of fine-tuning a text network against transformers on PyTorch: tokens per second, and an epoch.

    python -m experiments.benchmarks.text --bert=FOLDER --data_dir=SST2

Both fine-tune the same weights for two classes with AdamW on batches of 32 texts, in turns, each in its own process.
Prints and writes medians over the turns and their ratio. The first ``--steps`` steps of the epoch are timed, with the
same texts for both. Needs requirements-bench.txt.

With ``--peer`` it is such a process and reports seconds (see ``turns.py``): ``length32 N`` and ``length128 N`` are N
steps on 32 random texts of that length, ``epoch N`` the first N steps of an epoch over SST-2, in length buckets in
tl_jax and padded to 128 tokens in transformers. ``Trainer`` runs the same fine-tuning in transformers on PyTorch, with
the same batches.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from configs import sst2_bert
from experiments.benchmarks.turns import Worker, describe_machine, measure_turns, medians, serve_calls
from tl_jax.config import recipe
from tl_jax.data.tokenize import IGNORED
from tl_jax.restore import make_task
from tl_jax.train import sharding
from tl_jax.train.state import initial_state, stream_key
from tl_jax.train.step import make_optimizer_init, make_train_step
from tl_jax.utils import command, disk

FLAGS = flags.FLAGS
BATCH = 32
LENGTHS = (32, 128)
RATE = 5e-5
SKIPPED = -100  # label that transformers leaves out
Calls = Mapping[str, Callable[[int], object]]  # takes the number of steps


def define_flags() -> None:
    """Define the flags of the command; not on import, because text_quality.py has some of the same names."""
    flags.DEFINE_string("bert", None, "Folder of the network.", required=True)
    flags.DEFINE_string("data_dir", None, "Folder of SST-2.", required=True)
    flags.DEFINE_integer("turns", 5, "Turns per library.")
    flags.DEFINE_float("min_seconds", 5.0, "Minimum seconds per turn.")
    flags.DEFINE_integer("steps", 60, "Steps of the epoch to time, of 216.")
    flags.DEFINE_string("results", "experiments/results/benchmarks/text.json", "Output file.")
    flags.DEFINE_enum("peer", "", ["", "tl_jax", "transformers"], "Run as this library's process; internal.")


def main(_: list[str]) -> None:
    """Answer as a process of a library, or measure, print and write."""
    if FLAGS.peer:
        return serve_calls(make_calls)
    worker_flags = (f"--bert={FLAGS.bert}", f"--data_dir={FLAGS.data_dir}")
    names = ("tl_jax", "transformers")
    workers = {name: Worker(name, *worker_flags, module="experiments.benchmarks.text") for name in names}
    rows = []
    for length in LENGTHS:
        seconds = measure_turns(workers, f"length{length}", FLAGS.turns, FLAGS.min_seconds)
        median = medians(seconds)
        rate = {name: BATCH * length / seconds for name, seconds in median.items()}
        ratio = rate["tl_jax"] / rate["transformers"]
        rows.append({"what": f"length {length}", "seconds": seconds, "tokens_per_second": rate, "ratio": ratio})
        rates_text = ", ".join(f"{name} {value:,.0f}" for name, value in rate.items())
        print(f"length {length}: {rates_text} tokens/s, ratio {ratio:.2f}", flush=True)
    seconds = {name: [] for name in names}
    for _turn in range(max(1, FLAGS.turns // 2)):
        for name, worker in workers.items():
            seconds[name].append(worker.seconds("epoch", FLAGS.steps) * FLAGS.steps)
    median = medians(seconds)
    share = median["tl_jax"] / median["transformers"]
    rows.append({"what": "epoch in buckets", "steps": FLAGS.steps, "seconds": seconds, "share": share})
    print(
        f"{FLAGS.steps} steps: {median['tl_jax']:.1f} s in buckets, {median['transformers']:.1f} s padded: {share:.2f}"
    )
    path = Path(FLAGS.results)
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write_text(path, json.dumps({**describe_machine(), "rows": rows}, indent=1) + "\n")


def make_calls() -> Calls:
    """Build what is asked for."""
    changes = (("init.path", FLAGS.bert), ("data.dir", FLAGS.data_dir), ("input.max_length", 128))
    config = recipe.override(sst2_bert.get_config(), changes)
    task = make_task(config)
    plan = task.plan()[0]
    make = {"tl_jax": _tl_jax_calls, "transformers": _transformers_calls}[FLAGS.peer]
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
    trainer, stream = Trainer(Path(FLAGS.bert), 2, False, 0, plan.optim), task.train_batch

    def run(make, count):
        for i in range(count):
            trainer.step(make(i), RATE)

    calls = {name: lambda count, batch=batch: run(lambda i: batch, count) for name, batch in batches.items()}
    padded = lambda i: stream.data.batch(stream.rows(i), np.ones(stream.batch_size), 128)  # noqa: E731
    return {**calls, "epoch": lambda count: run(padded, count)}


class Trainer:
    """A network of a folder with a new head, and AdamW as the text recipes have it."""

    def __init__(self, folder: Path, classes: int, tokens: bool, seed: int, optim: Any):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

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
        import torch

        labels = torch.from_numpy(np.where(batch["label"] == IGNORED, SKIPPED, batch["label"]).astype(np.int64))
        for group in self.optimizer.param_groups:
            group["lr"] = float(rate)
        loss = self.model(**_tokens(batch), labels=labels).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip or float("inf"))
        self.optimizer.step()
        return float(loss.detach())

    def classes(self, batch: Any) -> np.ndarray:
        """Return the predicted classes (N,) or (N, L)."""
        import torch

        self.model.eval()
        with torch.no_grad():
            return self.model(**_tokens(batch)).logits.argmax(-1).numpy()


def _tokens(batch: Any) -> dict[str, Any]:
    import torch

    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: torch.from_numpy(np.asarray(batch[name], np.int64)) for name in names}


if __name__ == "__main__":
    define_flags()
    command.run(main)
