"""BERT-base with random weights and a head of two classes, in tl_jax and in transformers, as calls for ``peers.py``.

Both train all weights with Adam, with the published dropout. transformers has its default attention (PyTorch's fused
one), autocast for bfloat16 and the fused Adam on a GPU.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.models.bert import Bert

CLASSES = 2
Calls = Mapping[str, Callable[[], object]]  # each waits until its work is done


def make_batch(size: int, length: int) -> dict[str, np.ndarray]:
    """Return ``size`` texts of ``length`` random tokens without padding, with labels."""
    ids = np.random.default_rng(0).integers(1000, 30000, (size, length)).astype(np.int32)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {**inputs, "label": np.arange(size, dtype=np.int32) % CLASSES, "mask": np.ones(size, np.float32)}


def make_network(dtype: str) -> Bert:
    """Return the network."""
    return Bert(CLASSES, dtype=jnp.dtype(dtype))


def tl_jax_calls(size: int, length: int, dtype: str, compiled: bool = False) -> Calls:
    """Return the calls of tl_jax."""
    from tl_jax.pretrained.huggingface import initializer
    from tl_jax.tasks.losses import Encoder, make_text_loss
    from tl_jax.train import sharding
    from tl_jax.train.state import TrainState
    from tl_jax.train.step import make_optimizer_init, make_train_step
    from tl_jax.transfer.freeze import RECIPES
    from tl_jax.transfer.optimizer import OptimSpec
    from tl_jax.transfer.regularizers import Regularize

    model = make_network(dtype)
    variables = initializer(model)(jax.random.key(0))
    batch = sharding.shard_batch(make_batch(size, length))
    optim, rules = OptimSpec("adam"), RECIPES["all"]
    step = make_train_step(make_text_loss(Encoder(model), Regularize()), optim, rules, "auto")
    params = variables["params"]
    state = TrainState(jnp.zeros((), jnp.int32), params, {}, make_optimizer_init(optim, rules)(params))
    holder = {"state": sharding.replicate(jax.tree.map(jnp.copy, state))}
    key, rate = (sharding.replicate(v) for v in (jax.random.key(0), jnp.float32(1e-5)))
    tokens = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    forward = jax.jit(lambda variables, tokens: model.apply(variables, **tokens, train=False)[0])

    def train():
        holder["state"], row = step(holder["state"], batch, key, rate)
        jax.block_until_ready((holder["state"], row))

    return {"forward": lambda: forward(variables, tokens).block_until_ready(), "step": train}


def transformers_calls(size: int, length: int, dtype: str, compiled: bool) -> Calls:
    """Return the calls of transformers on PyTorch."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config: Any = BertConfig()
    config.num_labels = CLASSES
    model: Any = BertForSequenceClassification(config)
    model = model.to(device)
    batch = {name: torch.from_numpy(value).long().to(device) for name, value in make_batch(size, length).items()}
    batch.pop("mask")
    labels = batch.pop("label")
    optimizer = torch.optim.Adam(model.parameters(), 1e-5, fused=device == "cuda")
    run = torch.compile(model) if compiled else model

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        model.eval()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            run(**batch)
        wait()

    def step():
        model.train()
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = run(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        wait()

    return {"forward": forward, "step": step}
