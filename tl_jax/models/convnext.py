"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545), ConvNeXt V2 (Woo et al. 2023, arXiv:2301.00808), and DINOv3's.

Depthwise 7x7 convolutions, layer norms and feed-forward networks in four stages. V2 has global response normalization
in place of learned factors of the branches.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tl_jax.models.attention import ACTIVATIONS, dense_layer, layer_norm, normal_init
from tl_jax.models.backbone import Backbone, StageFactory
from tl_jax.models.layers import Conv, DepthwiseConv, DropPath, linear_drop_rates
from tl_jax.models.registry import PretrainedSpec, register_model, timm_weights
from tl_jax.models.rules import (
    Rule,
    Table,
    ravel,
    torch_conv,
    torch_dense,
    torch_layer_norm,
)

EPSILON = 1e-6  # of norms, also of the response normalization


class ResponseNorm(nn.Module):
    """Global response normalization of V2, (N, H, W, C) -> the same: channels compete by their norm over the image."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros_init()
        scale, bias = (self.param(name, zeros, (x.shape[-1],), jnp.float32) for name in ("scale", "bias"))
        squares = jnp.square(x.astype(jnp.float32)).sum((1, 2), keepdims=True)
        # The gradient of a root at zero, as in a padded image of one color, would not be finite.
        norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
        relative = (norms / (norms.mean(-1, keepdims=True) + EPSILON)).astype(self.dtype)
        scale, bias = (leaf.astype(self.dtype)[None, None, None] for leaf in (scale, bias))
        return scale * (x * relative) + bias + x


class Block(nn.Module):
    """Depthwise convolution, norm and feed-forward network, added to the input: (N, H, W, C) -> the same."""

    layer_scale: float
    response_norm: bool
    drop_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width = x.shape[-1]
        y = DepthwiseConv(7, use_bias=True, dtype=self.dtype, name="conv")(x)
        y = layer_norm(EPSILON, self.dtype, "norm")(y)
        y = ACTIVATIONS["gelu"](dense_layer(4 * width, self.dtype, "up")(y))
        y = ResponseNorm(self.dtype, name="response_norm")(y) if self.response_norm else y
        y = dense_layer(width, self.dtype, "down")(y)
        if self.layer_scale:
            scale = self.param("scale", nn.initializers.constant(self.layer_scale), (width,), jnp.float32)
            y = y * scale.astype(self.dtype)[None, None, None]
        return x + DropPath(self.drop_rate, name="drop_path")(y, train)


class Stem(nn.Module):
    """Non-overlapping 4x4 convolution and norm: (N, H, W, C) -> (N, H / 4, W / 4, width)."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Conv(self.width, 4, 4, "valid", use_bias=True, dtype=self.dtype, kernel_init=normal_init, name="conv")(x)
        return layer_norm(EPSILON, self.dtype, "norm")(x)


class Stage(nn.Module):
    """Blocks after a norm and a 2x2 convolution of stride 2, which the first stage lacks.

    (N, H, W, C) -> (N, H / 2, W / 2, width), or (N, H, W, width) in the first stage.
    """

    width: int
    halves: bool
    drop_rates: tuple[float, ...]
    layer_scale: float
    response_norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.halves:
            x = layer_norm(EPSILON, self.dtype, "norm")(x)
            x = Conv(
                self.width, 2, 2, "valid", use_bias=True, dtype=self.dtype, kernel_init=normal_init, name="conv"
            )(x)  # fmt: skip
        for i, rate in enumerate(self.drop_rates, start=1):
            x = Block(self.layer_scale, self.response_norm, rate, self.dtype, name=f"block{i}")(x, train)
        return x


def pooled_norm(epsilon: float, dtype: Any) -> Callable[..., jax.Array]:
    """Return the norm of the average over positions, (N, H, W, D) -> (N, D)."""
    norm = layer_norm(epsilon, dtype, "norm")
    return lambda x, train: norm(x.astype(jnp.float32).mean((1, 2)))


