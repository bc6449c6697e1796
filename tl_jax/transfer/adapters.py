"""Adapters in parameter space: a kernel plus a learned low-rank change, which can be added into it for good.

============  ====================================================  ================================================
kind          change of a kernel W                                  source
============  ====================================================  ================================================
"lora"        alpha / rank * A B, over the whole window             LoRA, Hu et al. 2021, arXiv:2106.09685
"parallel"    alpha / rank * A B in the middle of the window only,  parallel residual adapters, Rebuffi et al. 2018,
              which is a 1x1 convolution beside the layer's own     arXiv:1803.10082, here of low rank
"bottleneck"  none: small layers of their own between the parts of  Houlsby et al. 2019, arXiv:1902.00751
              the network (attribute ``adapter`` of the model)
============  ====================================================  ================================================

A and B are the leaves ``lora_a`` and ``lora_b`` beside ``kernel``. As the network itself knows nothing of them, every
model can be adapted; the price is that a step still works out the gradient of whole kernels before it projects it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.config.options import Options, option
from tl_jax.utils import tree
from tl_jax.utils.errors import UserError

KINDS = ("", "lora", "parallel", "bottleneck")
LOW_RANK = r"(.*/)?lora_[ab]"  # paths of low-rank changes
_NOT_ADAPTED = r"((aux/)?head|extra|adapter_\w+)/.*"  # new layers train whole


@dataclass(frozen=True)
class AdapterConfig(Options):
    """What is adapted."""

    kind: str = option("", "small trained layers in a frozen network (see transfer/adapters.py)", KINDS)
    rank: int = option(8, "of low-rank changes (0 for none), or width of bottleneck adapters", low=0)
    alpha: float = option(8.0, "low-rank changes count alpha / rank", low=0.0)
    targets: str = option(".*", "regex over the paths of kernels that get a low-rank change")

    @property
    def low_rank(self) -> bool:
        """Whether kernels get low-rank changes."""
        return self.kind in ("lora", "parallel") and self.rank > 0


def add(params: tree.Tree, config: AdapterConfig, key: jax.Array) -> dict[str, Any]:
    """Return ``params`` with A (drawn) and B (zeros, so that nothing changes yet) beside each adapted kernel.

    Kernels for which A and B would hold as many values as they do themselves are left alone, heads too.

    Raises:
        UserError: no kernel is adapted.
    """
    if not config.low_rank:
        return dict(params)
    leaves = dict(tree.flatten(params))
    paths = [path for path in leaves if _is_adapted(path, leaves[path].shape, config)]
    if not paths:
        raise UserError(
            f"config.adapt.targets={config.targets!r} with rank {config.rank} adapts no kernel; the paths are such as "
            f"{next((path for path in leaves if path.endswith('/kernel')), 'none')}"
        )
    for path, k in zip(paths, jax.random.split(key, len(paths)), strict=True):
        rows, columns = _matrix_shape(leaves[path].shape, config)
        stem = path.removesuffix("kernel")
        leaves[stem + "lora_a"] = jax.random.normal(k, (rows, config.rank)) * rows**-0.5
        leaves[stem + "lora_b"] = jnp.zeros((config.rank, columns))
    return tree.unflatten(leaves)


def merge(params: tree.Tree, config: AdapterConfig) -> dict[str, Any]:
    """Return plain parameters with the changes added into the kernels; the network then computes the same.

    Raises:
        UserError: an A without its B, or a B without its A, or a pair that fits no kernel.
    """
    leaves = tree.flatten(params)
    for path in leaves:
        partner = re.sub(r"lora_([ab])$", lambda m: f"lora_{'b' if m[1] == 'a' else 'a'}", path)
        if partner not in leaves:
            raise UserError(f"{path} is there without {partner}; an adapter needs both")
    plain = {path: leaf for path, leaf in leaves.items() if not re.fullmatch(LOW_RANK, path)}
    for path in leaves:
        if path.endswith("lora_a"):
            stem = path.removesuffix("lora_a")
            _check_pair(stem, leaves, config)
            change = leaves[path] @ leaves[stem + "lora_b"] * (config.alpha / config.rank)
            plain[stem + "kernel"] = _add_change(plain[stem + "kernel"], change, config)
    return tree.unflatten(plain)


def _check_pair(stem: str, leaves: Mapping[str, Any], config: AdapterConfig) -> None:
    """Refuse a pair whose product is not the matrix of its kernel: a file may ask for one without bounds."""
    kernel, (a_shape, b_shape) = leaves.get(stem + "kernel"), (leaves[stem + f"lora_{side}"].shape for side in "ab")
    if kernel is None or kernel.ndim < 2:
        raise UserError(f"{stem}lora_a is there without a kernel that it changes")
    rows, columns = _matrix_shape(kernel.shape, config)
    if config.rank < 1 or (a_shape, b_shape) != ((rows, config.rank), (config.rank, columns)):
        raise UserError(
            f"{stem}lora_a {a_shape} and lora_b {b_shape} do not fit the kernel {kernel.shape} with rank {config.rank}"
        )


def _is_adapted(path: str, shape: tuple[int, ...], config: AdapterConfig) -> bool:
    if not path.endswith("kernel") or re.fullmatch(_NOT_ADAPTED, path) or not re.fullmatch(config.targets, path):
        return False
    if config.kind == "parallel" and len(shape) == 4 and not (shape[0] % 2 and shape[1] % 2 and shape[2] > 1):
        return False  # no middle, or a depthwise filter, to which a 1x1 convolution does not belong
    rows, columns = _matrix_shape(shape, config)
    return config.rank * (rows + columns) < rows * columns


def _matrix_shape(shape: tuple[int, ...], config: AdapterConfig) -> tuple[int, int]:
    """Return the shape of the change as a matrix; (h, w, in, out) counts as (h * w * in, out), or (in, out)."""
    return (shape[-2] if config.kind == "parallel" else int(np.prod(shape[:-1]))), shape[-1]


def _add_change(kernel: jax.Array, change: jax.Array, config: AdapterConfig) -> jax.Array:
    if config.kind == "parallel" and kernel.ndim == 4:
        return kernel.at[kernel.shape[0] // 2, kernel.shape[1] // 2].add(change)
    return kernel + change.reshape(kernel.shape)
