"""Vision transformers: ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) and the variants that are published since.

DeiT (arXiv:2012.12877), MAE (arXiv:2111.06377), DINO (arXiv:2104.14294), DINOv2 (arXiv:2304.07193) with and without
registers (arXiv:2309.16588), DINOv3 (arXiv:2508.10104), and the image towers of CLIP (arXiv:2103.00020) and SigLIP
(arXiv:2303.15343). They differ in the attributes of one class. ``vit_tables`` has the names of their weights.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.models.attention import ACTIVATIONS, Attention, Rotation, dense_layer, layer_norm, normal_init
from tl_jax.models.backbone import Backbone, StageFactory
from tl_jax.models.layers import Conv, DropPath, linear_drop_rates
from tl_jax.models.registry import MODELS, PretrainedSpec, register_model, timm_weights
from tl_jax.models.vit_tables import make_table
from tl_jax.utils.errors import UserError, nearest
from tl_jax.utils.scaling import Scaling, register_scaling

POOLINGS = ("class", "mean", "attention")
SWIGLU = "swiglu"


class Grid(NamedTuple):
    """Rows and columns of patches."""

    rows: int
    columns: int


class Embeddings(nn.Module):
    """Patches, special tokens and positions: (N, H, W, C) -> (N, L, D).

    The tokens are the class token, registers, and the patches row by row. Attributes as in ``ViT``.
    """

    patch: int
    width: int
    grid: int
    class_token: bool
    class_position: bool
    registers: int
    antialias: bool
    patch_bias: bool
    first_norm: bool
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, grid: Grid) -> jax.Array:
        shape = (self.width, self.patch, self.patch, "valid", self.patch_bias, self.dtype)
        x = Conv(*shape, kernel_init=normal_init, name="patch")(x).reshape(x.shape[0], -1, self.width)
        prefix = []
        if self.class_token:
            prefix.append(self.param("class_token", normal_init, (1, 1, self.width), jnp.float32))
        if self.grid:
            count = self.grid**2 + self.class_position
            positions = self.param("positions", normal_init, (1, count, self.width), jnp.float32)
            of_patches = resize_positions(positions[:, count - self.grid**2 :], grid, self.antialias)
            x = x + of_patches.astype(self.dtype)
            prefix = [token + positions[:, :1] for token in prefix] if self.class_position else prefix
        if self.registers:
            prefix.append(self.param("registers", normal_init, (1, self.registers, self.width), jnp.float32))
        repeated = [jnp.broadcast_to(token, (x.shape[0], *token.shape[1:])).astype(self.dtype) for token in prefix]
        x = jnp.concatenate([*repeated, x], axis=1)
        return layer_norm(self.epsilon, self.dtype, "norm")(x) if self.first_norm else x


def resize_positions(positions: jax.Array, grid: Grid, antialias: bool) -> jax.Array:
    """Interpolate positions (1, G * G, D) of a square grid to another one: (1, rows * columns, D)."""
    side = math.isqrt(positions.shape[1])
    if (side, side) == tuple(grid):
        return positions
    square = positions.reshape(side, side, -1)
    rows, columns = (cubic_weights(side, size, antialias) for size in grid)
    return jnp.einsum("rs,ct,std->rcd", rows, columns, square).reshape(1, -1, positions.shape[-1])


def cubic_weights(old: int, new: int, antialias: bool = False) -> np.ndarray:
    """Return the matrix (new, old) of torch's bicubic interpolation (Keys 1981), float32.

    Without ``antialias`` the border is repeated and the parameter of the kernel is -0.75. With it, the kernel is
    widened where the grid shrinks, weights beyond the border are left out, and the parameter is -0.5.
    """
    stretch, a = (max(old / new, 1.0), -0.5) if antialias else (1.0, -0.75)
    centers = (np.arange(new) + 0.5) * old / new
    reach = math.ceil(2 * stretch) + 1
    cells = np.floor(centers).astype(int)[:, None] + np.arange(-reach, reach + 1)
    distance = np.abs(cells + 0.5 - centers[:, None]) / stretch
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    values = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    if antialias:
        values = np.where((cells >= 0) & (cells < old), values, 0)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new)[:, None], np.clip(cells, 0, old - 1)), values)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def make_rotation(base: float, grid: Grid, heads: int, width: int, dtype: Any) -> Rotation:
    """Return the rotation of queries and keys by the positions of their patches, of DINOv3.

    Special tokens come first and are not rotated. Coordinates are those of the patches' centers, from -1 to 1.
    """
    size = width // heads
    frequencies = 1 / base ** np.arange(0, 1, 4 / size, dtype=np.float32)
    rows, columns = ((2 * np.arange(count) + 1) / count - 1 for count in grid)
    coordinates = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    angles = np.tile((2 * np.pi * coordinates * frequencies).reshape(-1, size // 2), 2)[None, :, None]
    cosine, sine = jnp.asarray(np.cos(angles), dtype), jnp.asarray(np.sin(angles), dtype)  # (1, patches, 1, size)

    def rotate(x: jax.Array) -> jax.Array:
        special, patches = jnp.split(x, [x.shape[1] - angles.shape[1]], axis=1)
        first, second = jnp.split(patches, 2, axis=-1)
        turned = patches * cosine + jnp.concatenate([-second, first], axis=-1) * sine
        return jnp.concatenate([special, turned], axis=1)

    return rotate


class FeedForward(nn.Module):
    """Two linear layers, (N, L, D) -> the same; "swiglu" gates the first (Shazeer 2020, arXiv:2002.05202)."""

    hidden: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = dense_layer(self.hidden, self.dtype, "up")(x)
        if self.activation == SWIGLU:
            y = nn.silu(dense_layer(self.hidden, self.dtype, "gate")(x)) * y
        else:
            y = ACTIVATIONS[self.activation](y)
        return dense_layer(x.shape[-1], self.dtype, "down")(y)


class Layer(nn.Module):
    """Attention and a feed-forward network, each after a norm and added to its input: (N, L, D) -> the same.

    Attributes as in ``ViT``; ``drop_rate`` is the stochastic depth rate of this layer.
    """

    heads: int
    hidden: int
    activation: str
    layer_scale: float
    key_bias: bool
    head_norm: bool
    rotary_base: float
    epsilon: float
    drop_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, grid: Grid) -> jax.Array:
        width = x.shape[-1]
        rotate = make_rotation(self.rotary_base, grid, self.heads, width, self.dtype) if self.rotary_base else None
        attention = Attention(
            self.heads, 0.0, self.dtype, self.key_bias, self.epsilon if self.head_norm else 0.0, name="attention"
        )
        y = attention(layer_norm(self.epsilon, self.dtype, "norm1")(x), rotate=rotate)
        x = x + self._finish(y, "scale1", train)
        y = layer_norm(self.epsilon, self.dtype, "norm2")(x)
        return x + self._finish(FeedForward(self.hidden, self.activation, self.dtype, name="mlp")(y), "scale2", train)

    def _finish(self, y: jax.Array, name: str, train: bool) -> jax.Array:
        """Scale a branch (LayerScale, Touvron et al. 2021, arXiv:2103.17239), and drop it at random."""
        if self.layer_scale:
            scale = self.param(name, nn.initializers.constant(self.layer_scale), (y.shape[-1],), jnp.float32)
            y = y * scale.astype(self.dtype)[None, None]
        return DropPath(self.drop_rate, name=f"{name}_drop")(y, train)


def final_norm(epsilon: float, dtype: Any) -> Callable[..., jax.Array]:
    """Return the last layer norm, (N, L, D) -> the same."""
    norm = layer_norm(epsilon, dtype, "norm")
    return lambda x, train, grid: norm(x)


class AttentionPool(nn.Module):
    """Attention of a learned token to all others, and a feed-forward network: (N, L, D) -> (N, D).

    Zhai et al. 2022, arXiv:2106.04560, and SigLIP.
    """

    heads: int
    hidden: int
    activation: str
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, grid: Grid) -> jax.Array:
        probe = self.param("probe", normal_init, (1, 1, x.shape[-1]), jnp.float32)
        query = jnp.broadcast_to(probe, (x.shape[0], 1, x.shape[-1])).astype(self.dtype)
        y = Attention(self.heads, 0.0, self.dtype, name="attention")(query, context=x)
        normed = layer_norm(self.epsilon, self.dtype, "norm")(y)
        return (y + FeedForward(self.hidden, self.activation, self.dtype, name="mlp")(normed))[:, 0]


class ViT(Backbone):
    """Vision transformer, (N, H, W, C) float -> (logits (N, K), endpoints).

    Endpoints: ``embeddings``, ``layer1``, ... and ``norm`` (N, L, D); with ``pooling="attention"`` also ``pool``
    (N, D); ``features`` (N, D). The L tokens are the class token, registers, and H / patch rows of W / patch patches.
    Images may have any size: learned positions are interpolated, and an incomplete last patch is cropped.

    Attributes:
        patch: side of a patch in pixels.
        width: D, a multiple of ``heads``.
        depth: number of layers.
        heads: number of attention heads.
        hidden: width of the feed-forward networks.
        grid: side, in patches, of the square images for which positions are learned; 0 for none.
        class_token: whether there is a class token.
        class_position: whether the class token has a learned position.
        registers: number of further tokens.
        antialias: whether positions are interpolated with antialiasing.
        pooling: what ``features`` are: "class" token, "mean" of the patches, or "attention" (see ``AttentionPool``).
        activation: name in ``attention.ACTIVATIONS``, or "swiglu".
        layer_scale: initial factor of each branch, learned for each channel; 0 for no factors.
        rotary_base: base of the periods of rotary positions; 0 for none.
        key_bias: whether keys have a bias.
        head_norm: whether queries and keys are normalized within each head (arXiv:2302.05442).
        patch_bias: whether the projection of patches has a bias.
        first_norm: whether the embeddings are normalized, as in CLIP.
        epsilon: epsilon of the layer norms.
        drop_path: stochastic depth rate of the last layer, see ``layers.linear_drop_rates``.
    """

    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    grid: int = 14
    class_token: bool = True
    class_position: bool = True
    registers: int = 0
    antialias: bool = False
    pooling: str = "class"
    activation: str = "gelu"
    layer_scale: float = 0.0
    rotary_base: float = 0.0
    key_bias: bool = True
    head_norm: bool = False
    patch_bias: bool = True
    first_norm: bool = False
    epsilon: float = 1e-6
    drop_path: float = 0.0

    min_size = 32

    @classmethod
    def adapt_spec(cls, spec: PretrainedSpec, leaves: Mapping[str, Any]) -> PretrainedSpec:
        """Return the facts with the grid for which a file has positions, and the size of its images."""
        model = cls(0, **{**MODELS[spec.model].options, **spec.options})
        positions = leaves.get("params/embeddings/positions")
        if positions is None or positions.ndim != 3 or not model.grid:
            return spec
        count = positions.shape[1] - model.class_position
        side = math.isqrt(max(0, count))
        if side == model.grid or side**2 != count or not count:
            return spec
        options = {**spec.options, "grid": side}
        return dataclasses.replace(spec, options=options, image_size=side * model.patch)

    def named_stages(self) -> Sequence[tuple[str, StageFactory]]:
        self._check_attributes()
        embeddings = partial(
            Embeddings, self.patch, self.width, self.grid, self.class_token, self.class_position, self.registers,
            self.antialias, self.patch_bias, self.first_norm, self.epsilon, self.dtype, name="embeddings",
        )  # fmt: skip
        stages: list[tuple[str, StageFactory]] = [("embeddings", embeddings)]
        for i, rate in enumerate(linear_drop_rates(self.drop_path, [self.depth])[0], start=1):
            layer = partial(
                Layer, self.heads, self.hidden, self.activation, self.layer_scale, self.key_bias, self.head_norm,
                self.rotary_base, self.epsilon, rate, self.dtype, name=f"layer{i}",
            )  # fmt: skip
            stages.append((f"layer{i}", layer))
        stages.append(("norm", partial(final_norm, self.epsilon, self.dtype)))
        if self.pooling == "attention":
            pool = partial(AttentionPool, self.heads, self.hidden, self.activation, self.epsilon, self.dtype)
            stages.append(("pool", partial(pool, name="pool")))
        return stages

    def stage_inputs(self, x: jax.Array) -> tuple[Grid]:
        """Return the grid of patches of images (N, H, W, C), or that of tokens (N, L, D) of square images."""
        return (self._grid(x.shape[1:3] if x.ndim == 4 else (), x.shape[1]),)

    def _grid(self, size: Sequence[int], tokens: int) -> Grid:
        if size:
            return Grid(size[0] // self.patch, size[1] // self.patch)
        side = math.isqrt(tokens - self.class_token - self.registers)
        return Grid(side, side)

    def map_stage(self) -> str:
        """Return the stage before the last attention, since after it the class token no longer reads the patches."""
        names = [name for name in self.stage_names() if name != "pool"]
        layers = [name for name in names if name.startswith("layer")]
        return names[names.index(layers[-1]) - 1] if self.pooling == "class" and layers else names[-1]

    def to_map(self, x: jax.Array, size: Sequence[int] = ()) -> jax.Array:
        """Return the tokens of the patches (N, L, D) as a map; features (N, D) are a map of one position."""
        if x.ndim == 2:
            return x[:, None, None]
        grid = self._grid(size, x.shape[1])
        return x[:, x.shape[1] - grid.rows * grid.columns :].reshape(x.shape[0], *grid, x.shape[-1])

    def pool(self, x: jax.Array) -> jax.Array:
        """Return the features (N, D) of tokens (N, L, D), or those that attention has pooled."""
        if x.ndim == 2:
            return x
        if self.pooling == "class":
            return x[:, 0]
        return x[:, self.class_token + self.registers :].astype(jnp.float32).mean(axis=1)

    def _check_attributes(self) -> None:
        for name, choices in (("activation", (*ACTIVATIONS, SWIGLU)), ("pooling", POOLINGS)):
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"unknown {name} {value!r}; {nearest(value, choices)}")
        if not self.heads or self.width % self.heads:
            raise UserError(f"width={self.width}: not a multiple of heads={self.heads}; choose one")
        if self.pooling == "class" and not self.class_token:
            raise UserError("pooling='class' needs class_token=True; choose another pooling")
        if self.rotary_base and self.width // self.heads % 4:
            raise UserError(f"width={self.width}: rotary positions need a multiple of 4 a head; choose one")


# ---- the networks and their weights. Facts of files are from timm 1.0.31, input facts of Hugging Face's from the image
# processors of transformers 5.24, and from the evaluation of facebookresearch/dinov2. Hubs whose name neither has are
# left out.

SIZES: Mapping[str, Mapping[str, int]] = {  # table 1 of ViT, and of DeiT
    "tiny": {"width": 192, "heads": 3, "hidden": 768},
    "small": {"width": 384, "heads": 6, "hidden": 1536},
    "base": {},
    "large": {"width": 1024, "depth": 24, "heads": 16, "hidden": 4096},
}
_HALF = {"scaling": "tf", "interpolation": "bicubic"}  # pixels from -1 to 1
_IMAGENET = {"scaling": "torch", "interpolation": "bicubic"}
_CLIP = {"scaling": "clip", "interpolation": "bicubic"}
_MEAN_CLIP, _STD_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
register_scaling("clip", Scaling("rgb", 1 / 255, _MEAN_CLIP, _STD_CLIP))
_NC, _APACHE, _DINOV3_LICENCE = "CC-BY-NC-4.0", "Apache-2.0", "DINOv3 licence"
_TIMM: Mapping[str, Any] = {"antialias": True}  # as timm interpolates positions


def _register(name: str, options: Mapping[str, Any], layout: str, *weights: PretrainedSpec) -> None:
    """Register a network with facts of its files, and their tables; ``layout`` is that of Hugging Face's."""
    layouts = {spec.source: layout if spec.source == "huggingface" else spec.source for spec in weights}
    depth = options.get("depth", ViT.depth)
    tables = {source: make_table(layout, depth) for source, layout in layouts.items()}
    register_model(name, ViT, options, tables=tables, weights=weights)


