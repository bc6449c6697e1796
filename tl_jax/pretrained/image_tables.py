"""Conversion tables of the image networks by model and source: ResNet (v1, v2), VGG, InceptionV3, MobileNetV2.

Those of EfficientNet-Lite are in ``efficientnet_table``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tl_jax.pretrained import efficientnet_table, keras_names
from tl_jax.pretrained.convert import (
    COUNTERS,
    NATIVE_RULE,
    Rule,
    Shapes,
    Table,
    chw_to_hwc,
    flatten_rules,
    hwc1_to_hw1c,
    keras_layer,
    keras_norm,
    torch_conv,
    torch_dense,
    torch_norm,
    transpose,
)
from tl_jax.utils.errors import UserError, nearest

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
    ["branch3x3_1", "branch3x3_2a branch3x3_2b"],  # side by side
    ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a branch3x3dbl_3b"],
    _POOL,
]
Repeats = tuple[int, int, int]  # equal blocks at each size
_STEM = "1a_3x3 2a_3x3 2b_3x3 3b_1x1 4a_3x3".split()


def _inception_blocks(repeats: Repeats) -> list[list[list[str]]]:
    first, second, third = repeats
    return [*[_GRID35] * first, _TO17, *[_GRID17] * second, _TO8, *[_GRID8] * third]


def _creation_order(repeats: Repeats) -> list[str]:
    """Return the units in the order in which Keras makes them."""
    units = [f"stem/conv{i}" for i in (1, 2, 3, 4, 5)]
    for number, branches in enumerate(_inception_blocks(repeats)):
        units += [f"mixed{number}/{unit}" for branch in branches for step in branch for unit in step.split()]
    return units


def _distance(branch: Sequence[str], step: int) -> float:
    """Return how many units lie from a step to the end of its block; a pair ends in a concatenation of its own."""
    return len(branch) - step + (0.5 if " " in branch[-1] else 0.0)


def _keras_order(repeats: Repeats) -> list[str]:
    """Return the units as Keras lists them: in each block the furthest from its end first."""
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
    """torchvision and timm: ``Mixed_5b.branch1x1.conv.weight``; the auxiliary head may be there or not."""
    units = [(rf"Conv2d_{name}", f"stem/conv{i}") for i, name in enumerate(_STEM, start=1)]
    # The first of the second and third size halves the map.
    blocks = [f"5{c}" for c in "bcd"[: repeats[0]]] + [f"6{c}" for c in "abcde"[: repeats[1] + 1]]
    blocks += [f"7{c}" for c in "abc"[: repeats[2] + 1]]
    units += [(rf"Mixed_{name}\.(\w+)", rf"mixed{i}/\1") for i, name in enumerate(blocks)]
    units += [(rf"AuxLogits\.conv{i}", f"aux/conv{i + 1}") for i in (0, 1)]
    convs = flatten_rules(*(torch_conv(rf"{name}\.conv", f"{path}/conv") for name, path in units))
    norms = flatten_rules(*(torch_norm(rf"{name}\.bn", f"{path}/bn") for name, path in units))
    return Table([*convs, *norms, *torch_dense("fc", "head"), *torch_dense(r"AuxLogits\.fc", "aux/head")], COUNTERS)


def inception_tables(repeats: Repeats) -> dict[str, Table]:
    """Return the tables by source; timm's names are torchvision's."""
    torch = _inception_torchvision(repeats)
    return {"keras": _inception_keras(repeats), "torchvision": torch, "timm": torch}


MOBILENET_DEPTHS, MOBILENET_TINY = (1, 2, 3, 4, 3, 3, 1), (1, 2, 1, 1)  # blocks of each stage
_MOBILENET_UNITS = ("expand", "depthwise", "project")


def _mobilenet_blocks(depths: Sequence[int]) -> Iterator[tuple[int, int, int, tuple[str, ...]]]:
    """Yield (number from 0 on, stage, block, its units) of every block; the first expands nothing."""
    number = 0
    for stage, depth in enumerate(depths, start=1):
        for block in range(1, depth + 1):
            yield number, stage, block, _MOBILENET_UNITS[number == 0 :]
            number += 1


def _mobilenet_keras(depths: Sequence[int]) -> Table:
    """keras.applications: ``block_1_expand``; the published files, ``mobl1_conv_1_expand`` and others, go by order."""
    rules = keras_layer("Conv1", "stem/conv") + keras_norm("bn_Conv1", "stem/bn")
    rules += keras_layer("Conv_1", "final/conv") + keras_norm("Conv_1_bn", "final/bn")
    rules += keras_layer("predictions", "head")
    layers = [("stem/conv", "conv"), ("stem/bn", "norm")]
    for number, stage, block, units in _mobilenet_blocks(depths):
        for unit in units:
            theirs, ours = (
                f"block_{number}_{unit}" if number else f"expanded_conv_{unit}",
                f"stage{stage}/block{block}/{unit}",
            )
            depthwise = unit == "depthwise"
            rules += keras_layer(theirs, f"{ours}/conv", *([hwc1_to_hw1c] if depthwise else []))
            rules += keras_norm(f"{theirs}_BN", f"{ours}/bn")
            layers += [(f"{ours}/conv", "depthwise" if depthwise else "conv"), (f"{ours}/bn", "norm")]
    layers += [("final/conv", "conv"), ("final/bn", "norm"), ("head", "dense")]
    by_order = [Rule(r"(params/.*/depthwise/conv/kernel)", r"\1", hwc1_to_hw1c)]
    by_order.append(NATIVE_RULE._replace(pattern=r"((?:params|batch_stats)/(?!.*/depthwise/conv/kernel).*)"))
    trunk = r"(?:Conv1|bn_Conv1|Conv_1(_bn)?|(expanded_conv|block_\d+)_(expand|depthwise|project)(_BN)?)"
    keras_layers = keras_names.make_layers(layers)
    names = keras_names.make_renamer(keras_layers, sequential=True, known_names=f"{trunk}|predictions")
    return Table([*rules, *by_order], map_names=names, layers=keras_layers, trunk_pattern=f"{trunk}/.*")


def _mobilenet_torchvision(depths: Sequence[int]) -> Table:
    """torchvision: ``features.1.conv.0.0.weight``, blocks counted through; the last convolution is one more.

    Older files (``features.1.conv.0.weight``) count convolution, BatchNorm and ReLU6 of a block through.
    """
    last = sum(depths) + 1
    rules = torch_conv(r"features\.0\.0", "stem/conv") + torch_norm(r"features\.0\.1", "stem/bn")
    rules += torch_conv(rf"features\.{last}\.0", "final/conv") + torch_norm(rf"features\.{last}\.1", "final/bn")
    rules += torch_dense(r"classifier\.1", "head")
    for number, stage, block, units in _mobilenet_blocks(depths):
        for i, unit in enumerate(units):
            prefix, ours = rf"features\.{number + 1}\.conv\.", f"stage{stage}/block{block}/{unit}"
            conv, norm = (f"{i}", f"{i + 1}") if unit == "project" else (rf"{i}\.0", rf"{i}\.1")
            rules += torch_conv(prefix + conv, f"{ours}/conv") + torch_norm(prefix + norm, f"{ours}/bn")
    return Table(rules, COUNTERS, map_names=_modern_names)


def _modern_names(arrays: Mapping[str, np.ndarray], _: Shapes) -> Mapping[str, str]:
    """Return torchvision's names of today for those of files from before 0.3 and their like."""
    if not any(re.fullmatch(r"features\.\d+\.conv\.[4-7]\..*", name) for name in arrays):
        return {name: name for name in arrays}
    blocks = {m[1] for name in arrays if (m := re.fullmatch(r"features\.(\d+)\.conv\.[67]\..*", name))}

    def rename(match: re.Match[str]) -> str:
        """Return the name of a layer; the last convolution of a block and its BatchNorm stand for themselves."""
        unit, position = divmod(int(match[2]), 3)
        last = 2 if match[1] in blocks else 1
        return f"features.{match[1]}.conv.{unit + position if unit == last else f'{unit}.{position}'}."

    return {name: re.sub(r"^features\.(\d+)\.conv\.(\d)\.", rename, name) for name in arrays}


