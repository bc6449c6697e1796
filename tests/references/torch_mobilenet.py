"""MobileNetV2 in plain PyTorch with torchvision's parameter names."""

from torch import Tensor, nn

# (expansion, channels, blocks, stride of the first block) of each stage
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def conv_norm(channels: int, features: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return convolution, BatchNorm and ReLU6."""
    conv = nn.Conv2d(channels, features, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(features), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand by a 1x1, filter each channel, project by a linear 1x1; added to the input where the shape stays."""

    def __init__(self, channels: int, features: int, stride: int, expansion: int):
        super().__init__()
        wide = channels * expansion
        layers: list[nn.Module] = [conv_norm(channels, wide, 1)] if expansion > 1 else []
        layers.append(conv_norm(wide, wide, 3, stride, groups=wide))
        layers += [nn.Conv2d(wide, features, 1, bias=False), nn.BatchNorm2d(features)]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and channels == features

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """(N, 3, H, W) -> (logits (N, K), endpoints ``stem``, ``stage1`` to ``stage7``, ``final``, ``features``)."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        layers: list[nn.Module] = [conv_norm(3, 32, 3, stride=2)]
        self.ends = {0: "stem"}  # index of a layer -> endpoint
        channels = 32
        for stage, (expansion, features, repeats, stride) in enumerate(STAGES, start=1):
            for i in range(repeats):
                layers.append(InvertedResidual(channels, features, stride if i == 0 else 1, expansion))
                channels = features
            self.ends[len(layers) - 1] = f"stage{stage}"
        layers.append(conv_norm(channels, 1280, 1))
        self.ends[len(layers) - 1] = "final"
        self.features = nn.Sequential(*layers)
        self.classifier = nn.ModuleDict({"1": nn.Linear(1280, classes)})  # torchvision's 0 is dropout

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        end: dict[str, Tensor] = {}
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.ends:
                end[self.ends[i]] = x
        end["features"] = x.mean(dim=(2, 3))
        return self.classifier["1"](end["features"]), end
