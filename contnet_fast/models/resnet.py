"""Pre-activation residual networks of the same sizes: the baselines (He et al., arXiv 1603.05027; 1605.07146)."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import check_count
from ..nn.stitch import every
from .continuousnet import initialise_convolutions


class PreActUnit(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))); a 1x1 convolution and norm shortcut where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.stride = stride
        changes = stride != 1 or in_channels != out_channels
        self.shortcut: nn.Module | None = None
        if changes:
            conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H / stride, W / stride]."""
        u = torch.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(every(u, self.stride))
        return skip + self.conv2(torch.relu(self.norm2(self.conv1(u))))


class PreActResNet(nn.Module):
    """ResNet v2 for small images: depth = 6n + 2, n units in each of three stages.

    ``depth=20`` has 272,474 parameters and ``depth=56`` 855,770 for 10 classes: the sizes of ContinuousNet's 2-2-2
    and 8-8-8.

    Args:
        depth: 6n + 2. width: channels of the stem and, times ``widen_factor``, of the first stage.
    """

    def __init__(
        self, in_channels: int = 3, num_classes: int = 10, *, depth: int = 20, width: int = 16, widen_factor: int = 1
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels),
            ("num_classes", num_classes),
            ("depth", depth),
            ("width", width),
            ("widen_factor", widen_factor),
        ):
            check_count(name, value)
        n, rest = divmod(depth - 2, 6)
        if rest or n < 1:
            raise ValueError(f"depth: got {depth}, accepted: 6n + 2 with n >= 1 (8, 14, 20, ..., 56)")
        widths = [width * widen_factor * 2**i for i in range(3)]
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        units: list[nn.Module] = []
        previous = width
        for i, channels in enumerate(widths):
            for j in range(n):
                units.append(PreActUnit(previous, channels, stride=2 if i and not j else 1))
                previous = channels
        self.stages = nn.Sequential(*units)
        self.head_norm = nn.BatchNorm2d(previous)
        self.classifier = nn.Linear(previous, num_classes)
        initialise_convolutions(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes] of images [B, in_channels, H, W]."""
        x = torch.relu(self.head_norm(self.stages(self.stem(x))))
        return self.classifier(x.mean(dim=(2, 3)))


class WideResNet(PreActResNet):
    """The wide pre-activation residual network; depth 58 means nine units a stage (54 convolutions plus 4)."""

    def __init__(
        self, in_channels: int = 3, num_classes: int = 10, *, depth: int = 58, width: int = 16, widen_factor: int = 4
    ) -> None:
        check_count("depth", depth)
        if (depth - 4) % 6 or depth < 10:
            raise ValueError(f"depth: got {depth}, accepted: 6n + 4 with n >= 1 (10, 16, ..., 58)")
        super().__init__(in_channels, num_classes, depth=depth - 2, width=width, widen_factor=widen_factor)