def _mobilenet_timm(depths: Sequence[int]) -> Table:
    """timm: ``blocks.1.0.conv_pw.weight``, stages and blocks counted from 0."""
    rules = torch_conv("conv_stem", "stem/conv") + torch_norm("bn1", "stem/bn")
    rules += torch_conv("conv_head", "final/conv") + torch_norm("bn2", "final/bn") + torch_dense("classifier", "head")
    for number, stage, block, units in _mobilenet_blocks(depths):
        names = ("conv_pw", "conv_dw", "conv_pwl") if number else ("conv_dw", "conv_pw")
        for i, (unit, name) in enumerate(zip(units, names, strict=True), start=1):
            prefix, ours = rf"blocks\.{stage - 1}\.{block - 1}\.", f"stage{stage}/block{block}/{unit}"
            rules += torch_conv(prefix + name, f"{ours}/conv") + torch_norm(f"{prefix}bn{i}", f"{ours}/bn")
    return Table(rules, COUNTERS)


def mobilenet_tables(depths: Sequence[int]) -> dict[str, Table]:
    """Return the tables by source."""
    return {
        "keras": _mobilenet_keras(depths),
        "torchvision": _mobilenet_torchvision(depths),
        "timm": _mobilenet_timm(depths),
    }


VGG16, VGG19, VGG_TINY = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4), (1, 1, 2, 1, 1)


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
    """torchvision: ``features.0.weight``, every layer counted; ``classifier.0``, ``.3``, ``.6``."""
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


