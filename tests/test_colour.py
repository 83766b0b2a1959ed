"""Each colour operation against torchvision's, image by image, and against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from sdclr.colour import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    blend_,
    blur_,
    blur_kernel_px,
    gray_,
    jitter_,
    luma,
    shift_hue_,
)

ADJUST: dict[int, Callable[[Tensor, float], Tensor]] = {
    BRIGHTNESS: F.adjust_brightness,
    CONTRAST: F.adjust_contrast,
    SATURATION: F.adjust_saturation,
    HUE: F.adjust_hue,
}
SIDE_PX = 12


def some_pixels(num_images: int, seed: int = 0) -> Tensor:
    """(3, N, P) with greys, primaries, black and white among random colours."""
    g = torch.Generator().manual_seed(seed)
    x_CNP = torch.rand(3, num_images, SIDE_PX**2, generator=g)
    x_CNP[:, :, :20] = torch.randint(0, 2, (3, num_images, 20), generator=g).float()
    x_CNP[:, :, 20:40] = torch.rand(1, num_images, 20, generator=g)
    x_CNP[1, :, 40:60] = x_CNP[0, :, 40:60]
    x_CNP[:, :, 60:80] = torch.randint(0, 4, (3, num_images, 20), generator=g) / 255
    return x_CNP


def image(x_CNP: Tensor, row: int) -> Tensor:
    return x_CNP[:, row].reshape(3, SIDE_PX, SIDE_PX).clone()


@pytest.mark.parametrize("op", [BRIGHTNESS, CONTRAST, SATURATION])
def test_blend_is_torchvisions(op: int) -> None:
    factor_N = torch.tensor([0.0, 0.3, 1.0, 1.4, 3.0])
    before = some_pixels(5)
    after = before.clone()
    blend_(after, torch.full((5,), op), factor_N)
    for row, factor in enumerate(factor_N.tolist()):
        expected = ADJUST[op](image(before, row), factor)
        torch.testing.assert_close(image(after, row), expected, atol=1e-6, rtol=0)
    other = (op + 1) % 3
    assert (image(after, 1) - ADJUST[other](image(before, 1), 0.3)).abs().max() > 0.01


def test_hue_is_torchvisions() -> None:
    turns_N = torch.linspace(-0.5, 0.5, 41)
    before = some_pixels(41)
    after = before.clone()
    shift_hue_(after, turns_N)
    expected = torch.stack(
        [F.adjust_hue(image(before, row), turns) for row, turns in enumerate(turns_N.tolist())]
    )
    torch.testing.assert_close(
        torch.stack([image(after, row) for row in range(41)]), expected, atol=2e-6, rtol=0
    )
    assert (image(after, 30) - F.adjust_hue(image(before, 30), -0.25)).abs().max() > 0.1


def test_a_third_of_a_turn_permutes_the_channels() -> None:
    before = some_pixels(2)
    after = before.clone()
    shift_hue_(after, torch.tensor([1 / 3, -1 / 3]))
    torch.testing.assert_close(after[:, 0], before[[2, 0, 1], 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(after[:, 1], before[[1, 2, 0], 1], atol=1e-6, rtol=0)


def test_hue_of_one_rounding_step_of_colour_stays_near() -> None:
    """Where hue is all rounding noise, the image must still not move."""
    before = torch.full((3, 4, 9), 0.3)
    before[0] = torch.nextafter(before[0], torch.tensor(1.0))
    before[:, 1:] *= torch.tensor([1e-30, 1e-38, 1e-42])[:, None]
    after = before.clone()
    shift_hue_(after, torch.full((4,), 0.2))
    torch.testing.assert_close(after, before, atol=1e-7, rtol=0)


def test_jitter_applies_each_order() -> None:
    orders = sorted(permutations(range(4)), key=lambda order: order.index(HUE))
    g = torch.Generator().manual_seed(3)
    factors_N4 = torch.rand(27, 4, generator=g) * 0.8 + 0.6
    factors_N4[:, HUE] = factors_N4[:, HUE] - 1
    before = some_pixels(27)
    after = before.clone()
    order_N4 = torch.tensor([(0, 1, 2, 3)] * 3 + orders)
    jitter_(after, order_N4, factors_N4, [3, 9, 15, 21, 27])
    assert torch.equal(after[:, :3], before[:, :3])
    for row, order in enumerate(orders, start=3):
        expected, wrong = image(before, row), image(before, row)
        for op in order:
            expected = ADJUST[op](expected, float(factors_N4[row, op]))
        for op in reversed(order):
            wrong = ADJUST[op](wrong, float(factors_N4[row, op]))
        torch.testing.assert_close(image(after, row), expected, atol=1e-5, rtol=0)
        assert (image(after, row) - wrong).abs().max() > 1e-3


def test_gray_changes_only_its_rows() -> None:
    before = some_pixels(4)
    after = before.clone()
    gray_(after, torch.tensor([1, 3]))
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    for row in (1, 3):
        expected = F.rgb_to_grayscale(image(before, row), num_output_channels=3)
        torch.testing.assert_close(image(after, row), expected, atol=1e-6, rtol=0)
        assert not torch.equal(after[:, row], before[:, row])


def test_luma_of_the_primaries() -> None:
    torch.testing.assert_close(luma(torch.eye(3)[:, None]), torch.tensor([[0.2989, 0.587, 0.114]]))


@pytest.mark.parametrize("kernel_px", [1, 3, 7])
def test_blur_is_torchvisions(kernel_px: int) -> None:
    before = some_pixels(4).reshape(3, 4, SIDE_PX, SIDE_PX)
    after = before.clone()
    blur_(after, torch.tensor([3, 0]), torch.tensor([0.1, 2.0]), kernel_px=kernel_px)
    assert torch.equal(after[:, 1:3], before[:, 1:3])
    for row, sigma in ((3, 0.1), (0, 2.0)):
        expected = F.gaussian_blur(before[:, row], [kernel_px] * 2, [sigma] * 2)
        torch.testing.assert_close(after[:, row], expected, atol=1e-6, rtol=0)
    if kernel_px > 1:
        other = F.gaussian_blur(before[:, 0], [kernel_px] * 2, [0.8] * 2)
        assert (after[:, 0] - other).abs().max() > 0.01


def test_blur_kernel_is_the_nearest_odd_number() -> None:
    assert [blur_kernel_px(px) for px in (224, 96, 32, 16)] == [23, 9, 3, 1]
    for px in range(1, 400):
        kernel_px = blur_kernel_px(px)
        assert kernel_px % 2 == 1
        assert abs(kernel_px - px / 10) <= 1
        assert kernel_px // 2 < px
