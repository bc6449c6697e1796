"""VGG networks (Simonyan and Zisserman 2015, arXiv:1409.1556), with and without BatchNorm."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax

from tl_jax.models import keras_names
from tl_jax.models.backbone import Backbone, StageFactory
from tl_jax.models.layers import Conv
from tl_jax.models.ops.batch_norm import BatchNorm
from tl_jax.models.ops.dropout import Dropout
from tl_jax.models.ops.pooling import adaptive_mean_pool, max_pool
from tl_jax.models.registry import (
    OXFORD,
    keras_weights,
    register_model,
    timm_weights,
    torchvision_weights,
)
from tl_jax.models.rules import (
    COUNTERS,
    NATIVE_RULE,
    Rule,
    Table,
    chw_to_hwc,
    keras_layer,
    torch_conv,
    torch_dense,
    torch_norm,
    transpose,
)

GRID = 7  # side of the input map of fc1


class Stage(nn.Module):
    """3x3 convolutions with ReLU, then 2x2 max pooling, (N, H, W, C) -> (N, H / 2, W / 2, width)."""

    depth: int
    width: int
    norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(1, self.depth + 1):
            x = Conv(self.width, 3, use_bias=True, dtype=self.dtype, name=f"conv{i}")(x)
            if self.norm:
                # Such weights are torchvision's: its epsilon, and its momentum of 0.1 for new statistics.
                norm = BatchNorm(epsilon=1e-5, momentum=0.9, dtype=self.dtype, name=f"bn{i}")
                x = norm(x, use_running_average=not train)
            x = nn.relu(x)
        return max_pool(x, window=2, stride=2, pad=0)


class VGG(Backbone):
    """VGG; endpoints ``stage1`` to ``stage5`` (after pooling), ``features``, and with ``fc`` also ``fc1`` and ``fc2``.

    Attributes:
        depths: convolutions in each stage.
        widths: channels of each stage.
        norm: BatchNorm after each convolution.
        fc: whether the head sits on two hidden layers over a 7x7 grid of the last map, as in the paper (other sizes are
            averaged to 7x7, as in torchvision); otherwise it sits on ``features``.
        fc_width: outputs of each hidden layer.
        fc_dropout: dropout rate of their outputs.
    """

    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    norm: bool = False
    fc: bool = True
    fc_width: int = 4096
    fc_dropout: float = 0.5

    min_size: ClassVar[int] = 32  # five halvings

    def named_stages(self) -> Sequence[tuple[str, StageFactory]]:
        sizes = enumerate(zip(self.depths, self.widths, strict=True), start=1)
        return [(f"stage{i}", partial(Stage, d, w, self.norm, self.dtype, name=f"stage{i}")) for i, (d, w) in sizes]

    def head_input(self) -> str:
        return self._last_stage() if self.fc else super().head_input()

    def _last_stage(self) -> str:
        return self.endpoint or f"stage{len(self.depths)}"

    def classify(self, endpoints: dict[str, jax.Array], train: bool) -> jax.Array:
        if not self.fc:
            return super().classify(endpoints, train)
        x = adaptive_mean_pool(endpoints[self._last_stage()], GRID)
        x = x.reshape(x.shape[0], -1)
        for name in ("fc1", "fc2"):
            x = endpoints[name] = nn.relu(nn.Dense(self.fc_width, dtype=self.dtype, name=name)(x))
            x = Dropout(self.fc_dropout, name=f"{name}_dropout")(x, train)
        return self.dense_head(x, train)


# ---- names in files of other libraries

VGG16, VGG19, TINY_DEPTHS = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4), (1, 1, 2, 1, 1)


def _vgg_keras(depths: Sequence[int]) -> Table:
    """keras.applications: ``block1_conv1/kernel``; the published files spell it ``block1_conv1_W_1``."""
    convs = [(i, j) for i, depth in enumerate(depths, start=1) for j in range(1, depth + 1)]
    layers = [(f"stage{i}/conv{j}", "conv") for i, j in convs]
    layers += [(path, "dense") for path in ("fc1", "fc2", "head")]
    rules = keras_layer(r"block(\d)_conv(\d)", r"stage\1/conv\2")
    rules += keras_layer("(fc1|fc2)", r"\1") + keras_layer("predictions", "head")
    names = keras_names.make_renamer(
        keras_layers := keras_names.make_layers(layers),
        sequential=True,
        known_names=r"block\d_conv\d|fc1|fc2|predictions",
    )
    return Table([*rules, NATIVE_RULE], map_names=names, layers=keras_layers, trunk_pattern=r"block\d+_conv\d+/.*")


def _vgg_torchvision(depths: Sequence[int], norm: bool) -> Table:
    """torchvision: ``features.0.weight``, with all layers numbered; ``classifier.0``, ``.3``, ``.6``."""
    dense = [("classifier.0", "fc1", chw_to_hwc), ("classifier.3", "fc2", transpose)]
    dense.append(("classifier.6", "head", transpose))
    return _vgg_torch(depths, norm, dense)


def _vgg_timm(depths: Sequence[int], norm: bool) -> Table:
    """timm: the hidden layers are convolutions, (4096, 512, 7, 7) and (4096, 4096, 1, 1)."""
    dense = [("pre_logits.fc1", "fc1", chw_to_hwc), ("pre_logits.fc2", "fc2", transpose)]
    dense.append(("head.fc", "head", transpose))
    return _vgg_torch(depths, norm, dense)


def _vgg_torch(depths: Sequence[int], norm: bool, dense: Sequence) -> Table:
    rules: list[Rule] = []
    index = 0
    for i, depth in enumerate(depths, start=1):
        for j in range(1, depth + 1):
            rules += torch_conv(rf"features\.{index}", f"stage{i}/conv{j}")
            if norm:
                rules += torch_norm(rf"features\.{index + 1}", f"stage{i}/bn{j}")
            index += 3 if norm else 2  # convolution, BatchNorm, ReLU
        index += 1  # pooling
    for name, path, transform in dense:
        rules += torch_dense(name.replace(".", r"\."), path, transform)
    return Table(rules, COUNTERS)


def vgg_tables(depths: Sequence[int], norm: bool = False) -> dict[str, Table]:
    """Return the tables by source; Keras has no VGG with BatchNorm."""
    keras = {} if norm else {"keras": _vgg_keras(depths)}
    return {**keras, "torchvision": _vgg_torchvision(depths, norm), "timm": _vgg_timm(depths, norm)}


# ---- the networks of the family, and their weights

_TINY = {"depths": TINY_DEPTHS, "widths": (4, 8, 8, 16, 16), "fc_width": 32}

register_model(
    "vgg16",
    VGG,
    tables=vgg_tables(VGG16),
    weights=(
        keras_weights(
            "vgg16/vgg16_*",
            OXFORD,
            71.3,
            90.1,
            138_357_544,
            md5=("64373286793e3c8b2b4e3219cbf3544b", "6d6bbae143d832006294945121d1f1fc"),
            scaling="caffe",
        ),
        torchvision_weights("vgg16-397923af.pth", 71.592, 90.382, 138_357_544),
        timm_weights(
            "vgg16.tv_in1k",
            71.592,
            90.384,
            138_357_544,
            licence="BSD-3-Clause",
            sha256="57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",
        ),
    ),
)
register_model(
    "vgg19",
    VGG,
    {"depths": VGG19},
    tables=vgg_tables(VGG19),
    weights=(
        keras_weights(
            "vgg19/vgg19_*",
            OXFORD,
            71.3,
            90.0,
            143_667_240,
            md5=("cbe5617147190e668d6c5d5026f83318", "253f8cb515780f3b799900260a226db6"),
            scaling="caffe",
        ),
        torchvision_weights("vgg19-dcbb9e9d.pth", 72.376, 90.876, 143_667_240),
        timm_weights(
            "vgg19.tv_in1k",
            72.378,
            90.874,
            143_667_240,
            licence="BSD-3-Clause",
            sha256="11aea017b543ff59233749d8f1cf544cda749378f5790d2fedab841fb86b7669",
        ),
    ),
)
register_model(
    "vgg16_bn",
    VGG,
    {"norm": True},
    tables=vgg_tables(VGG16, norm=True),
    weights=(
        torchvision_weights("vgg16_bn-6c64b313.pth", 73.36, 91.516, 138_365_992),
        timm_weights(
            "vgg16_bn.tv_in1k",
            73.37,
            91.514,
            138_365_992,
            licence="BSD-3-Clause",
            sha256="88bbedbc8e780413736db38ac4efd41b06fc0e93fd5b8879b584bba63a950129",
        ),
    ),
)
register_model(
    "vgg19_bn",
    VGG,
    {"depths": VGG19, "norm": True},
    tables=vgg_tables(VGG19, norm=True),
    weights=(
        torchvision_weights("vgg19_bn-c79401a0.pth", 74.218, 91.842, 143_678_248),
        timm_weights(
            "vgg19_bn.tv_in1k",
            74.216,
            91.844,
            143_678_248,
            licence="BSD-3-Clause",
            sha256="f8249087e63bae61c6166bb23d7c26efe1b2a43fd9fb5cd60ac6ce00535ba312",
        ),
    ),
)
# All kinds of layers of the family, for tests and smoke tests.
register_model("vgg16_tiny", VGG, _TINY, tables=vgg_tables(TINY_DEPTHS), like="vgg16")
# All kinds of layers of the family, for tests and smoke tests.
register_model(
    "vgg16_bn_tiny", VGG, {**_TINY, "norm": True}, tables=vgg_tables(TINY_DEPTHS, norm=True), like="vgg16_bn"
)
