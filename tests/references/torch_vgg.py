"""VGG-16 and VGG-19, with and without BatchNorm, in plain PyTorch with torchvision's parameter names."""

import torch
from torch import Tensor, nn

DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """(N, 3, H, W) -> (logits (N, K), endpoints ``stage1`` to ``stage5``, ``features``, ``fc1``, ``fc2``)."""

    def __init__(self, depth: int, norm: bool, classes: int = 1000):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for repeats, width in zip(DEPTHS[depth], (64, 128, 256, 512, 512), strict=True):
            for _ in range(repeats):
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width), nn.ReLU()] if norm else [nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        # ReLU and dropout stand between these in torchvision, hence the numbers of the keys.
        shapes = {"0": (512 * 7 * 7, 4096), "3": (4096, 4096), "6": (4096, classes)}
        self.classifier = nn.ModuleDict({key: nn.Linear(*shape) for key, shape in shapes.items()})

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        end: dict[str, Tensor] = {}
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                end[f"stage{len(end) + 1}"] = x
        end["features"] = x.mean(dim=(2, 3))
        x = nn.functional.adaptive_avg_pool2d(x, (7, 7))
        end["fc1"] = self.classifier["0"](torch.flatten(x, 1)).relu()
        end["fc2"] = self.classifier["3"](end["fc1"]).relu()
        return self.classifier["6"](end["fc2"]), end
