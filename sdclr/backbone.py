"""Backbones: torchvision networks without their classifier, from images to features.

Two stems. `imagenet` is torchvision's own (7x7 stride 2, then max-pool). `cifar` is the one of
SimCLR's and SDCLR's CIFAR runs (3x3 stride 1, no max-pool). Nothing else is changed, so state dicts
carry torchvision's key names.

Initialisation is torchvision's: convolutions kaiming-normal fan-out, BatchNorm weight 1 and bias 0,
also in the last BatchNorm of each residual block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

# torchvision's constructors are untyped as far as their attributes go.
RESNETS: dict[str, Callable[..., Any]] = {
    "resnet18": zoo.resnet18,
    "resnet34": zoo.resnet34,
    "resnet50": zoo.resnet50,
    "resnet101": zoo.resnet101,
    "wide_resnet50_2": zoo.wide_resnet50_2,
    "resnext50_32x4d": zoo.resnext50_32x4d,
}
CONVNEXTS: dict[str, Callable[..., Any]] = {
    "convnext_tiny": zoo.convnext_tiny,
    "convnext_small": zoo.convnext_small,
}
BACKBONES = ("resnet8", *RESNETS, *CONVNEXTS)
STEMS = ("cifar", "imagenet")


class ResNet8(nn.Module):
    """The smallest residual network of He et al. 2016, section 4.2.

    6n + 2 layers with n = 1, widths 16, 32, 64; 78 thousand parameters. For digits and tests.
    Built of torchvision's blocks, with torchvision's names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(16, 16))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, 2, _shortcut(16, 32)))
        self.layer3 = nn.Sequential(BasicBlock(32, 64, 2, _shortcut(32, 64)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc: nn.Module = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to features (B, 64), or to logits while `fc` is a classifier."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x_BCHW))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]


def _shortcut(width_in: int, width_out: int) -> nn.Module:
    conv = nn.Conv2d(width_in, width_out, 1, stride=2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width_out))


def build_backbone(name: str, *, stem: str, seed: int) -> tuple[nn.Module, int]:
    """Return a freshly initialised backbone and the width of its features.

    Args:
        name: one of `BACKBONES`.
        stem: `cifar` or `imagenet`; ConvNeXt has the latter only.
        seed: of the initialisation; the process-wide generator is left as it was.

    Raises:
        ValueError: unknown name or stem.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}")
    if stem not in STEMS or (stem == "cifar" and name in CONVNEXTS):
        raise ValueError(f"backbone {name} has no stem {stem!r}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if name in CONVNEXTS:
            # Stochastic depth would draw from the process-wide generator and differ between the two
            # branches.
            convnext = CONVNEXTS[name](weights=None, stochastic_depth_prob=0.0)
            num_features = int(convnext.classifier[2].in_features)
            convnext.classifier[2] = nn.Identity()
            return convnext, num_features
        network: Any = ResNet8() if name == "resnet8" else RESNETS[name](weights=None)
        if stem == "cifar":
            width = network.conv1.out_channels
            network.conv1 = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        num_features = int(network.fc.in_features)
        network.fc = nn.Identity()
        return network, num_features
