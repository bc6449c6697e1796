"""Export of weights to Keras (``.weights.h5``), torchvision and timm, with their names and layouts.

The conversion tables of ``tl_jax.pretrained`` are inverted. The files are for the networks that these libraries build.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import safetensors.numpy

from tl_jax import models
from tl_jax.models.registry import PretrainedSpec
from tl_jax.models.rules import INVERSES, NATIVE_RULE, Rule, Table, keep
from tl_jax.pretrained import catalog
from tl_jax.pretrained.catalog import CATALOG
from tl_jax.pretrained.network import Pretrained
from tl_jax.utils import disk, tree
from tl_jax.utils.scaling import SCALINGS

# A table's regex is a name with groups, which the path refers to, and alternative spellings, of which the last is
# current.
_GROUP = re.compile(r"\((?!\?)([^()]*)\)")
_SPELLINGS = re.compile(r"\(\?:[^()]*?([^()|]*)\)")


class NamedArray(NamedTuple):
    """An array for another library: its name there, and the path of our leaf."""

    name: str
    path: str
    array: np.ndarray


def named_arrays(variables: Mapping[str, Any], table: Table) -> list[NamedArray]:
    """Return the leaves of a network as arrays under the names of a table's source.

    Leaves of layers that Keras names automatically keep our path.

    Args:
        variables: ``{"params": ..., "batch_stats": ...}``.
        table: conversion table of the source.
    """
    inverse_rules = [_invert_rule(rule) for rule in table.rules if rule.path != NATIVE_RULE.path]
    arrays = []
    for path, leaf in tree.flatten(variables).items():
        array = np.asarray(leaf, np.float32)
        match, name, transform = next(
            ((m, name, transform) for pattern, name, transform in inverse_rules if (m := pattern.fullmatch(path))),
            (None, path, keep),
        )
        if match is None and not table.layers:
            raise ValueError(f"no rule of the table produces {path}")
        if match is not None:
            name, array = match.expand(name), INVERSES[transform](array)
        arrays.append(NamedArray(name, path, np.ascontiguousarray(array)))
    return arrays


def join_arrays(arrays: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """Return arrays under a source's names with those joined that its files hold as one, see ``rules.Split``."""
    joined = dict(arrays)
    for split in table.splits:
        inverses = [_invert_rule(Rule(split.pattern, name)) for name in split.names]
        for name in list(joined):
            if match := inverses[0][0].fullmatch(name):
                whole = match.expand(inverses[0][1])
                parts = [joined.pop(re.sub(r"\\(\d)", lambda m, g=match: g[f"g{m[1]}"], new)) for new in split.names]
                joined[whole] = np.concatenate(parts)
    return joined


def _invert_rule(rule: Rule) -> tuple[re.Pattern[str], str, Any]:
    r"""Return the regex over our paths, the replacement that gives the source's name, and the rule's transform.

    ``layer(\d)\.0\.conv(\d)\.weight -> params/stage\1/block1/conv\2/kernel`` becomes
    ``params/stage(?P<g1>\d)/block1/conv(?P<g2>\d)/kernel -> layer\g<g1>.0.conv\g<g2>.weight``.
    """
    pieces = _GROUP.split(_SPELLINGS.sub(r"\1", rule.pattern))  # alternating text and groups
    name = "".join(rf"\g<g{i // 2 + 1}>" if i % 2 else piece.replace(r"\.", ".") for i, piece in enumerate(pieces))
    path = re.split(r"\\(\d)", rule.path)
    pattern = "".join(
        f"(?P<g{token}>{pieces[2 * int(token) - 1]})" if i % 2 else re.escape(token) for i, token in enumerate(path)
    )
    return re.compile(pattern), name, rule.transform


_KERAS_CLASSES = {"conv": "conv2d", "depthwise": "depthwise_conv2d", "norm": "batch_normalization", "dense": "dense"}


def save_keras(path: Path, variables: Mapping[str, Any], table: Table) -> None:
    """Write ``layers/CLASS_NUMBER/vars/NUMBER``: layers are counted by class, in the order of ``model.layers``.

    The layer's name is stored too, unless Keras names it automatically.

    Args:
        path: output file, ending in ``.weights.h5``, written atomically.
        variables: ``{"params": ..., "batch_stats": ...}``.
        table: conversion table of the source "keras".
    """
    leaves: dict[str, list] = {}
    for entry in named_arrays(variables, table):
        leaves.setdefault(entry.path.split("/", 1)[1].rpartition("/")[0], []).append(entry)
    counts = dict.fromkeys(_KERAS_CLASSES, 0)
    with disk.atomic_write(path) as temporary:
        with h5py.File(temporary, "w") as file:
            for layer in table.layers:
                if layer.path not in leaves:
                    continue
                number, kind = counts[layer.kind], _KERAS_CLASSES[layer.kind]
                counts[layer.kind] += 1
                group = file.create_group(f"layers/{kind}_{number}" if number else f"layers/{kind}")
                entries = leaves.pop(layer.path)
                if not entries[0].name.startswith("params/"):
                    group.attrs["name"] = entries[0].name.rpartition("/")[0]
                for i, array in enumerate(_keras_order({e.path.rpartition("/")[2]: e.array for e in entries})):
                    group[f"vars/{i}"] = array
            if leaves:
                raise ValueError(f"Keras has no layers {', '.join(sorted(leaves))}")


