"""Parameter-space adapters: a kernel plus a learned low-rank update, which can be merged into the kernel.

============  ====================================================  ================================================
kind          update of a kernel W                                  source
============  ====================================================  ================================================
"lora"        alpha / rank * A B, over the full kernel window       LoRA, Hu et al. 2021, arXiv:2106.09685
"parallel"    alpha / rank * A B, at the window's center only: a    parallel residual adapters, Rebuffi et al. 2018,
              1x1 convolution in parallel to the layer's own        arXiv:1803.10082, here of low rank
"bottleneck"  none: adds small layers between the stages            Houlsby et al. 2019, arXiv:1902.00751
              (attribute ``adapter`` of the model)
============  ====================================================  ================================================

A and B are the leaves ``lora_a`` and ``lora_b`` next to ``kernel``. The network does not see them, so every model can
be adapted. In return, each step computes the gradient of the full kernel before projecting it.
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
_NOT_ADAPTED = r"((aux/)?head|extra|adapter_\w+)/.*"  # new layers train fully


@dataclass(frozen=True)
class AdapterConfig(Options):
    """Adapter settings."""

    kind: str = option("", "adapter type; adapters train while the network is frozen", KINDS)
    rank: int = option(8, "rank of the low-rank updates (0 disables them), or width of the bottleneck adapters", low=0)
    alpha: float = option(8.0, "scale of the low-rank updates, which are multiplied by alpha / rank", low=0.0)
    targets: str = option(".*", "regex over kernel paths; matching kernels get a low-rank update")

    @property
    def low_rank(self) -> bool:
        """Whether kernels get low-rank updates."""
        return self.kind in ("lora", "parallel") and self.rank > 0


def add(params: tree.Tree, config: AdapterConfig, key: jax.Array) -> dict[str, Any]:
    """Add low-rank factors A (random) and B (zeros, so the output is unchanged) next to each adapted kernel.

    Heads are skipped, and so are kernels for which A and B would hold at least as many values as the kernel.

    Raises:
        UserError: No kernel is adapted.
    """
    if not config.low_rank:
        return dict(params)
    leaves = dict(tree.flatten(params))
    paths = [path for path in leaves if _is_adapted(path, leaves[path].shape, config)]
    if not paths:
        raise UserError(
            f"config.adapt.targets={config.targets!r}: no kernel matches with rank {config.rank}; use a regex that "
            f"matches paths such as {next((path for path in leaves if path.endswith('/kernel')), 'none')}"
        )
    for path, k in zip(paths, jax.random.split(key, len(paths)), strict=True):
        rows, columns = _matrix_shape(leaves[path].shape, config)
        stem = path.removesuffix("kernel")
        leaves[stem + "lora_a"] = jax.random.normal(k, (rows, config.rank)) * rows**-0.5
        leaves[stem + "lora_b"] = jnp.zeros((config.rank, columns))
    return tree.unflatten(leaves)


def merge(params: tree.Tree, config: AdapterConfig) -> dict[str, Any]:
    """Merge the low-rank updates into the kernels; the network's output stays the same.

    Raises:
        UserError: A has no B, B has no A, or the pair does not match the kernel's shape.
    """
    leaves = tree.flatten(params)
    for path in leaves:
        partner = re.sub(r"lora_([ab])$", lambda m: f"lora_{'b' if m[1] == 'a' else 'a'}", path)
        if partner not in leaves:
            raise UserError(f"{path}: {partner} is missing; an adapter needs both")
    plain = {path: leaf for path, leaf in leaves.items() if not re.fullmatch(LOW_RANK, path)}
    for path in leaves:
        if path.endswith("lora_a"):
            stem = path.removesuffix("lora_a")
            _check_pair(stem, leaves, config)
            change = leaves[path] @ leaves[stem + "lora_b"] * (config.alpha / config.rank)
            plain[stem + "kernel"] = _add_change(plain[stem + "kernel"], change, config)
    return tree.unflatten(plain)


def _check_pair(stem: str, leaves: Mapping[str, Any], config: AdapterConfig) -> None:
    """Check that A B has the kernel's matrix shape; a damaged file may request a product of any size."""
    kernel, (a_shape, b_shape) = leaves.get(stem + "kernel"), (leaves[stem + f"lora_{side}"].shape for side in "ab")
    if kernel is None or kernel.ndim < 2:
        raise UserError(f"{stem}lora_a: the kernel that it updates is missing; use the file of an adapted run")
    rows, columns = _matrix_shape(kernel.shape, config)
    if config.rank < 1 or (a_shape, b_shape) != ((rows, config.rank), (config.rank, columns)):
        raise UserError(
            f"{stem}lora_a {a_shape} and lora_b {b_shape} do not fit the kernel {kernel.shape} with rank {config.rank}"
        )


def _is_adapted(path: str, shape: tuple[int, ...], config: AdapterConfig) -> bool:
    if not path.endswith("kernel") or re.fullmatch(_NOT_ADAPTED, path) or not re.fullmatch(config.targets, path):
        return False
    if config.kind == "parallel" and len(shape) == 4 and not (shape[0] % 2 and shape[1] % 2 and shape[2] > 1):
        return False  # "parallel" needs a window center and a kernel that is not depthwise
    rows, columns = _matrix_shape(shape, config)
    return config.rank * (rows + columns) < rows * columns


def _matrix_shape(shape: tuple[int, ...], config: AdapterConfig) -> tuple[int, int]:
    """Return the update's matrix shape: (h * w * in, out) for a kernel (h, w, in, out), or (in, out)."""
    return (shape[-2] if config.kind == "parallel" else int(np.prod(shape[:-1]))), shape[-1]


def _add_change(kernel: jax.Array, change: jax.Array, config: AdapterConfig) -> jax.Array:
    if config.kind == "parallel" and kernel.ndim == 4:
        return kernel.at[kernel.shape[0] // 2, kernel.shape[1] // 2].add(change)
    return kernel + change.reshape(kernel.shape)