def vgg_tables(depths: Sequence[int], norm: bool) -> dict[str, Table]:
    """Return the tables by source; Keras has no VGG with BatchNorm."""
    keras = {} if norm else {"keras": _vgg_keras(depths)}
    return {**keras, "torchvision": _vgg_torchvision(depths, norm), "timm": _vgg_timm(depths, norm)}


_TOP = "(?:probs|predictions)"  # the published file's name (Keras 2), and that of later versions


def _resnet_keras(depths: Sequence[int]) -> Table:
    """keras.applications: ``conv2_block1_1_conv/kernel``; block convolutions count from 1, the shortcut is 0."""
    norms = [("([123])_bn", r"bn\1"), ("0_bn", "shortcut_bn")]
    layers = [("stem/conv", "conv"), ("stem/bn", "norm")]
    for block, first in _resnet_blocks(depths):
        for unit in ("1", "2", "shortcut", "3") if first else ("1", "2", "3"):  # by distance from the sum
            conv, norm = ("shortcut_conv", "shortcut_bn") if unit == "shortcut" else (f"conv{unit}", f"bn{unit}")
            layers += [(f"{block}/{conv}", "conv"), (f"{block}/{norm}", "norm")]
    return _resnet_keras_table(keras_norm("conv1_bn", "stem/bn"), norms, layers)


def _resnet_v2_keras(depths: Sequence[int]) -> Table:
    """keras.applications' pre-activation networks: ``conv2_block1_preact_bn/gamma``."""
    norms = [("([12])_bn", r"bn\1"), ("preact_bn", "preact_bn")]
    layers = [("stem/conv", "conv")]
    for block, first in _resnet_blocks(depths):
        convs = ("conv1", "conv2", "shortcut_conv", "conv3") if first else ("conv1", "conv2", "conv3")
        layers += [(f"{block}/{conv}", "conv") for conv in convs]
        layers += [(f"{block}/{norm}", "norm") for norm in ("preact_bn", "bn1", "bn2")]
    return _resnet_keras_table(keras_norm("post_bn", "final/bn"), norms, [*layers, ("final/bn", "norm")])


def _resnet_blocks(depths: Sequence[int]) -> Iterator[tuple[str, bool]]:
    """Yield the path of each block, and whether it is the first of its stage, whose shortcut has a convolution."""
    for stage, depth in enumerate(depths, start=1):
        yield from ((f"stage{stage}/block{i}", i == 1) for i in range(1, depth + 1))


def _resnet_keras_table(
    own_rules: list[Rule], norms: Sequence[tuple[str, str]], layers: Sequence[tuple[str, str]]
) -> Table:
    """Return the table of a Keras ResNet: its own rules, those of BatchNorms in blocks, the order of its layers."""
    rules = [*own_rules, *keras_layer("conv1_conv", "stem/conv"), *keras_layer(_TOP, "head")]
    for stage in (1, 2, 3, 4):
        block, ours = rf"conv{stage + 1}_block(\d+)", rf"stage{stage}/block\1"
        rules += keras_layer(rf"{block}_([123])_conv", rf"{ours}/conv\2")
        rules += keras_layer(rf"{block}_0_conv", f"{ours}/shortcut_conv")
        for theirs, name in norms:
            rules += keras_norm(f"{block}_{theirs}", f"{ours}/" + name.replace(r"\1", r"\2"))
    keras_layers = keras_names.make_layers([*layers, ("head", "dense")])
    return Table(
        [*rules, NATIVE_RULE],
        map_names=keras_names.make_renamer(keras_layers),
        layers=keras_layers,
        trunk_pattern=r"(?:conv\d+_|post_bn).*",
    )


