"""InceptionV3 (Szegedy et al. 2016, arXiv:1512.00567), in the layouts of published weights.

    layout        mean pooling counts padding   BatchNorm scale   momentum kept   weights
    "keras"       no                            no                0.99            keras.applications
    "torchvision" yes                           yes               0.9             torchvision, timm

The units of a block have torchvision's names; blocks are numbered as in Keras.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tl_jax.models import keras_names
from tl_jax.models.backbone import Backbone, StageFactory
from tl_jax.models.layers import ConvNorm, Norm, glorot_uniform
from tl_jax.models.ops.pooling import max_pool, mean_pool
from tl_jax.models.registry import (
    GOOGLE,
    KERAS_LAYOUT,
    TORCH_LAYOUT,
    keras_weights,
    register_model,
    timm_weights,
    torchvision_weights,
)
from tl_jax.models.rules import (
    COUNTERS,
    NATIVE_RULE,
    Table,
    flatten_rules,
    keras_layer,
    torch_conv,
    torch_dense,
    torch_norm,
)
from tl_jax.utils.errors import UserError


class Layout(NamedTuple):
    """Differences between sources of weights."""

    count_padding: bool
    norm: Norm


LAYOUTS = {
    "keras": Layout(count_padding=False, norm=Norm(1e-3, 0.99, scale=False)),
    "torchvision": Layout(count_padding=True, norm=Norm(1e-3, 0.9)),
}


class Unit(NamedTuple):
    """One convolution with BatchNorm and ReLU; without padding at stride 2, as everywhere in InceptionV3."""

    name: str
    features: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1


Branch = Sequence[Unit | tuple[Unit, Unit]]  # a pair runs in parallel and is concatenated
POOL, MAX_POOL = "branch_pool", Unit("", 0)  # the branch after average pooling; the branch that is a max pooling


def _grid35(pool_features: int) -> list[Branch]:
    """Figure 5 of the paper."""
    return [
        [Unit("branch1x1", 64)],
        [Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, 5)],
        [Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, 3), Unit("branch3x3dbl_3", 96, 3)],
        [Unit(POOL, pool_features)],
    ]


def _to_grid17() -> list[Branch]:
    return [
        [Unit("branch3x3", 384, 3, 2)],
        [Unit("branch3x3dbl_1", 64), Unit("branch3x3dbl_2", 96, 3), Unit("branch3x3dbl_3", 96, 3, 2)],
        [MAX_POOL],
    ]


def _grid17(features: int) -> list[Branch]:
    """Figure 6: 7x7 convolutions as pairs of 1x7 and 7x1."""
    wide, high = (1, 7), (7, 1)
    units = [(features, 1), (features, high), (features, wide), (features, high), (192, wide)]
    return [
        [Unit("branch1x1", 192)],
        [Unit("branch7x7_1", features), Unit("branch7x7_2", features, wide), Unit("branch7x7_3", 192, high)],
        [Unit(f"branch7x7dbl_{i}", *unit) for i, unit in enumerate(units, start=1)],
        [Unit(POOL, 192)],
    ]


def _to_grid8() -> list[Branch]:
    units = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)]
    return [
        [Unit("branch3x3_1", 192), Unit("branch3x3_2", 320, 3, 2)],
        [Unit(f"branch7x7x3_{i}", *unit) for i, unit in enumerate(units, start=1)],
        [MAX_POOL],
    ]


def _grid8() -> list[Branch]:
    """Figure 7: the branches end in parallel 1x3 and 3x1 convolutions."""

    def pair(name: str) -> tuple[Unit, Unit]:
        return Unit(f"{name}a", 384, (1, 3)), Unit(f"{name}b", 384, (3, 1))

    return [
        [Unit("branch1x1", 320)],
        [Unit("branch3x3_1", 384), pair("branch3x3_2")],
        [Unit("branch3x3dbl_1", 448), Unit("branch3x3dbl_2", 384, 3), pair("branch3x3dbl_3")],
        [Unit(POOL, 192)],
    ]


class Mixed(nn.Module):
    """Parallel branches, concatenated along the channels: (N, H, W, C) -> (N, H', W', sum of branches)."""

    branches: Sequence[Branch]
    width: float
    layout: Layout
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return jnp.concatenate([self._branch(x, branch, train) for branch in self.branches], axis=-1)

    def _branch(self, x: jax.Array, branch: Branch, train: bool) -> jax.Array:
        for step in branch:
            if step == MAX_POOL:
                x = max_pool(x, 3, 2)
            elif isinstance(step, Unit):
                x = mean_pool(x, self.layout.count_padding) if step.name == POOL else x
                x = self._unit(x, step, train)
            else:
                x = jnp.concatenate([self._unit(x, unit, train) for unit in step], axis=-1)
        return x

    def _unit(self, x: jax.Array, unit: Unit, train: bool) -> jax.Array:
        padding = "half" if unit.stride == 1 else "valid"
        return conv_norm(unit, padding, self.width, self.layout, self.dtype)(x, train)


def conv_norm(unit: Unit, padding: str, width: float, layout: Layout, dtype: Any) -> ConvNorm:
    """Return the layers of a unit, with its channels multiplied by ``width``."""
    features = max(1, round(unit.features * width))
    return ConvNorm(features, unit.kernel, unit.stride, padding, layout.norm, nn.relu, dtype, name=unit.name)


class Stem(nn.Module):
    """Five convolutions and two poolings, (N, H, W, C) -> (N, H / 8, W / 8, 192)."""

    width: float
    layout: Layout
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layers = [
            (32, 3, 2, "valid"),
            (32, 3, 1, "valid"),
            (64, 3, 1, "half"),
            (80, 1, 1, "valid"),
            (192, 3, 1, "valid"),
        ]
        for i, (features, kernel, stride, padding) in enumerate(layers, start=1):
            unit = Unit(f"conv{i}", features, kernel, stride)
            x = conv_norm(unit, padding, self.width, self.layout, self.dtype)(x, train)
            x = max_pool(x, 3, 2) if i in (3, 5) else x
        return x


class AuxiliaryHead(nn.Module):
    """Classifier on the last 17x17 map, (N, 17, 17, C) -> (N, K); only torchvision publishes its weights."""

    num_classes: int
    width: float
    layout: Layout
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if min(x.shape[1:3]) < 17:
            raise UserError("model.aux: the auxiliary head needs images of 299x299 pixels; set config.input.size=299")
        x = nn.avg_pool(x, (5, 5), (3, 3))
        for unit in (Unit("conv1", 128), Unit("conv2", 768, 5)):
            x = conv_norm(unit, "valid", self.width, self.layout, self.dtype)(x, train)
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=glorot_uniform, name="head")(features)


class InceptionV3(Backbone):
    """InceptionV3; endpoints ``stem``, ``mixed0`` to ``mixed10``, ``features``.

    Further endpoints are ``stage1`` (the last map of 35x35 at 299 pixels), ``stage2`` (17x17) and ``stage3`` (8x8), and
    with ``aux`` the ``aux_logits`` (N, K).

    Attributes:
        aux: whether to add the auxiliary head, which is trained but not used for predictions.
        transform_input: convert inputs normalized by mean and standard deviation, torchvision's preprocessing, to
            [-1, 1], with which its weights were trained.
        width: multiplier of all channels.
        repeats: equal blocks at each of the three sizes; all but the first also have a block that halves the map.
        layout: key into ``LAYOUTS``.
    """

    aux: bool = False
    transform_input: bool = False
    width: float = 1.0
    repeats: tuple[int, int, int] = (3, 4, 2)
    layout: str = "keras"

    layouts: ClassVar[tuple[str, ...]] = tuple(LAYOUTS)
    min_size: ClassVar[int] = 75

    def named_stages(self) -> Sequence[tuple[str, StageFactory]]:
        stage_options = self.width, LAYOUTS[self.layout], self.dtype
        first, second, third = self.repeats
        blocks = [_grid35(pooled) for pooled in (32, 64, 64)[:first]]
        blocks += [_to_grid17(), *(_grid17(inner) for inner in (128, 160, 160, 192)[:second])]
        blocks += [_to_grid8(), *[_grid8()] * third]
        mixed = [
            (f"mixed{i}", partial(Mixed, branches, *stage_options, name=f"mixed{i}"))
            for i, branches in enumerate(blocks)
        ]
        return [("stem", partial(Stem, *stage_options, name="stem")), *mixed]

    def head_input(self) -> str:
        return self._last_block(2) if self.aux else super().head_input()

    def _last_block(self, stage: int) -> str:
        """Return the name of the last block at a size."""
        return f"mixed{sum(self.repeats[:stage]) + stage - 2}"

    def prepare_input(self, x: jax.Array) -> jax.Array:
        if not self.transform_input:
            return x
        std, mean = np.array([0.229, 0.224, 0.225], np.float32), np.array([0.485, 0.456, 0.406], np.float32)
        if self.channels != 3:
            std, mean = std.mean(keepdims=True), mean.mean(keepdims=True)
        return x * (std / 0.5)[None, None, None] + ((mean - 0.5) / 0.5)[None, None, None]

    def add_endpoints(self, endpoints: dict[str, jax.Array], train: bool) -> None:
        for stage in (1, 2, 3):
            if self._last_block(stage) in endpoints:
                endpoints[f"stage{stage}"] = endpoints[self._last_block(stage)]
        if self.aux and self.num_classes and "stage2" in endpoints:
            head = AuxiliaryHead(self.num_classes, self.width, LAYOUTS[self.layout], self.dtype, name="aux")
            endpoints["aux_logits"] = head(endpoints["stage2"], train)


# ---- names in files of other libraries

_POOL = ["branch_pool"]
_DOUBLE = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]
_GRID35 = [["branch1x1"], ["branch5x5_1", "branch5x5_2"], _DOUBLE, _POOL]
_TO17 = [["branch3x3"], _DOUBLE]
_GRID17 = [
    ["branch1x1"],
    [f"branch7x7_{i}" for i in (1, 2, 3)],
    [f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)],
    _POOL,
]
_TO8 = [["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)]]
_GRID8 = [
    ["branch1x1"],
    ["branch3x3_1", "branch3x3_2a branch3x3_2b"],  # in parallel
    ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a branch3x3dbl_3b"],
    _POOL,
]
Repeats = tuple[int, int, int]  # equal blocks at each size
_STEM = "1a_3x3 2a_3x3 2b_3x3 3b_1x1 4a_3x3".split()


def _inception_blocks(repeats: Repeats) -> list[list[list[str]]]:
    first, second, third = repeats
    return [*[_GRID35] * first, _TO17, *[_GRID17] * second, _TO8, *[_GRID8] * third]


def _creation_order(repeats: Repeats) -> list[str]:
    """Return the units in the order in which Keras creates them."""
    units = [f"stem/conv{i}" for i in (1, 2, 3, 4, 5)]
    for number, branches in enumerate(_inception_blocks(repeats)):
        units += [f"mixed{number}/{unit}" for branch in branches for step in branch for unit in step.split()]
    return units


def _distance(branch: Sequence[str], step: int) -> float:
    """Return the number of units from a step to the end of its block; a pair ends in a concatenation of its own."""
    return len(branch) - step + (0.5 if " " in branch[-1] else 0.0)


def _keras_order(repeats: Repeats) -> list[str]:
    """Return the units in Keras' order: in each block, those furthest from its end first."""
    units = [f"stem/conv{i}" for i in (1, 2, 3, 4, 5)]
    for number, branches in enumerate(_inception_blocks(repeats)):
        steps = [(_distance(branch, i), step) for branch in branches for i, step in enumerate(branch)]
        steps.sort(key=lambda item: -item[0])  # stable: branches stay in order
        units += [f"mixed{number}/{unit}" for _, step in steps for unit in step.split()]
    return units