def _keras_order(leaves: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the arrays of a layer in Keras' order: kernel before bias, scale before offset."""
    order = ("scale", "bias", "mean", "var") if "mean" in leaves else ("kernel", "bias")
    return [leaves[name] for name in order if name in leaves]


KERAS_FILE, TORCHVISION_FILE, TIMM_FILE = "keras.weights.h5", "torchvision.safetensors", "timm.safetensors"
_KERAS_FUNCTIONS = {"vgg16": "VGG16", "vgg19": "VGG19", "inception_v3": "InceptionV3", "mobilenet_v2": "MobileNetV2"}
_KERAS_FUNCTIONS |= {
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "resnet50v2": "ResNet50V2",
}
_MIN_SIZE = 32  # smallest side in pixels in keras.applications
# Attributes without effect in evaluation, or that the other library has too.
_IGNORED_ATTRIBUTES = ("dropout", "fc_dropout", "drop_path", "fc", "aux", "transform_input")


LIBRARIES = {"keras": "Keras has", "torchvision": "torchvision has", "timm": "torchvision and timm have"}


class FrameworkFile(NamedTuple):
    """A file for another library: name, description and code that loads it; or the reason why there is none."""

    file: str = ""
    description: str = ""
    code: str = ""
    reason: str = ""


def write_weights(
    folder: Path, net: Pretrained, source: str, embeddings: bool = False, classes: Sequence[str] = ()
) -> FrameworkFile:
    """Write the weights for Keras, torchvision or timm, whichever has this network.

    Args:
        folder: output folder.
        net: the network.
        source: source of the initial weights, or of the architecture if they were random.
        embeddings: whether the head outputs embeddings rather than classes.
        classes: class names of the head, for the metadata of torchvision's file.
    """
    name, size = net.spec.model, net.spec.image_size
    has_torchvision = bool(CATALOG.get((name, "torchvision"), PretrainedSpec("", "")).parameters)
    library = "keras" if _is_keras(net, source) else "torchvision" if has_torchvision else "timm"
    published = CATALOG.get((name, library), PretrainedSpec(name, library))
    if not published.parameters:
        return FrameworkFile(reason=f"{LIBRARIES[library]} no `{name}`, so there is no file for it.")
    peer = models.create(name, net.spec.num_classes, **published.options)
    fields = [
        field.name for field in dataclasses.fields(peer) if field.name not in (*_IGNORED_ATTRIBUTES, "dtype", "parent")
    ]
    if different := [field for field in fields if getattr(net.model, field) != getattr(peer, field)]:
        return FrameworkFile(
            reason=f"{library}'s `{name}` differs in {', '.join(different)}, so there is no file for it."
        )
    patch = getattr(net.model, "patch", 1)
    if library == "timm" and size % patch:
        return FrameworkFile(reason=f"timm's `{name}` takes sides that are multiples of {patch}, so there is no file.")
    if library != "keras":
        table = catalog.conversion_table(name, library)
        arrays = join_arrays({entry.name: entry.array for entry in named_arrays(net.variables, table)}, table)
        file = TORCHVISION_FILE if library == "torchvision" else TIMM_FILE
        with disk.atomic_write(folder / file) as temporary:
            safetensors.numpy.save_file(arrays, temporary, {"format": "pt", "classes": json.dumps(list(classes))})
        if library == "timm":
            theirs = _timm_name(published)
            return FrameworkFile(file, f"the state dict of timm's `{theirs}`", _timm_loader(net, theirs))
        return FrameworkFile(file, f"the state dict of torchvision's `{name}`", _torchvision_loader(net))
    if size < _MIN_SIZE or (getattr(net.model, "fc", False) and size != published.image_size):
        return FrameworkFile(reason=f"Keras' `{name}` does not take {size} pixel images, so there is no file for it.")
    save_keras(folder / KERAS_FILE, net.variables, catalog.conversion_table(name, library))
    return FrameworkFile(
        KERAS_FILE, f"weights of `keras.applications.{_keras_function(name)[0]}`", _keras_loader(net, embeddings)
    )


def _is_keras(net: Pretrained, source: str) -> bool:
    """Return whether the network is Keras'. The layout decides; VGG's is the same in both, so its source decides."""
    if hasattr(net.model, "layout"):
        return net.model.layout == "keras"
    if "torchvision" not in catalog.known_sources(net.spec.model) or "keras" not in catalog.known_sources(
        net.spec.model
    ):
        return "keras" in catalog.known_sources(net.spec.model)
    return source == "keras" or (source not in ("torchvision", "timm") and net.spec.scaling != "torch")


def _keras_function(name: str) -> tuple[str, str]:
    """Return the function of ``keras.applications`` and its further arguments."""
    family, _, width = name.rpartition("_") if name.startswith("mobilenet_v2_") else (name, "", "")
    return _KERAS_FUNCTIONS[family], f", alpha={int(width) / 100}" if width else ""


def _keras_loader(net: Pretrained, embeddings: bool) -> str:
    size, (function, extra_arguments) = net.spec.image_size, _keras_function(net.spec.model)
    activation = None if embeddings else "softmax"
    arguments = f"weights=None, input_shape=({size}, {size}, 3){extra_arguments}"
    if hasattr(net.model, "fc") and not net.model.fc:  # the head reads the average of the last map
        model = f'base = keras.applications.{function}(include_top=False, pooling="avg", {arguments})\n'
        model += f"head = keras.layers.Dense({net.spec.num_classes}, activation={activation!r})\n"
        model += "model = keras.Model(base.input, head(base.output))"
    else:
        arguments += f", classes={net.spec.num_classes}, classifier_activation={activation!r}"
        model = f"model = keras.applications.{function}({arguments})"
    return f"""import keras
import numpy as np
{model}
model.load_weights("{KERAS_FILE}")
output = model.predict({preprocessing_code(net.spec.scaling)}, verbose=0)"""


def _torchvision_loader(net: Pretrained) -> str:
    name, arguments, head_code = net.spec.model, "", ""
    if name == "inception_v3":
        arguments = f", aux_logits={net.model.aux}, transform_input={net.model.transform_input}, init_weights=False"
    if hasattr(net.model, "fc") and not net.model.fc:  # the head reads the average of the last map
        head = f"torch.nn.Linear(512, {net.spec.num_classes})"
        head_code = "net.avgpool = torch.nn.AdaptiveAvgPool2d(1)\n"
        head_code += f"net.classifier = torch.nn.Sequential(collections.OrderedDict([('6', {head})]))\n"
    return f"""import collections
import numpy as np
import torch
import torchvision
from safetensors.torch import load_file
net = torchvision.models.{name}(num_classes={net.spec.num_classes}{arguments})
{head_code}net.load_state_dict(load_file("{TORCHVISION_FILE}"))
x = torch.from_numpy({preprocessing_code(net.spec.scaling)}).permute(0, 3, 1, 2).float()
logits = net.eval()(x)"""


def _timm_name(published: PretrainedSpec) -> str:
    """Return timm's name of a network; OpenAI's CLIP has an activation of its own."""
    name, _, weights = published.hub.removeprefix("timm/").partition(".")
    return name.replace("_clip_", "_clip_quickgelu_") if weights == "openai" else name


def _timm_loader(net: Pretrained, name: str) -> str:
    size, grid = net.spec.image_size, getattr(net.model, "grid", 0)
    any_size = ", dynamic_img_size=True" if grid and size != grid * getattr(net.model, "patch", 0) else ""
    return f"""import numpy as np
import timm
import torch
from safetensors.torch import load_file
net = timm.create_model("{name}", num_classes={net.spec.num_classes}{any_size})
shapes = net.state_dict()  # some networks of timm have 1x1 convolutions for linear layers
net.load_state_dict({{name: x.reshape(shapes[name].shape) for name, x in load_file("{TIMM_FILE}").items()}})
x = torch.from_numpy({preprocessing_code(net.spec.scaling)}).permute(0, 3, 1, 2).float()
logits = net.eval()(x)"""


def preprocessing_code(scaling: str) -> str:
    """Return NumPy code that preprocesses uint8 ``images`` (N, size, size, 3) for the network."""
    scaling_rule = SCALINGS[scaling]
    code = "images" + ("[..., ::-1]" if scaling_rule.order == "bgr" else "") + ".astype(np.float32)"
    code += f" / {1 / scaling_rule.scale:g}" if scaling_rule.scale != 1 else ""
    code += f" - {_format_values(scaling_rule.mean)}" if any(scaling_rule.mean) else ""
    return f"({code}) / {_format_values(scaling_rule.std)}" if set(scaling_rule.std) != {1.0} else code


def _format_values(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else f"np.array({list(values)})"
