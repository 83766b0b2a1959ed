"""RandAugment's operations against torchvision and slow loops, image by image."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from torch import Tensor

from sdclr.operations import (
    MAX_BLEND,
    MAX_DEGREES,
    MAX_SHEAR,
    MAX_SHIFT,
    OPERATIONS,
    OperationParams,
    OperationRule,
    apply_operations,
    sample_operations,
)

PX = 12
AMOUNTS = (-1.0, -0.41, 0.33, 0.83)


def views(num_images: int = len(AMOUNTS)) -> Tensor:
    """Views whose values are whole numbers of 255ths."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_images, 3, PX, PX), generator=generator) / 255


def only(name: str, amounts: tuple[float, ...] = AMOUNTS) -> OperationParams:
    number = list(OPERATIONS).index(name)
    which = torch.full((len(amounts), 1), number)
    return OperationParams(which, torch.tensor(amounts)[:, None])


def sampled(image: Tensor, place: Callable[[float, float], tuple[float, float]]) -> Tensor:
    """Slow reference: each pixel from `place` of its own, by two linear interpolations."""
    out = torch.zeros_like(image)
    for row in range(PX):
        for column in range(PX):
            x, y = place(column + 0.5 - PX / 2, row + 0.5 - PX / 2)
            x, y = x + PX / 2 - 0.5, y + PX / 2 - 0.5
            left, top = math.floor(x), math.floor(y)
            for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                if 0 <= i < PX and 0 <= j < PX:
                    weight = (1 - abs(y - i)) * (1 - abs(x - j))
                    out[:, row, column] += weight * image[:, i, j]
    return out


def rotated(amount: float) -> Callable[[float, float], tuple[float, float]]:
    angle = math.radians(MAX_DEGREES) * amount
    cos, sin = math.cos(angle), math.sin(angle)
    return lambda x, y: (cos * x + sin * y, -sin * x + cos * y)


def posterised(image: Tensor, amount: float) -> Tensor:
    pixels = (image * 255).round().to(torch.uint8)
    return F.posterize(pixels, 8 - round(4 * abs(amount))) / 255


REFERENCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": lambda x, a: F.adjust_brightness(x, 1 + MAX_BLEND * a),
    "colour": lambda x, a: F.adjust_saturation(x, 1 + MAX_BLEND * a),
    "contrast": lambda x, a: F.adjust_contrast(x, 1 + MAX_BLEND * a),
    "sharpness": lambda x, a: F.adjust_sharpness(x, 1 + MAX_BLEND * a),
    "posterise": posterised,
    "solarise": lambda x, a: F.solarize(x, 1 - abs(a) + 1e-7),
    "shear_x": lambda x, a: sampled(x, lambda i, j: (i + MAX_SHEAR * a * j, j)),
    "shear_y": lambda x, a: sampled(x, lambda i, j: (i, j + MAX_SHEAR * a * i)),
    "shift_x": lambda x, a: sampled(x, lambda i, j: (i + MAX_SHIFT * a * PX, j)),
    "shift_y": lambda x, a: sampled(x, lambda i, j: (i, j + MAX_SHIFT * a * PX)),
    "rotate": lambda x, a: sampled(x, rotated(a)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_equals_its_slow_reference(name: str) -> None:
    before = views()
    found = apply_operations(before, only(name))
    for row, amount in enumerate(AMOUNTS):
        expected = REFERENCES[name](before[row], amount)
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=2e-5)
        assert not torch.allclose(found[row], before[row], atol=1e-3)  # control: it does something
    assert torch.equal(before, views())  # the given views stay
    still = apply_operations(before, only(name, (0.0,) * len(AMOUNTS)))
    torch.testing.assert_close(still, before, rtol=0, atol=1e-5)


def test_operations_follow_each_other_and_no_image_depends_on_another() -> None:
    generator = np.random.default_rng(2)
    params = sample_operations(OperationRule(num_operations=3), torch.ones(30), generator)
    before = views(30)
    together = apply_operations(before, params)
    assert float(together.min()) >= 0 and float(together.max()) <= 1
    for row in range(30):
        alone = before[row : row + 1]
        for which, amount in zip(params.which_BK[row], params.amount_BK[row], strict=True):
            part = OperationParams(which.view(1, 1), amount.view(1, 1))
            alone = apply_operations(alone, part)
        torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-6)


def test_an_image_gets_operations_by_its_strength() -> None:
    strengths = torch.tensor([0.0, 0.25, 0.5, 1.0]).repeat_interleave(2000)
    rule = OperationRule(num_operations=2, strength=0.8)
    params = sample_operations(rule, strengths, np.random.default_rng(0))
    happens = (params.which_BK >= 0).view(4, -1).float().mean(dim=1)
    # A binomial of 4000: five standard deviations are 0.04.
    torch.testing.assert_close(happens, torch.tensor([0.0, 0.25, 0.5, 1.0]), rtol=0, atol=0.04)
    largest = params.amount_BK.abs().view(4, -1).amax(dim=1)
    torch.testing.assert_close(largest, torch.tensor([0.0, 0.2, 0.4, 0.8]), rtol=0, atol=0.01)
    counts = torch.bincount(params.which_BK[6000:].flatten(), minlength=len(OPERATIONS))
    assert len(counts) == len(OPERATIONS) and int(counts.min()) > 250
    assert 0.45 < float((params.amount_BK[6000:] < 0).float().mean()) < 0.55


def test_what_is_drawn_does_not_depend_on_the_strengths() -> None:
    rule = OperationRule(num_operations=2)
    first, second = (
        sample_operations(rule, strengths, np.random.default_rng(4))
        for strengths in (torch.ones(9), torch.tensor([0.0] * 5 + [1.0] * 4))
    )
    assert torch.equal(first.which_BK[5:], second.which_BK[5:])
    assert torch.equal(first.amount_BK[5:], second.amount_BK[5:])
    assert not torch.equal(first.which_BK[:5], second.which_BK[:5])


@pytest.mark.parametrize("changes", [{"num_operations": -1}, {"strength": 1.1}, {"strength": -1}])
def test_impossible_rules_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected num_operations"):
        OperationRule(**changes)  # type: ignore[arg-type]