class ConvNeXt(Backbone):
    """ConvNeXt, (N, H, W, C) float -> (logits (N, K), endpoints).

    Endpoints: ``stem`` and ``stage1`` (N, H / 4, W / 4, widths[0]), ``stage2`` to ``stage4``, each half as high and as
    wide as the one before, at last (N, H / 32, W / 32, D), ``norm`` and ``features`` (N, D).

    Attributes:
        depths: blocks of each stage.
        widths: channels of each stage.
        layer_scale: initial factor of each branch, learned for each channel; 0 for none, as in V2.
        response_norm: whether blocks have global response normalization, as in V2.
        final_epsilon: epsilon of the last norm.
        drop_path: stochastic depth rate of the last block, see ``layers.linear_drop_rates``.
    """

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    layer_scale: float = 1e-6
    response_norm: bool = False
    final_epsilon: float = EPSILON
    drop_path: float = 0.0

    min_size = 32

    def named_stages(self) -> Sequence[tuple[str, StageFactory]]:
        stages: list[tuple[str, StageFactory]] = [("stem", partial(Stem, self.widths[0], self.dtype, name="stem"))]
        rates = linear_drop_rates(self.drop_path, self.depths)
        for i, (width, stage_rates) in enumerate(zip(self.widths, rates, strict=True), start=1):
            stage = partial(
                Stage, width, i > 1, stage_rates, self.layer_scale, self.response_norm, self.dtype, name=f"stage{i}"
            )
            stages.append((f"stage{i}", stage))
        return [*stages, ("norm", partial(pooled_norm, self.final_epsilon, self.dtype))]

    def map_stage(self) -> str:
        """Return the last stage before the average over positions."""
        return [name for name in self.stage_names() if name != "norm"][-1]

    def to_map(self, x: jax.Array, size: Sequence[int] = ()) -> jax.Array:
        """Return a stage's output as a map; features (N, D) are a map of one position."""
        return x[:, None, None] if x.ndim == 2 else x

    def pool(self, x: jax.Array) -> jax.Array:
        """Return the average over positions, or the normalized average."""
        return x if x.ndim == 2 else super().pool(x)


# ---- names in the files of Hugging Face, timm, torchvision and the authors


class Names(NamedTuple):
    """Names of one layout, as regexes; "{i}" is a stage and "{j}" a block, both from 0.

    Attributes:
        stem: its convolution and norm.
        halving: norm and convolution at the start of a stage.
        block: prefix of a block.
        layers: of a block: convolution, norm, and the two linear layers.
        scale: factors of a block's branch.
        response: prefix, scale and bias of a block's response normalization.
        final: norm and head.
    """

    stem: tuple[str, str]
    halving: tuple[str, str]
    block: str
    layers: tuple[str, str, str, str]
    scale: str
    response: tuple[str, str, str]
    final: tuple[str, str]


