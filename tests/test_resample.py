"""Crops and the resize against torchvision: distribution, weights, and what lies outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from sdclr.resample import CROP_NUMBERS, Kernel, Window, axis_weights, resample, sample_crops

MODES: dict[Kernel, InterpolationMode] = {
    "bicubic": InterpolationMode.BICUBIC,
    "bilinear": InterpolationMode.BILINEAR,
}
SCALE, RATIO = (0.1, 1.0), (3 / 4, 4 / 3)


def crops(
    num: int, height: int, width: int, *, seed: int = 0, **changes: Any
) -> tuple[Tensor, ...]:
    limits: dict[str, Any] = {"scale": SCALE, "ratio": RATIO} | changes
    sizes_B2 = torch.tensor([height, width]).expand(num, 2)
    generator = torch.Generator().manual_seed(seed)
    numbers_KB = torch.rand(CROP_NUMBERS, num, generator=generator, dtype=torch.float64)
    return sample_crops(sizes_B2, numbers_KB, **limits)


def resized(images: Tensor, rows: Window, columns: Window, out_px: int, kernel: Kernel) -> Tensor:
    out = torch.empty(3, len(images), out_px, out_px)
    resample(images, rows, columns, out, kernel=kernel)
    return out.transpose(0, 1)


def noise(num: int, height: int, width: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num, 3, height, width), generator=g, dtype=torch.uint8)


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
@pytest.mark.parametrize("alone", [False, True])
def test_resize_is_torchvisions(kernel: Kernel, alone: bool) -> None:
    """The hardest images, noise; torchvision in float64. Windows shrink, grow, and touch edges."""
    boxes = [(0, 0, 40, 56), (3, 5, 9, 30), (39, 55, 1, 1), (10, 0, 16, 16), (0, 20, 33, 1)]
    images = noise(len(boxes), 40, 56)
    top, left, height, width = torch.tensor(boxes).T
    flip = torch.tensor([True, False, True, True, False])
    rows = Window(start_B=top, length_B=height)
    columns = Window(start_B=left, length_B=width, flip_B=flip)
    if alone:
        parts = []
        for i in range(len(boxes)):
            one = slice(i, i + 1)
            rows_1 = Window(start_B=top[one], length_B=height[one])
            columns_1 = Window(start_B=left[one], length_B=width[one], flip_B=flip[one])
            parts.append(resized(images[one], rows_1, columns_1, 16, kernel))
        ours = torch.cat(parts)
    else:
        ours = resized(images, rows, columns, 16, kernel)
    for i, box in enumerate(boxes):
        theirs = F.resized_crop(
            images[i].double() / 255, *box, [16, 16], interpolation=MODES[kernel], antialias=True
        ).clamp(0, 1)
        flipped = F.horizontal_flip(theirs)
        right, wrong = (flipped, theirs) if flip[i] else (theirs, flipped)
        torch.testing.assert_close(ours[i].double(), right, atol=1e-5, rtol=0)
        if box[3] > 1:
            assert (ours[i] - wrong).abs().max() > 0.05


def test_a_window_of_the_output_size_is_a_copy() -> None:
    images = noise(2, 20, 24)
    start = torch.tensor([3, 8])
    window = Window(start_B=start, length_B=torch.tensor([12, 12]))
    out = resized(images, window, window, 12, "bicubic")
    for i, at in enumerate(start.tolist()):
        expected = images[i, :, at : at + 12, at : at + 12] / 255
        torch.testing.assert_close(out[i], expected, atol=1e-6, rtol=0)


def test_what_lies_outside_the_window_has_no_weight() -> None:
    images = noise(2, 20, 20)
    window = Window(start_B=torch.tensor([4, 6]), length_B=torch.tensor([9, 7]))
    before = resized(images, window, window, 15, "bicubic")
    inside = images.clone()
    images[:, :, :4], images[:, :, 13:] = 255, 255
    assert torch.equal(resized(images, window, window, 15, "bicubic"), before)
    inside[:, :, 8] = 255
    assert not torch.equal(resized(inside, window, window, 15, "bicubic"), before)


def test_weights_sum_to_one_and_a_flat_image_stays_flat() -> None:
    window = Window(start_B=torch.tensor([0, 7, 29]), length_B=torch.tensor([30, 20, 1]))
    weights_BON = axis_weights(window, canvas_px=30, out_px=11, kernel="bicubic")
    torch.testing.assert_close(weights_BON.sum(2), torch.ones(3, 11), atol=1e-6, rtol=0)
    flat = torch.full((3, 3, 30, 30), 77, dtype=torch.uint8)
    out = resized(flat, window, window, 11, "bicubic")
    torch.testing.assert_close(out, torch.full_like(out, 77 / 255), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 64)])
def test_crops_are_distributed_as_torchvisions(height: int, width: int) -> None:
    """Two-sample Kolmogorov-Smirnov on each number, on area and on ratio; 4,000 draws each."""
    num = 4000
    ours = torch.stack(crops(num, height, width)).T
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(num)]
        )

    def p_values(left: Tensor, right: Tensor) -> list[float]:
        columns = [
            torch.cat([x, x[:, 2:].prod(1)[:, None], (x[:, 3] / x[:, 2])[:, None]], dim=1).T
            for x in (left.double(), right.double())
        ]
        return [float(stats.ks_2samp(a, b).pvalue) for a, b in zip(*columns, strict=True)]

    assert min(p_values(ours, theirs)) > 0.001
    other = torch.stack(crops(num, height, width, scale=(0.2, 1.0))).T
    assert min(p_values(other, theirs)) < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (7, 3), (32, 32), (200, 31)])
def test_crops_stay_inside(size: tuple[int, int]) -> None:
    top, left, height, width = crops(2000, *size)
    for start, length, limit in ((top, height, size[0]), (left, width, size[1])):
        assert bool((start >= 0).all() and (length >= 1).all() and (start + length <= limit).all())
        assert start.dtype == length.dtype == torch.int64


@pytest.mark.parametrize(
    ("size", "box"),
    [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10)), ((1, 50), (0, 24, 1, 1))],
)
def test_a_very_long_image_is_cropped_centrally(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    found = torch.stack(crops(50, *size, scale=(0.9, 1.0))).T
    assert found.tolist() == [list(box)] * 50
    image = torch.empty(3, *size)
    with torch.random.fork_rng():
        assert RandomResizedCrop.get_params(image, [0.9, 1.0], list(RATIO)) == box


def test_ratio_far_from_the_image_still_gives_a_pixel() -> None:
    top, left, height, width = crops(100, 1, 1, ratio=(3.0, 4.0))
    assert (top + left).sum() == 0
    assert (height * width).eq(1).all()
