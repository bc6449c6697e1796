"""Inception v3 in plain PyTorch with torchvision's parameter names."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, max_pool2d

# A branch is a chain of (name, channels, (kernel height, width)); a list of two at its end is a fork, concatenated.
Branch = tuple[Any, ...]


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm with epsilon 1e-3, ReLU; padded at stride 1 unless ``pad`` is false."""

    def __init__(self, channels: int, features: int, kernel: tuple[int, int], stride: int = 1, pad: bool = True):
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad and stride == 1 else 0
        self.conv = nn.Conv2d(channels, features, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(features, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class Mixed(nn.Module):
    """Branches side by side and pooling: average with a 1x1 after it, or, where the block halves the map, maximum."""

    def __init__(self, channels: int, branches: tuple[Branch, ...], pooled: int):
        super().__init__()
        # Every step as a list of what runs side by side: of one convolution, but for forks.
        self.branches = [[step if isinstance(step, list) else [step] for step in branch] for branch in branches]
        self.pooled = pooled
        self.channels = pooled or channels  # of the output
        for branch in self.branches:
            before = channels
            for i, fork in enumerate(branch):
                stride = 2 if not pooled and i == len(branch) - 1 else 1
                for name, features, kernel in fork:
                    self.add_module(name, ConvNorm(before, features, kernel, stride))
                before = sum(features for _, features, _ in fork)
            self.channels += before
        if pooled:
            self.branch_pool = ConvNorm(channels, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for branch in self.branches:
            y = x
            for fork in branch:
                y = torch.cat([getattr(self, name)(y) for name, _, _ in fork], 1)
            outs.append(y)
        # The mean counts the padding, in PyTorch's default.
        outs.append(self.branch_pool(avg_pool2d(x, 3, 1, padding=1)) if self.pooled else max_pool2d(x, 3, 2))
        return torch.cat(outs, 1)


def chain(name: str, *steps: tuple[int, int, int]) -> Branch:
    """Return a branch of convolutions ``name_1``, ``name_2``, ... of (channels, kernel height, width)."""
    return tuple((f"{name}_{i}", features, (h, w)) for i, (features, h, w) in enumerate(steps, start=1))


def block_a(channels: int, pooled: int) -> Mixed:
    """35 x 35: 1x1, 5x5, two 3x3."""
    double = chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3))
    one = (("branch1x1", 64, (1, 1)),)
    return Mixed(channels, (one, chain("branch5x5", (48, 1, 1), (64, 5, 5)), double), pooled)


def block_b(channels: int) -> Mixed:
    """35 x 35 -> 17 x 17."""
    double = chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3))
    return Mixed(channels, ((("branch3x3", 384, (3, 3)),), double), pooled=0)


def block_c(channels: int, width: int) -> Mixed:
    """17 x 17: 1x1, and 7x7 as rows and columns, once and twice."""
    single = chain("branch7x7", (width, 1, 1), (width, 1, 7), (192, 7, 1))
    double = chain("branch7x7dbl", (width, 1, 1), (width, 7, 1), (width, 1, 7), (width, 7, 1), (192, 1, 7))
    return Mixed(channels, ((("branch1x1", 192, (1, 1)),), single, double), pooled=192)


def block_d(channels: int) -> Mixed:
    """17 x 17 -> 8 x 8."""
    long = chain("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3))
    return Mixed(channels, (chain("branch3x3", (192, 1, 1), (320, 3, 3)), long), pooled=0)


def block_e(channels: int) -> Mixed:
    """8 x 8: 1x1, and 3x3 as a row beside a column."""
    single = (("branch3x3_1", 384, (1, 1)), [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))])
    fork = [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))]
    double = (*chain("branch3x3dbl", (448, 1, 1), (384, 3, 3)), fork)
    return Mixed(channels, ((("branch1x1", 320, (1, 1)),), single, double), pooled=192)


class Auxiliary(nn.Module):
    """The second classifier, on 17 x 17 maps."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.conv0 = ConvNorm(channels, 128, (1, 1))
        self.conv1 = ConvNorm(128, 768, (5, 5), pad=False)
        self.fc = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.conv0(avg_pool2d(x, 5, 3)))
        return self.fc(torch.flatten(adaptive_avg_pool2d(x, (1, 1)), 1))


class InceptionV3(nn.Module):
    """(N, 3, H, W) -> (logits (N, K), endpoints ``stem``, ``mixed0`` to ``mixed10``, ``stage1`` to ``stage3``,
    ``features``, and, from 299 x 299, ``aux_logits``).

    With ``transform_input``, as torchvision's own weights want it, inputs normalised by ImageNet's mean and deviation
    are brought to [-1, 1] first.
    """

    MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")

    def __init__(self, classes: int = 1000, transform_input: bool = False):
        super().__init__()
        self.transform_input = transform_input
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, (3, 3), pad=False)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, (3, 3), pad=False)
        makers = [lambda c, p=p: block_a(c, p) for p in (32, 64, 64)] + [block_b]
        makers += [lambda c, w=w: block_c(c, w) for w in (128, 160, 160, 192)] + [block_d, block_e, block_e]
        channels = 192
        for name, make in zip(self.MIXED, makers, strict=True):
            block = make(channels)
            self.add_module(f"Mixed_{name}", block)
            channels = block.channels
        self.AuxLogits = Auxiliary(768, classes)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.transform_input:
            mean, std = (x.new_tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            x = x * (std / 0.5) + (mean - 0.5) / 0.5
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(x, 3, 2)))
        end = {"stem": max_pool2d(x, 3, 2)}
        x = end["stem"]
        for i, name in enumerate(self.MIXED):
            x = end[f"mixed{i}"] = getattr(self, f"Mixed_{name}")(x)
        end |= {"stage1": end["mixed2"], "stage2": end["mixed7"], "stage3": end["mixed10"]}
        if min(end["mixed7"].shape[2:]) >= 17:  # smaller maps are below the 5x5 kernel
            end["aux_logits"] = self.AuxLogits(end["mixed7"])
        end["features"] = x.mean(dim=(2, 3))
        return self.fc(end["features"]), end
