"""Plain PyTorch models by our names, filled by ``draw``, and their outputs in double precision."""

import copy
import itertools
import re
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from tests.references.draw import draw
from tests.references.torch_inception import InceptionV3
from tests.references.torch_mobilenet import STAGES, MobileNetV2
from tests.references.torch_resnet import DEPTHS, ResNet
from tests.references.torch_vgg import VGG

MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "vgg16": lambda: VGG(16, norm=False),
    "vgg19": lambda: VGG(19, norm=False),
    "vgg16_bn": lambda: VGG(16, norm=True),
    "vgg19_bn": lambda: VGG(19, norm=True),
    **{f"resnet{depth}": lambda depth=depth: ResNet(depth) for depth in DEPTHS},
    "inception_v3": lambda: InceptionV3(transform_input=True),  # as torchvision's weights want it
    "mobilenet_v2": MobileNetV2,
}

_FIRST = tuple(itertools.accumulate((repeats for _, _, repeats, _ in STAGES), initial=0))  # block of each stage


def build(name: str, seed: int) -> nn.Module:
    """Return a model with a head of 1,000 classes, in evaluation mode, its parameters and statistics from ``draw``."""
    with torch.device("meta"):
        model = MODELS[name]()
    model = model.to_empty(device="cpu").eval()
    for key, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(draw(key, tuple(tensor.shape), seed)))
    return model


def outputs(model: nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return endpoints of ``images`` (N, H, W, 3) in float64, maps as (N, H, W, C), ``features`` and ``logits``."""
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        logits, ends = double(torch.from_numpy(images).double().permute(0, 3, 1, 2))
    ends = {"logits": logits, **ends}
    return {name: np.moveaxis(end.numpy(), 1, -1) if end.ndim == 4 else end.numpy() for name, end in ends.items()}


def headless(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without its classifiers."""
    return {name: tensor for name, tensor in state.items() if not re.match(r"fc\.|classifier\.|AuxLogits\.", name)}


def without_head(ends: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return ``outputs`` without those of classifiers."""
    return {name: end for name, end in ends.items() if name not in ("logits", "fc1", "fc2", "aux_logits")}


def to_timm(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of a VGG or MobileNetV2 under timm's names, VGG's dense layers as convolutions."""
    return dict((_timm_mobilenet if name.startswith("mobilenet") else _timm_vgg)(*item) for item in state.items())


def _timm_vgg(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    for theirs, ours in (("pre_logits.fc1", "classifier.0"), ("pre_logits.fc2", "classifier.3")):
        if name == f"{ours}.weight":
            tensor = tensor.reshape(4096, -1, *((7, 7) if theirs.endswith("fc1") else (1, 1)))
        name = name.replace(ours, theirs)
    return name.replace("classifier.6", "head.fc"), tensor


def _timm_mobilenet(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    match = re.fullmatch(r"features\.(\d+)\.(conv\.)?([\d.]+)\.(\w+)", name)
    if match is None:
        return name.replace("classifier.1", "classifier"), tensor
    index, part, leaf = int(match[1]), match[3], match[4]
    if not match[2]:
        names = {(0, "0"): "conv_stem", (0, "1"): "bn1", (18, "0"): "conv_head", (18, "1"): "bn2"}
        return f"{names[index, part]}.{leaf}", tensor
    block = index - 1
    stage = next(i for i, (first, end) in enumerate(zip(_FIRST, _FIRST[1:], strict=False)) if first <= block < end)
    names = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
    if stage == 0:  # not expanded
        names = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
    return f"blocks.{stage}.{block - _FIRST[stage]}.{names[part]}.{leaf}", tensor
