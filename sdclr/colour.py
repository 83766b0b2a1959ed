"""Colour jitter, grayscale and blur of a batch, each image with its own parameters.

The operations and their clamps are those of torchvision's ColorJitter, Grayscale and GaussianBlur
on float images; images are stored channels first, so that a channel of the batch is one contiguous
block. Functions ending in `_` change their input in place.

Shapes: C = 3 channels, N images, P pixels of an image, H x W = P.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_LUMA = (0.2989, 0.587, 0.114)  # of ITU-R BT.601, as rounded by torchvision


def luma(x_CNP: Tensor) -> Tensor:
    """Return the weighted mean of the channels, (N, P)."""
    red, green, blue = _LUMA
    return (x_CNP[0] * red).add_(x_CNP[1], alpha=green).add_(x_CNP[2], alpha=blue)


def blend_(x_CNP: Tensor, op_N: Tensor, factor_N: Tensor) -> None:
    """Adjust brightness, contrast or saturation: x <- clamp(f x + (1 - f) y, 0, 1).

    y is 0 for brightness, the image's mean luma for contrast, and the pixel's luma for saturation.

    Args:
        x_CNP: in [0, 1].
        op_N: BRIGHTNESS, CONTRAST or SATURATION of each image.
        factor_N: f >= 0; 1 changes nothing.
    """
    luma_NP = luma(x_CNP)
    rest_N = 1.0 - factor_N
    mean_N = luma_NP.mean(dim=1).mul_(rest_N).mul_(op_N == CONTRAST)
    rest_N = rest_N.mul_(op_N == SATURATION)
    y_NP = luma_NP.mul_(rest_N[:, None]).add_(mean_N[:, None])
    x_CNP.mul_(factor_N[:, None]).add_(y_NP).clamp_(0.0, 1.0)


def shift_hue_(x_CNP: Tensor, turns_N: Tensor) -> None:
    """Turn the hue of each image by a fraction of the circle; saturation and value stay.

    Equal to RGB -> HSV -> h + turns -> RGB without the cases of HSV. With m, M the smallest and the
    largest channel, C = M - m, and hue t in sixths of the circle measured from red, in [-3, 3]:

        |t| = 1 + ((g - r) + (b - m)) / C,  sign(t) = sign(g - b)
        t  <- t + 6 turns, wrapped to [-3, 3]
        r   = M - C k(t),  g = m + C k(t + 1),  b = m + C k(t - 1),  k(t) = clamp(|t| - 1, 0, 1)

    Derivation: of (x - m) / C one channel is 1 and one is 0, and in each of the six sectors the
    first line is the hexcone hue (Smith 1978); the last one is its inverse. C = 0 (grey) is kept.

    Args:
        x_CNP: in [0, 1].
        turns_N: in [-1/2, 1/2].
    """
    red, green, blue = x_CNP
    high = torch.maximum(red, green)
    high = torch.maximum(high, blue, out=high)
    low = torch.minimum(red, green)
    low = torch.minimum(low, blue, out=low)
    chroma = high - low
    t = (green - red).add_(blue).sub_(low)
    t.div_(chroma.clamp_min(torch.finfo(chroma.dtype).tiny)).add_(1.0)
    t.copysign_(green - blue).add_(6.0 * turns_N[:, None])
    wraps = (t * (1 / 6)).round_()
    t.sub_(wraps, alpha=6.0)

    def ramp(shift: float) -> Tensor:
        return torch.add(t, shift, out=wraps).abs_().sub_(1.0).clamp_(0.0, 1.0)

    torch.addcmul(high, chroma, ramp(0.0), value=-1.0, out=red)
    torch.addcmul(low, chroma, ramp(1.0), out=green)
    torch.addcmul(low, chroma, ramp(-1.0), out=blue)


def jitter_(x_CNP: Tensor, order_N4: Tensor, factors_N4: Tensor, starts: list[int]) -> None:
    """Adjust brightness, contrast, saturation and hue in the order of each image.

    The images must be sorted by the place that hue has in their order. Then all of them turn their
    hue together, and each operation s places before or after hue is one `blend_` of a contiguous
    part of the batch: no image is gathered, none is worked on in vain.

    Args:
        x_CNP: in [0, 1].
        order_N4: int64, permutations of (BRIGHTNESS, CONTRAST, SATURATION, HUE), first one first.
        factors_N4: of the four operations, by their number; hue in turns.
        starts: for k = 0..4, the first image whose hue comes at place k or later; images before
            starts[0] are left alone, starts[4] is N.
    """
    place_N = (order_N4 == HUE).long().argmax(dim=1)
    for s in range(-3, 4):
        part = slice(starts[max(-s, 0)], starts[4 - max(s, 0)])
        if part.start == part.stop:
            continue
        if s == 0:
            shift_hue_(x_CNP[:, part], factors_N4[part, HUE])
            continue
        op_N1 = order_N4[part].gather(1, place_N[part, None] + s)
        blend_(x_CNP[:, part], op_N1[:, 0], factors_N4[part].gather(1, op_N1)[:, 0])


def gray_(x_CNP: Tensor, rows_R: Tensor) -> None:
    """Replace the images `rows_R` by their luma in all three channels."""
    gray_RP = luma(x_CNP.index_select(1, rows_R))
    x_CNP.index_copy_(1, rows_R, gray_RP.expand(len(x_CNP), *gray_RP.shape))


def blur_kernel_px(crop_px: int) -> int:
    """Return the odd number nearest to 10 % of the side (SimCLR, Chen et al. 2020, app. A)."""
    return 2 * (crop_px // 20) + 1


def blur_(x_CNHW: Tensor, rows_R: Tensor, sigma_R: Tensor, *, kernel_px: int) -> None:
    """Blur the images `rows_R` by a separable Gaussian with reflected borders.

    Args:
        x_CNHW: in [0, 1], both sides larger than half the kernel.
        rows_R: int64, the images to blur.
        sigma_R: px, > 0, of each of them.
        kernel_px: taps, odd.
    """
    reach = kernel_px // 2
    tap_K = torch.arange(-reach, reach + 1, device=x_CNHW.device)
    kernel_RK = torch.softmax(-0.5 * (tap_K / sigma_R[:, None]).square(), dim=1)
    channels, _, height, width = x_CNHW.shape
    kernel_GK = kernel_RK.repeat(channels, 1)
    groups = len(kernel_GK)
    image_1GHW = x_CNHW.index_select(1, rows_R).reshape(1, groups, height, width)
    image_1GHW = F.pad(image_1GHW, (reach, reach, reach, reach), mode="reflect")
    image_1GHW = F.conv2d(image_1GHW, kernel_GK[:, None, None, :], groups=groups)
    image_1GHW = F.conv2d(image_1GHW, kernel_GK[:, None, :, None], groups=groups)
    # Rounded, the taps may sum to a little more than 1.
    image_1GHW = image_1GHW.clamp_(0.0, 1.0)
    x_CNHW.index_copy_(1, rows_R, image_1GHW.view(channels, -1, height, width))