def _inception_keras(repeats: Repeats) -> Table:
    """keras.applications: every layer but the top is named automatically."""
    creation_order = {unit: i for i, unit in enumerate(_creation_order(repeats))}
    layers = [
        keras_names.Layer(f"{unit}/{leaf}", kind, creation_order[unit])
        for unit in _keras_order(repeats)
        for leaf, kind in (("conv", "conv"), ("bn", "norm"))
    ]
    layers.append(keras_names.Layer("head", "dense", 0))
    rules = [*keras_layer("predictions", "head"), NATIVE_RULE]
    return Table(rules, map_names=keras_names.make_renamer(layers, known_names="predictions"), layers=layers)


def _inception_torchvision(repeats: Repeats) -> Table:
    """torchvision and timm: ``Mixed_5b.branch1x1.conv.weight``; the auxiliary head is optional."""
    units = [(rf"Conv2d_{name}", f"stem/conv{i}") for i, name in enumerate(_STEM, start=1)]
    # The first block of the second and third size halves the map.
    blocks = [f"5{c}" for c in "bcd"[: repeats[0]]] + [f"6{c}" for c in "abcde"[: repeats[1] + 1]]
    blocks += [f"7{c}" for c in "abc"[: repeats[2] + 1]]
    units += [(rf"Mixed_{name}\.(\w+)", rf"mixed{i}/\1") for i, name in enumerate(blocks)]
    units += [(rf"AuxLogits\.conv{i}", f"aux/conv{i + 1}") for i in (0, 1)]
    convs = flatten_rules(*(torch_conv(rf"{name}\.conv", f"{path}/conv") for name, path in units))
    norms = flatten_rules(*(torch_norm(rf"{name}\.bn", f"{path}/bn") for name, path in units))
    return Table([*convs, *norms, *torch_dense("fc", "head"), *torch_dense(r"AuxLogits\.fc", "aux/head")], COUNTERS)


