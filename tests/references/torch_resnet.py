"""ResNet v1.5 in plain PyTorch with torchvision's parameter names: the stride of a Bottleneck sits in its 3x3."""

from torch import Tensor, nn

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Block(nn.Module):
    """Convolutions beside a shortcut; (N, C, H, W) -> (N, width or 4 * width, H / stride, W / stride).

    ``bottleneck`` blocks (torchvision's Bottleneck) are 1x1, 3x3, 1x1; the others (BasicBlock) 3x3, 3x3.
    """

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        out = 4 * width if bottleneck else width
        plan = [(width, 1, 1), (width, 3, stride), (out, 1, 1)] if bottleneck else [(width, 3, stride), (out, 3, 1)]
        self.depth = len(plan)
        before = channels
        for i, (features, kernel, step) in enumerate(plan, start=1):
            setattr(self, f"conv{i}", nn.Conv2d(before, features, kernel, step, padding=kernel // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(features))
            before = features
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.depth else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """(N, 3, H, W) -> (logits (N, K), endpoints ``stem``, ``stage1`` to ``stage4`` (N, C, H', W'), ``features``)."""

    def __init__(self, depth: int, classes: int = 1000):
        super().__init__()
        bottleneck = depth >= 50
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, (repeats, width) in enumerate(zip(DEPTHS[depth], (64, 128, 256, 512), strict=True), start=1):
            blocks = []
            for i in range(repeats):
                blocks.append(Block(channels, width, 2 if i == 0 and stage > 1 else 1, bottleneck))
                channels = 4 * width if bottleneck else width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.bn1(self.conv1(x)).relu()
        end = {"stem": nn.functional.max_pool2d(x, 3, 2, padding=1)}
        x = end["stem"]
        for stage in (1, 2, 3, 4):
            x = end[f"stage{stage}"] = getattr(self, f"layer{stage}")(x)
        end["features"] = x.mean(dim=(2, 3))
        return self.fc(end["features"]), end
