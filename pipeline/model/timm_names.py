"""Key names of timm's state dicts against torchvision's, without the classifier.

timm's ResNets use torchvision's names. Its ConvNeXts hold the same tensors under other names, and
the layer scale as a vector:

    torchvision                            timm
    features.0.0, features.0.1             stem.0, stem.1
    features.{2s}.0, features.{2s}.1       stages.s.downsample.0, stages.s.downsample.1   (s = 1..3)
    features.{2s+1}.j.block.0, 2, 3, 5     stages.s.blocks.j.conv_dw, norm, mlp.fc1, mlp.fc2
    features.{2s+1}.j.layer_scale (D,1,1)  stages.s.blocks.j.gamma (D)                    (s = 0..3)
    classifier.0                           head.norm
"""

from __future__ import annotations

import re

from torch import Tensor

_BLOCK_TO_TIMM = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}
_BLOCK_TO_TORCHVISION = {name: number for number, name in _BLOCK_TO_TIMM.items()}
_BLOCK = re.compile(r"features\.(\d+)\.(\d+)\.(layer_scale|block\.(\d)\.(weight|bias))")
_DOWN = re.compile(r"features\.([246])\.([01])\.(weight|bias)")
_TIMM_BLOCK = re.compile(r"stages\.(\d)\.blocks\.(\d+)\.(gamma|(.+)\.(weight|bias))")
_TIMM_DOWN = re.compile(r"stages\.(\d)\.downsample\.([01])\.(weight|bias)")


def differs(backbone: str) -> bool:
    """Return whether timm has other names for this backbone's tensors."""
    return backbone.startswith("convnext")


def to_timm(backbone: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a backbone's state dict to timm's names; the tensors are shared.

    Raises:
        ValueError: a name that torchvision's network does not have.
    """
    if not differs(backbone):
        return dict(tensors)
    return dict(_to_timm(name, tensor) for name, tensor in tensors.items())


def from_timm(backbone: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reverse `to_timm`; other names, and those of timm's classifier, stay."""
    if not differs(backbone):
        return dict(tensors)
    return dict(_from_timm(name, tensor) for name, tensor in tensors.items())


def _to_timm(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    if block := _BLOCK.fullmatch(name):
        number, j, what, part, kind = block.groups()
        prefix = f"stages.{int(number) // 2}.blocks.{j}"
        if what == "layer_scale":
            return f"{prefix}.gamma", tensor.flatten()
        return f"{prefix}.{_BLOCK_TO_TIMM[part]}.{kind}", tensor
    if down := _DOWN.fullmatch(name):
        number, part, kind = down.groups()
        return f"stages.{int(number) // 2}.downsample.{part}.{kind}", tensor
    for theirs, ours in (("features.0.", "stem."), ("classifier.0.", "head.norm.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs), tensor
    raise ValueError(f"{name} is no tensor of torchvision's ConvNeXt")


def _from_timm(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    if block := _TIMM_BLOCK.fullmatch(name):
        stage, j, what, part, kind = block.groups()
        prefix = f"features.{2 * int(stage) + 1}.{j}"
        if what == "gamma":
            return f"{prefix}.layer_scale", tensor.reshape(-1, 1, 1)
        if part in _BLOCK_TO_TORCHVISION:
            return f"{prefix}.block.{_BLOCK_TO_TORCHVISION[part]}.{kind}", tensor
    if down := _TIMM_DOWN.fullmatch(name):
        stage, part, kind = down.groups()
        return f"features.{2 * int(stage)}.{part}.{kind}", tensor
    for ours, theirs in (("stem.", "features.0."), ("head.norm.", "classifier.0.")):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours), tensor
    return name, tensor
