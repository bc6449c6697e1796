"""ResNet-50 v1.5 in plain PyTorch, with torchvision's parameter names: the stride of a block sits in its 3x3."""

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a residual connection; (N, C, H, W) -> (N, 4 * width, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or channels != 4 * width:
            shortcut = nn.Conv2d(channels, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet50(nn.Module):
    """(N, 3, H, W) -> (logits (N, K), endpoints ``stem``, ``stage1`` to ``stage4`` (N, C, H', W'), ``features``)."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, (depth, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
            first = Bottleneck(channels, width, stride=1 if stage == 1 else 2)
            channels = 4 * width
            rest = [Bottleneck(channels, width, stride=1) for _ in range(depth - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.bn1(self.conv1(x)).relu()
        end = {"stem": nn.functional.max_pool2d(x, 3, 2, padding=1)}
        x = end["stem"]
        for stage in (1, 2, 3, 4):
            x = end[f"stage{stage}"] = getattr(self, f"layer{stage}")(x)
        end["features"] = x.mean(dim=(2, 3))
        return self.fc(end["features"]), end


def randomize(model: nn.Module, seed: int) -> None:
    """Draw every parameter and statistic of ``model`` anew, such that activations of unit inputs stay near one.

    No value is left at a default, so a reader that swaps or drops any of them changes the outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                gain = 2.0 if isinstance(module, nn.Conv2d) else 1.0
                module.weight.normal_(0, (gain / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                low, high = (0.1, 0.4) if name.endswith("bn3") else (0.5, 1.5)  # the branch stays below its shortcut
                module.weight.uniform_(low, high, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                # One channel in 16 varies so little that the epsilon decides its scale, as in the published weights.
                module.running_var[3::16] *= 1e-6
                module.weight[3::16] *= 3e-3
                module.num_batches_tracked.fill_(7)
