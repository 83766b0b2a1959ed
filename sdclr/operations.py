"""RandAugment's operations (Cubuk et al. 2020) on a batch of views, each image at its own strength.

    params = sample_operations(rule, strengths_B, generator)     # all that is random, on the CPU
    view_BCHW = apply_operations(view_BCHW, params)              # none of it is, on any device

The eleven operations that have a magnitude: at strength 0 a view stays as it is. Ranges are those
of torchvision's RandAugment. Shapes: B images, K operations each, C = 3 channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdclr.transfer import to_device

MAX_BLEND, MAX_SHEAR, MAX_SHIFT, MAX_DEGREES, MAX_BITS = 0.9, 0.3, 150 / 331, 30.0, 4
OPERATION_NUMBERS = 4
"""Random numbers that each operation takes: whether, which, how strong, in which direction."""
_GRAY = (0.2989, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class OperationRule:
    """Number of operations on a view, and their largest magnitude.

    Args:
        num_operations: K >= 0 for each view, drawn with replacement.
        strength: the largest magnitude, in [0, 1].

    Raises:
        ValueError: a value out of its range.
    """

    num_operations: int = 1
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.num_operations < 0 or not 0 <= self.strength <= 1:
            raise ValueError(f"expected num_operations >= 0 and strength in [0, 1], got {self}")


@dataclass(frozen=True, eq=False)
class OperationParams:
    """Drawn operations of B images, in order.

    Args:
        which_BK: int64, index into `OPERATIONS`; -1 = none.
        amount_BK: float32 in [-1, 1], the magnitude with its direction.
    """

    which_BK: Tensor
    amount_BK: Tensor


def sample_operations(
    rule: OperationRule, strengths_B: Tensor, generator: np.random.Generator
) -> OperationParams:
    """Draw the operations of one view of each image, on the CPU.

    Each happens with the image's strength as its probability, at a magnitude that is drawn up to
    that strength times the rule's (Zhou et al. 2022). Each image takes K `OPERATION_NUMBERS`
    doubles, so with `sdclr.seeds.place_generator` ranks agree with a single rank.

    Args:
        rule: how many, how strong.
        strengths_B: in [0, 1].
        generator: advanced.
    """
    shape = (len(strengths_B), rule.num_operations, OPERATION_NUMBERS)
    numbers_BK4 = torch.from_numpy(generator.random(shape))
    chance_BK, which_BK, part_BK, side_BK = numbers_BK4.unbind(dim=2)
    which_BK, part_BK = (which_BK * len(OPERATIONS)).long(), part_BK.float()
    strengths_B1 = strengths_B.cpu().float()[:, None]
    amount_BK = rule.strength * strengths_B1 * part_BK * torch.where(side_BK < 0.5, -1.0, 1.0)
    return OperationParams(torch.where(chance_BK < strengths_B1, which_BK, -1), amount_BK)


def apply_operations(view_BCHW: Tensor, params: OperationParams) -> Tensor:
    """Return the views after their operations, float32 in [0, 1]; no image depends on others."""
    view_BCHW = view_BCHW.to(torch.float32, copy=True)
    device = view_BCHW.device
    for which_B, amount_B in zip(params.which_BK.T, params.amount_BK.T, strict=True):
        for number, operation in enumerate(OPERATIONS.values()):
            rows = (which_B == number).nonzero()[:, 0]
            if len(rows):
                amount_R = amount_B[rows].to(device, non_blocking=True)
                rows = rows.to(device, non_blocking=True)
                some_RCHW = operation(view_BCHW.index_select(0, rows), amount_R.view(-1, 1, 1, 1))
                view_BCHW.index_copy_(0, rows, some_RCHW.clamp_(0.0, 1.0))
    return view_BCHW


def _gray(x: Tensor) -> Tensor:
    weights_3 = to_device(torch.tensor(_GRAY, dtype=x.dtype), x.device)
    return (x * weights_3.view(3, 1, 1)).sum(dim=1, keepdim=True)


def _blend(x: Tensor, plain: Tensor, amount: Tensor) -> Tensor:
    return plain + (1 + MAX_BLEND * amount) * (x - plain)


def _brightness(x: Tensor, amount: Tensor) -> Tensor:
    return x * (1 + MAX_BLEND * amount)


def _colour(x: Tensor, amount: Tensor) -> Tensor:
    return _blend(x, _gray(x), amount)


def _contrast(x: Tensor, amount: Tensor) -> Tensor:
    return _blend(x, _gray(x).mean(dim=(2, 3), keepdim=True), amount)


def _sharpness(x: Tensor, amount: Tensor) -> Tensor:
    kernel = x.new_ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5.0
    smooth = x.clone()
    if min(x.shape[2:]) > 2:
        smooth[:, :, 1:-1, 1:-1] = F.conv2d(x, kernel / 13, groups=3)
    return _blend(x, smooth, amount)


def _posterise(x: Tensor, amount: Tensor) -> Tensor:
    step = 2.0 ** (MAX_BITS * amount.abs()).round()
    # The small part keeps k / 255 above its own whole number.
    return torch.where(step > 1, torch.floor((x * 255 + 1e-3) / step) * step / 255, x)


def _solarise(x: Tensor, amount: Tensor) -> Tensor:
    return torch.where(x > 1 - amount.abs(), 1 - x, x)


def _warp(x: Tensor, terms: tuple[Tensor | float, ...]) -> Tensor:
    """Sample a view at (a x + b y + c, d x + e y + f), in halves of its side from its centre."""
    height_px, width_px = x.shape[2:]
    ys = (2 * torch.arange(height_px, device=x.device) + 1) / height_px - 1
    xs = (2 * torch.arange(width_px, device=x.device) + 1) / width_px - 1
    ys, xs = ys.view(1, 1, -1, 1), xs.view(1, 1, 1, -1)
    a, b, c, d, e, f = terms
    shape = (len(x), 1, height_px, width_px)
    grid = torch.stack([(a * xs + b * ys + c).expand(shape), (d * xs + e * ys + f).expand(shape)])
    return F.grid_sample(x, grid[:, :, 0].permute(1, 2, 3, 0), align_corners=False)


def _rotate(x: Tensor, amount: Tensor) -> Tensor:
    angle = math.radians(MAX_DEGREES) * amount
    cos, sin = angle.cos(), angle.sin()
    return _warp(x, (cos, sin, 0.0, -sin, cos, 0.0))


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,
    "colour": _colour,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterise": _posterise,
    "solarise": _solarise,
    "shear_x": lambda x, amount: _warp(x, (1.0, MAX_SHEAR * amount, 0.0, 0.0, 1.0, 0.0)),
    "shear_y": lambda x, amount: _warp(x, (1.0, 0.0, 0.0, MAX_SHEAR * amount, 1.0, 0.0)),
    "shift_x": lambda x, amount: _warp(x, (1.0, 0.0, 2 * MAX_SHIFT * amount, 0.0, 1.0, 0.0)),
    "shift_y": lambda x, amount: _warp(x, (1.0, 0.0, 0.0, 0.0, 1.0, 2 * MAX_SHIFT * amount)),
    "rotate": _rotate,
}
"""Each takes views (R, 3, H, W) and amounts (R, 1, 1, 1); outside of a view is black."""