def inception_tables(repeats: Repeats) -> dict[str, Table]:
    """Return the tables by source; timm uses torchvision's names."""
    torch = _inception_torchvision(repeats)
    return {"keras": _inception_keras(repeats), "torchvision": torch, "timm": torch}


# ---- the networks of the family, and their weights

register_model(
    "inception_v3",
    InceptionV3,
    tables=inception_tables((3, 4, 2)),
    weights=(
        keras_weights(
            "inception_v3/inception_v3_*",
            GOOGLE,
            77.9,
            93.7,
            23_851_784,
            md5=("9a0d58056eeedaa3f26cb7ebd46da564", "bcbd6486424b2319ff4ef7d526e38f63"),
            scaling="tf",
            image_size=299,
            options=KERAS_LAYOUT,
        ),
        torchvision_weights(
            "inception_v3_google-0cc3c7bd.pth",
            77.294,
            93.45,
            27_161_264,
            image_size=299,
            crop=299 / 342,
            options={**TORCH_LAYOUT, "transform_input": True},
        ),
        timm_weights(
            "inception_v3.tv_in1k",
            77.434,
            93.474,
            23_834_568,
            sha256="9c452c63a67fd03a38a78c401ba12d4be0e926df63c93403de3a29f6df20fefb",
            interpolation="bicubic",
            scaling="tf",
            image_size=299,
            options=TORCH_LAYOUT,
        ),
    ),
)
# All kinds of layers of the family, for tests and smoke tests.
register_model(
    "inception_v3_tiny",
    InceptionV3,
    {"width": 1 / 16, "repeats": (1, 1, 1)},
    tables=inception_tables((1, 1, 1)),
    like="inception_v3",
)