_THEIRS = r"(?:|convnextv2\.|convnext\.)"
_LINEAR = ("pwconv1", "pwconv2")
LAYOUTS: Mapping[str, Names] = {
    "huggingface": Names(
        (rf"{_THEIRS}embeddings\.patch_embeddings", rf"{_THEIRS}embeddings\.layernorm"),
        (
            rf"{_THEIRS}encoder\.stages\.{{i}}\.downsampling_layer\.0",
            rf"{_THEIRS}encoder\.stages\.{{i}}\.downsampling_layer\.1",
        ),
        rf"{_THEIRS}encoder\.stages\.{{i}}\.layers\.{{j}}\.",
        ("dwconv", "layernorm", *_LINEAR),
        "layer_scale_parameter",
        (r"grn\.", "weight", "bias"),
        (rf"{_THEIRS}layernorm", "classifier"),
    ),
    "dinov3": Names(
        (r"stages\.0\.downsample_layers\.0", r"stages\.0\.downsample_layers\.1"),
        (r"stages\.{i}\.downsample_layers\.0", r"stages\.{i}\.downsample_layers\.1"),
        r"stages\.{i}\.layers\.{j}\.",
        ("depthwise_conv", "layer_norm", "pointwise_conv1", "pointwise_conv2"),
        "gamma",
        (r"grn\.", "weight", "bias"),
        ("layer_norm", "head"),
    ),
    "timm": Names(
        (r"stem\.0", r"stem\.1"),
        (r"stages\.{i}\.downsample\.0", r"stages\.{i}\.downsample\.1"),
        r"stages\.{i}\.blocks\.{j}\.",
        ("conv_dw", "norm", r"mlp\.fc1", r"mlp\.fc2"),
        "gamma",
        (r"mlp\.grn\.", "weight", "bias"),
        (r"head\.norm", r"head\.fc"),
    ),
    "torchvision": Names(
        (r"features\.0\.0", r"features\.0\.1"),
        (r"features\.{before}\.0", r"features\.{before}\.1"),
        r"features\.{after}\.{j}\.",
        (r"block\.0", r"block\.2", r"block\.3", r"block\.5"),
        "layer_scale",
        (r"grn\.", "weight", "bias"),
        (r"classifier\.0", r"classifier\.2"),
    ),
    "facebook": Names(
        (r"downsample_layers\.0\.0", r"downsample_layers\.0\.1"),
        (r"downsample_layers\.{i}\.0", r"downsample_layers\.{i}\.1"),
        r"stages\.{i}\.{j}\.",
        ("dwconv", "norm", *_LINEAR),
        "gamma",
        (r"grn\.", "gamma", "beta"),
        ("norm", "head"),
    ),
}


@functools.cache  # of sizes and versions with equal depths
def make_table(layout: str, depths: tuple[int, ...]) -> Table:
    """Return the table of a layout for stages of ``depths`` blocks."""
    names = LAYOUTS[layout]
    rules = torch_conv(names.stem[0], "stem/conv") + torch_layer_norm(names.stem[1], "stem/norm")
    rules += torch_layer_norm(names.final[0], "norm") + torch_dense(names.final[1], "head")
    for i, depth in enumerate(depths):
        places = {"i": i, "before": 2 * i, "after": 2 * i + 1}  # torchvision numbers both kinds of layers together
        if i:
            norm, conv = (name.format(**places) for name in names.halving)
            rules += torch_layer_norm(norm, f"stage{i + 1}/norm") + torch_conv(conv, f"stage{i + 1}/conv")
        for j in range(depth):
            rules += _block_rules(names, names.block.format(j=j, **places), f"stage{i + 1}/block{j + 1}")
    return Table(rules)


def _block_rules(names: Names, theirs: str, ours: str) -> list[Rule]:
    conv, norm, up, down = (theirs + name for name in names.layers)
    response, scale, bias = names.response
    return [
        *torch_conv(conv, f"{ours}/conv"),
        *torch_layer_norm(norm, f"{ours}/norm"),
        *torch_dense(up, f"{ours}/up"),
        *torch_dense(down, f"{ours}/down"),
        Rule(theirs + names.scale, f"params/{ours}/scale", ravel),
        Rule(theirs + response + scale, f"params/{ours}/response_norm/scale", ravel),
        Rule(theirs + response + bias, f"params/{ours}/response_norm/bias", ravel),
    ]


# ---- the networks and their weights. Facts of files are from timm 1.0.31; others are read from a local path


SIZES: Mapping[str, Mapping[str, Any]] = {
    "atto": {"depths": (2, 2, 6, 2), "widths": (40, 80, 160, 320)},
    "femto": {"depths": (2, 2, 6, 2), "widths": (48, 96, 192, 384)},
    "pico": {"depths": (2, 2, 6, 2), "widths": (64, 128, 256, 512)},
    "nano": {"depths": (2, 2, 8, 2), "widths": (80, 160, 320, 640)},
    "tiny": {},
    "small": {"depths": (3, 3, 27, 3)},
    "base": {"depths": (3, 3, 27, 3), "widths": (128, 256, 512, 1024)},
    "large": {"depths": (3, 3, 27, 3), "widths": (192, 384, 768, 1536)},
}
_V2: Mapping[str, Any] = {"layer_scale": 0.0, "response_norm": True}
_INPUT = {"scaling": "torch", "interpolation": "bicubic"}


