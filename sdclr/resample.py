"""Crop and resize of a batch as two matrix products per image: out = Wy @ image @ Wx^T.

Each image has its own window (start and length on each axis), so its own pair of matrices; a
horizontal flip is the rows of Wx in reverse. The weights are those of torchvision's antialiased
resize: for scale s = window / out, output pixel o has its centre at s (o + 1/2) and input pixel j
of the window has the weight kernel((j + 1/2 - s (o + 1/2)) / max(s, 1)), normalised to sum 1 over
the window. Pixels outside the window get no weight, whatever surrounds it on the canvas.

Shapes: B images, C = 3 channels, H x W pixels of the canvas, N pixels of one axis of the canvas,
O pixels of one axis of the output, A candidate crops of an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["bicubic", "bilinear"]
_NUM_CANDIDATES = 10  # as many attempts as torchvision's RandomResizedCrop makes
CROP_NUMBERS = 2 * _NUM_CANDIDATES + 2
"""Random numbers that a crop takes: area and shape of each candidate, and its place."""


def sample_crops(
    sizes_B2: Tensor,
    numbers_KB: Tensor,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw top, left, height, width (B) int64 in px as torchvision's RandomResizedCrop does.

    A crop has a share U(scale) of the area, width / height exp(U(log ratio)), and any place inside
    its image. Of ten candidates the first that fits is taken; if none does, which happens to very
    long images, it is the largest central crop within the ratios.

    Args:
        sizes_B2: int64, height and width of each image in px, at least 1.
        numbers_KB: float64, K = `CROP_NUMBERS` random numbers in [0, 1) for each image.
        scale: least and largest share of the area, in (0, 1].
        ratio: least and largest width / height, above 0.
    """
    # Double: with 53 random bits floor(u * n) < n holds for every n, so no crop leaves its image.
    share_BA, log_ratio_BA = torch.split(numbers_KB[:-2].T, _NUM_CANDIDATES, dim=1)
    share_BA = share_BA * (scale[1] - scale[0]) + scale[0]
    log_ratio_BA = log_ratio_BA * math.log(ratio[1] / ratio[0]) + math.log(ratio[0])
    size_2B = sizes_B2.T
    area_BA = share_BA * size_2B.prod(dim=0)[:, None]
    crop_2BA = torch.stack([area_BA / log_ratio_BA.exp(), area_BA * log_ratio_BA.exp()])
    crop_2BA = crop_2BA.sqrt_().round_().long()
    fits_BA = ((crop_2BA >= 1) & (crop_2BA <= size_2B[:, :, None])).all(dim=0)
    first_B1 = fits_BA.long().argmax(dim=1, keepdim=True)
    crop_2B = crop_2BA.gather(2, first_B1.expand(2, -1, 1))[:, :, 0]
    place_2B = (numbers_KB[-2:] * (size_2B - crop_2B + 1)).long()

    height_B, width_B = size_2B
    tallest_B = (width_B / ratio[0]).round().long().clamp_min(1)
    widest_B = (height_B * ratio[1]).round().long().clamp_min(1)
    central_2B = torch.stack([height_B.minimum(tallest_B), width_B.minimum(widest_B)])
    any_fits_B = fits_BA.any(dim=1)
    height_B, width_B = torch.where(any_fits_B, crop_2B, central_2B)
    top_B, left_B = torch.where(any_fits_B, place_2B, (size_2B - central_2B) // 2)
    return top_B, left_B, height_B, width_B


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Range that is resized on one axis of each image.

    Args:
        start_B: first px of the window on the canvas.
        length_B: px, at least 1; the window ends inside the canvas.
        resized_B: px that the window is resized to; the size of the output when None.
        offset_B: first px of the resized window that is kept; 0 when None.
        flip_B: bool, images whose output runs backwards; none when None.
    """

    start_B: Tensor
    length_B: Tensor
    resized_B: Tensor | None = None
    offset_B: Tensor | None = None
    flip_B: Tensor | None = None


def axis_weights(window: Window, *, canvas_px: int, out_px: int, kernel: Kernel) -> Tensor:
    """Return the resize of one axis as matrices (B, O, N), float32; each row sums to 1.

    Args:
        window: on this axis.
        canvas_px: N.
        out_px: O.
        kernel: `bicubic` is Keys' cubic with a = -1/2 (Keys 1981), `bilinear` the triangle.
    """
    device = window.start_B.device
    start_B1, length_B1 = window.start_B[:, None], window.length_B[:, None]
    in_N = torch.arange(canvas_px, device=device)
    out_BO = torch.arange(out_px, device=device).expand(len(start_B1), out_px)
    if window.flip_B is not None:
        out_BO = torch.where(window.flip_B[:, None], out_px - 1 - out_BO, out_BO)
    if window.offset_B is not None:
        out_BO = out_BO + window.offset_B[:, None]
    # Small tensors: double costs nothing here and keeps the centres exact to the last float32 bit.
    resized = out_px if window.resized_B is None else window.resized_B[:, None]
    scale_B1 = length_B1.double() / resized
    support_B1 = scale_B1.clamp_min(1.0)
    centre_BO = ((out_BO + 0.5) * scale_B1 / support_B1).float()
    place_BN = in_N - start_B1
    outside_BN = (place_BN < 0) | (place_BN >= length_B1)
    place_BN = ((place_BN + 0.5) / support_B1).float().masked_fill_(outside_BN, torch.inf)
    distance_BON = (place_BN[:, None, :] - centre_BO[:, :, None]).abs_()
    weights_BON = (_cubic_ if kernel == "bicubic" else _triangle_)(distance_BON)
    return weights_BON.div_(weights_BON.sum(dim=2, keepdim=True))


def resample(
    images_BCHW: Tensor, rows: Window, columns: Window, out_CBOO: Tensor, *, kernel: Kernel
) -> None:
    """Write Wy @ image @ Wx^T / 255, clamped to [0, 1], of each uint8 image and channel.

    torchvision rounds and clamps to uint8 here; this stays in float32, so it is finer by up to half
    a grey level. A cubic overshoots at edges, hence the clamp.

    Args:
        images_BCHW: uint8.
        rows: windows on the H axis.
        columns: windows on the W axis.
        out_CBOO: float32 in [0, 1], channels first.
        kernel: of `axis_weights`.
    """
    if len(images_BCHW) == 1 and images_BCHW.device.type == "cpu":
        # Outside the window all weights are 0: for one image alone it pays to cut it out first.
        rows, images_BCHW = _cut(rows, images_BCHW, axis=2)
        columns, images_BCHW = _cut(columns, images_BCHW, axis=3)
    num_images, num_channels, height_px, width_px = images_BCHW.shape
    out_height_px, out_width_px = out_CBOO.shape[2:]
    rows_BOH = axis_weights(rows, canvas_px=height_px, out_px=out_height_px, kernel=kernel)
    columns_BOW = axis_weights(columns, canvas_px=width_px, out_px=out_width_px, kernel=kernel)
    columns_BWO = columns_BOW.mul_(1 / 255).transpose(1, 2)
    wide_BRW = images_BCHW.reshape(num_images, num_channels * height_px, width_px).float()
    half_BRO = torch.bmm(wide_BRW, columns_BWO)
    half_BCHO = half_BRO.view(num_images, num_channels, height_px, out_width_px)
    for channel in range(num_channels):
        torch.bmm(rows_BOH, half_BCHO[:, channel], out=out_CBOO[channel])
    out_CBOO.clamp_(0.0, 1.0)


def _cut(window: Window, images_1CHW: Tensor, *, axis: int) -> tuple[Window, Tensor]:
    start, length = int(window.start_B), int(window.length_B)
    window = replace(window, start_B=torch.zeros_like(window.start_B))
    return window, images_1CHW.narrow(axis, start, length)


def _cubic_(distance: Tensor) -> Tensor:
    """Compute -2 times Keys' cubic with a = -1/2; the normalisation removes the factor.

    With y = min(d - 2, 0) and z = min(d - 1, 0) both pieces of the cubic are one expression,
    -2 k(d) = y^2 (y + 1) - 2 z^2 (1 + 2 z), which needs no comparison.
    """
    y = distance.sub_(2.0).clamp_max_(0.0)
    y_plus_1 = y + 1.0
    z = y_plus_1.clamp_max(0.0)
    weights = y.square_().mul_(y_plus_1)
    z_square = torch.mul(z, z, out=y_plus_1)
    return weights.addcmul_(z_square, z.mul_(2.0).add_(1.0), value=-2.0)


def _triangle_(distance: Tensor) -> Tensor:
    return distance.neg_().add_(1.0).clamp_min_(0.0)