def _timm(hub: str, parameters: int, licence: str = _APACHE, **facts: Any) -> PretrainedSpec:
    """Return the facts of a file of timm; the number of parameters is that of its network."""
    facts = {"num_classes": 0, "crop": 0.9, "options": _TIMM, **facts}
    return timm_weights(hub, 0.0, 0.0, parameters, licence, **facts)


def _huggingface(hub: str = "", **facts: Any) -> PretrainedSpec:
    """Return the facts of a file of Hugging Face; those without ``hub`` are read from a local file."""
    return PretrainedSpec("", "huggingface", hub=hub, **{"num_classes": 0, "crop": 1.0, **facts})


_LOCAL = (PretrainedSpec("", "timm", image_size=32, crop=1.0, scaling="tf"), _huggingface(image_size=32, scaling="tf"))


def _register_supervised() -> None:
    """Register ViT (augreg, arXiv:2106.10270) and DeiT."""
    rows = (
        ("tiny", 16, 5_717_416, "augreg"),
        ("small", 16, 22_050_664, "augreg"),
        ("small", 32, 22_878_952, "augreg"),
        ("base", 16, 86_567_656, "augreg2"),
        ("base", 32, 88_224_232, "augreg"),
        ("large", 16, 304_326_632, "augreg"),
    )
    for size, patch, parameters, recipe in rows:
        options = {**SIZES[size], "patch": patch, "grid": 224 // patch}
        hub = f"vit_{size}_patch{patch}_224.{recipe}_in21k_ft_in1k"
        timm = _timm(hub, parameters, num_classes=1000, **_HALF)
        google = "google/vit-base-patch16-224" if (size, patch) == ("base", 16) else ""
        facts = {"num_classes": 1000, "scaling": "tf", "options": {"epsilon": 1e-12}}
        _register(f"vit_{size}{patch}", options, "vit", timm, _huggingface(google, **facts))
    for size, parameters in (("tiny", 5_717_416), ("small", 22_050_664), ("base", 86_567_656)):
        timm = _timm(f"deit_{size}_patch16_224.fb_in1k", parameters, num_classes=1000, **_IMAGENET)
        _register(f"deit_{size}16", SIZES[size], "", timm)


def _register_self_supervised() -> None:
    """Register MAE, DINO, and DINOv2 and DINOv3."""
    for size, parameters in (("base", 85_798_656), ("large", 303_301_632)):
        timm = _timm(f"vit_{size}_patch16_224.mae", parameters, _NC, **_IMAGENET)
        hub = "facebook/vit-mae-base" if size == "base" else ""
        theirs = _huggingface(hub, options={"epsilon": 1e-12}, scaling="torch")
        _register(f"mae_{size}16", SIZES[size], "vit", timm, theirs)
    rows = (("small", 16, 21_665_664), ("small", 8, 21_670_272), ("base", 16, 85_798_656), ("base", 8, 85_807_872))
    for size, patch, parameters in rows:
        options = {**SIZES[size], "patch": patch, "grid": 224 // patch}
        timm = _timm(f"vit_{size}_patch{patch}_224.dino", parameters, **_IMAGENET)
        _register(f"dino_{size}{patch}", options, "", timm)
    for size, plain, with_registers in (
        ("small", 22_056_192, 22_057_344),
        ("base", 86_579_712, 86_582_016),
        ("large", 304_367_616, 304_370_688),
    ):
        options = {**SIZES[size], "patch": 14, "grid": 37, "layer_scale": 1e-5}
        for registers, parameters in ((0, plain), (4, with_registers)):
            hub = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m"
            timm_options = {**_TIMM, "class_position": not registers}
            facts = {"image_size": 518, "crop": 1.0, "options": timm_options, **_IMAGENET}
            facebook = f"facebook/dinov2{'-with-registers' if registers else ''}-base" if size == "base" else ""
            theirs = _huggingface(facebook, crop=0.875, options={"antialias": bool(registers)}, **_IMAGENET)
            name = f"dinov2_{size}14{'_reg' if registers else ''}"
            timm = _timm(hub, parameters, **facts)
            _register(name, {**options, "registers": registers}, "dinov2", timm, theirs)
    rotary = {"grid": 0, "rotary_base": 100.0, "key_bias": False, "registers": 4, "layer_scale": 1e-5, "epsilon": 1e-5}
    for size in ("small", "base", "large"):
        hub = "facebook/dinov3-vits16-pretrain-lvd1689m" if size == "small" else ""
        theirs = _huggingface(hub, scaling="torch", licence=_DINOV3_LICENCE)
        _register(f"dinov3_{size}16", {**SIZES[size], **rotary}, "dinov3", theirs)


def _register_with_texts() -> None:
    """Register the image towers of CLIP and SigLIP; the head of timm's CLIP is the projection to the texts.

    Activations are those of the training: timm's networks of these names compute the exact GELU.
    """
    clip = {"patch_bias": False, "first_norm": True, "epsilon": 1e-5, "activation": "quick_gelu"}
    for size, patch, joint, parameters, crop in (
        ("base", 32, 512, 87_849_728, 0.9),
        ("base", 16, 512, 86_193_152, 0.9),
        ("large", 14, 768, 303_966_976, 1.0),
    ):
        options = {**SIZES[size], **clip, "patch": patch, "grid": 224 // patch}
        hub = f"vit_{size}_patch{patch}_clip_224.openai"
        timm = _timm(hub, parameters, **{**_CLIP, "crop": crop, "num_classes": joint})
        openai = "openai/clip-vit-base-patch32" if patch == 32 else ""
        theirs = _huggingface(openai, **_CLIP)
        of_openclip = dataclasses.replace(theirs, source="openclip", hub="")
        _register(f"clip_{size}{patch}", options, "clip", timm, theirs, of_openclip)
    siglip = {"class_token": False, "class_position": False, "pooling": "attention", "activation": "gelu_pytorch_tanh"}
    for name, kind in (("siglip", "webli"), ("siglip2", "v2_webli")):
        timm = _timm(f"vit_base_patch16_siglip_224.{kind}", 92_884_224, **_HALF)
        theirs = _huggingface(f"google/{name}-base-patch16-224", **_HALF)
        _register(f"{name}_base16", siglip, "siglip", timm, theirs)


_register_supervised()
_register_self_supervised()
_register_with_texts()
_register("vit_nano8", {"patch": 8, "width": 48, "depth": 3, "heads": 3, "hidden": 96, "grid": 4}, "vit", *_LOCAL)