def _register(name: str, options: Mapping[str, Any], *weights: PretrainedSpec, layout: str = "huggingface") -> None:
    """Register a network with facts of its files, and their tables; ``layout`` is that of Hugging Face's."""
    layouts = {spec.source: layout if spec.source == "huggingface" else spec.source for spec in weights}
    depths = options.get("depths", ConvNeXt.depths)
    tables = {source: make_table(layout, depths) for source, layout in layouts.items()}
    register_model(name, ConvNeXt, options, tables=tables, weights=weights)


def _local(source: str, **facts: Any) -> PretrainedSpec:
    """Return the facts of files that are read from a local path."""
    return PretrainedSpec("", source, **{**_INPUT, **facts})


_THEIRS_SPEC = _local("huggingface", options={"final_epsilon": 1e-12})
# size -> suffix of timm's file, its number of parameters, and its crop
_V1_FILES = {
    "atto": ("d2_in1k", 3_695_520, 0.875),
    "femto": ("d1_in1k", 5_217_784, 0.875),
    "pico": ("d1_in1k", 9_045_672, 0.875),
    "nano": ("in12k_ft_in1k", 15_593_560, 0.95),
    "tiny": ("fb_in22k_ft_in1k", 28_589_128, 0.875),
    "small": ("fb_in22k_ft_in1k", 50_223_688, 0.875),
    "base": ("fb_in22k_ft_in1k", 88_591_464, 0.875),
    "large": ("fb_in22k_ft_in1k", 197_767_336, 0.875),
}
_V2_FILES = {
    "atto": ("fcmae_ft_in1k", 3_708_400),
    "femto": ("fcmae_ft_in1k", 5_233_240),
    "pico": ("fcmae_ft_in1k", 9_066_280),
    "nano": ("fcmae_ft_in22k_in1k", 15_623_800),
    "tiny": ("fcmae_ft_in22k_in1k", 28_635_496),
    "base": ("fcmae_ft_in22k_in1k", 88_717_800),
    "large": ("fcmae_ft_in22k_in1k", 197_956_840),
}
_DINOV3_FILES = {"tiny": 27_820_128, "small": 49_454_688, "base": 87_566_464, "large": 196_230_336}
for _size, (_suffix, _count, _crop) in _V1_FILES.items():
    _timm = timm_weights(f"convnext_{_size}.{_suffix}", 0.0, 0.0, _count, crop=_crop, **_INPUT)
    _own = [_THEIRS_SPEC, _local("facebook")] if _size in ("tiny", "small", "base", "large") else []
    _own += [_local("torchvision")] if _own else []
    _register(f"convnext_{_size}", SIZES[_size], _timm, *_own)
for _size, (_suffix, _count) in _V2_FILES.items():
    _timm = timm_weights(f"convnextv2_{_size}.{_suffix}", 0.0, 0.0, _count, "CC-BY-NC-4.0", **_INPUT)
    _register(f"convnextv2_{_size}", {**SIZES[_size], **_V2}, _timm, _THEIRS_SPEC, _local("facebook"))
for _size, _count in _DINOV3_FILES.items():
    _facts = {"num_classes": 0, "crop": 1.0}
    _timm = timm_weights(
        f"convnext_{_size}.dinov3_lvd1689m", 0.0, 0.0, _count, "DINOv3 licence", **{**_INPUT, **_facts}
    )
    _hub = "facebook/dinov3-convnext-tiny-pretrain-lvd1689m" if _size == "tiny" else ""
    _theirs = _local("huggingface", hub=_hub, licence="DINOv3 licence", **_facts)
    _register(f"dinov3_convnext_{_size}", SIZES[_size], _timm, _theirs, layout="dinov3")
_SMALL = {"image_size": 32, "crop": 1.0}
_register("convnext_tiny_test", {"depths": (1, 1, 2, 1), "widths": (8, 16, 24, 32)}, _local("timm", **_SMALL))
