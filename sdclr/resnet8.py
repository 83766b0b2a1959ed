"""The smallest residual network of He et al. 2016, for digits and tests."""

from __future__ import annotations

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2), by torchvision's names.

    Args:
        width_in, width_out: channels.
        stride: of the first convolution.
        downsample: of the shortcut, where the shape changes.
    """

    def __init__(
        self, width_in: int, width_out: int, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.downsample = downsample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, width_in, H, W) to (B, width_out, H / stride, W / stride)."""
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        x = self.relu(self.bn1(self.conv1(x_BCHW)))
        x = self.bn2(self.conv2(x))
        x += shortcut
        return self.relu(x)  # type: ignore[no-any-return]


class ResNet8(nn.Module):
    """The smallest residual network of He et al. 2016, section 4.2.

    6n + 2 layers with n = 1, widths 16, 32, 64; 78 thousand parameters. For digits and tests.
    Its tensors have the names of torchvision's networks.

    Args:
        width: of the first stage; 16 is published.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.num_features = 4 * width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(width, width))
        self.layer2 = _stage(width, 2 * width)
        self.layer3 = _stage(2 * width, 4 * width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc: nn.Module = nn.Linear(self.num_features, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to features (B, 4 width), or logits while `fc` classifies."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x_BCHW))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def _stage(width_in: int, width_out: int) -> nn.Module:
    conv = nn.Conv2d(width_in, width_out, 1, stride=2, bias=False)
    shortcut = nn.Sequential(conv, nn.BatchNorm2d(width_out))
    return nn.Sequential(BasicBlock(width_in, width_out, 2, shortcut))