def _resnet_torchvision() -> Table:
    """torchvision: ``layer1.0.conv1.weight``; blocks count from 0 and ours from 1, so each has its own rules."""
    rules = torch_conv("conv1", "stem/conv") + torch_norm("bn1", "stem/bn") + torch_dense("fc", "head")
    for index in range(36):  # ResNet-152's longest stage
        theirs, ours = rf"layer(\d)\.{index}", rf"stage\1/block{index + 1}"
        rules += torch_conv(rf"{theirs}\.conv(\d)", rf"{ours}/conv\2") + torch_norm(
            rf"{theirs}\.bn(\d)", rf"{ours}/bn\2"
        )
        rules += torch_conv(rf"{theirs}\.downsample\.0", f"{ours}/shortcut_conv")
        rules += torch_norm(rf"{theirs}\.downsample\.1", f"{ours}/shortcut_bn")
    return Table(rules, COUNTERS)


RESNET_TORCHVISION = _resnet_torchvision()


def resnet_tables(depths: Sequence[int], bottleneck: bool = True) -> dict[str, Table]:
    """Return the tables by source; timm's names are torchvision's, and Keras has no networks of basic blocks."""
    torch = {"torchvision": RESNET_TORCHVISION, "timm": RESNET_TORCHVISION}
    return {"keras": _resnet_keras(depths), **torch} if bottleneck else torch


def resnet_v2_tables(depths: Sequence[int]) -> dict[str, Table]:
    """Return the tables of the networks with pre-activation by source."""
    return {"keras": _resnet_v2_keras(depths)}


_R50, _TINY = (3, 4, 6, 3), (2, 1, 1, 1)

TABLES: Mapping[str, Mapping[str, Table]] = {
    "vgg16": vgg_tables(VGG16, norm=False),
    "vgg19": vgg_tables(VGG19, norm=False),
    "vgg16_bn": vgg_tables(VGG16, norm=True),
    "vgg19_bn": vgg_tables(VGG19, norm=True),
    "vgg16_tiny": vgg_tables(VGG_TINY, norm=False),
    "vgg16_bn_tiny": vgg_tables(VGG_TINY, norm=True),
    "resnet18": resnet_tables((2, 2, 2, 2), bottleneck=False),
    "resnet34": resnet_tables(_R50, bottleneck=False),
    "resnet50": resnet_tables(_R50),
    "resnet101": resnet_tables((3, 4, 23, 3)),
    "resnet152": resnet_tables((3, 8, 36, 3)),
    "resnet50_tiny": resnet_tables(_TINY),
    "resnet50v2": resnet_v2_tables(_R50),
    "resnet50v2_tiny": resnet_v2_tables((2, 2, 1, 2)),
    "inception_v3": inception_tables((3, 4, 2)),
    "inception_v3_tiny": inception_tables((1, 1, 1)),
    "mobilenet_v2": mobilenet_tables(MOBILENET_DEPTHS),
    **{f"mobilenet_v2_{width}": mobilenet_tables(MOBILENET_DEPTHS) for width in ("035", "050", "075", "130", "140")},
    "mobilenet_v2_tiny": mobilenet_tables(MOBILENET_TINY),
    **efficientnet_table.TABLES,
}

# This project's own files: names are our paths already.
_NATIVE_TABLE = Table([NATIVE_RULE])


def known_sources(model: str) -> tuple[str, ...]:
    """Return the sources whose files of ``model`` can be read."""
    return (*TABLES.get(model, {}), "tl_jax")


def conversion_table(model: str, source: str) -> Table:
    """Return the conversion table of a source; a UserError names the known ones."""
    if source == "tl_jax":
        return _NATIVE_TABLE
    if source not in TABLES.get(model, {}):
        raise UserError(f"{model!r} has no weights of {source!r}; {nearest(source, known_sources(model))}")
    return TABLES[model][source]
