"""Views by Triton's interpreter, on a CPU: python -m tests.interpreted_views FILE

A process of its own, since TRITON_INTERPRET has to be set before Triton is imported. What the
kernels made is written to FILE, and compared by tests/test_rendering.py.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import Tensor

from sdclr import rendering
from sdclr.augment import AugmentRecipe, ViewParams, sample_view
from tests.test_augment import RECIPE, STRONG, draws, noise


@dataclass(frozen=True)
class Case:
    """Some images and views; sizes of the kernels, where smaller ones are quicker to interpret."""

    recipe: AugmentRecipe
    canvas: tuple[int, int]
    sizes: tuple[tuple[int, int], ...]
    max_small_px: int = rendering.MAX_SMALL_PX
    tile_px: int = rendering.TILE_PX
    num_views: int = 1

    @property
    def images(self) -> Tensor:
        return noise(len(self.sizes), *self.canvas)

    @property
    def params(self) -> list[ViewParams]:
        """Views of which every other one is flipped, jittered, gray and blurred, in four ways."""
        return [self._view(number) for number in range(self.num_views)]

    def _view(self, number: int) -> ViewParams:
        some = sample_view(self.recipe, torch.tensor(self.sizes), draws(number))
        place = torch.arange(len(some)) + number
        blur = place % 4 < 2 if self.recipe.blur_prob else torch.zeros(len(some), dtype=torch.bool)
        return replace(
            some, flip=place % 2 == 0, jitter=place % 3 < 2, gray=place % 5 == 1, blur=blur
        )


FULL = ((32, 32),) * 5
PADDED = ((40, 27), (1, 1), (30, 40), (5, 33))
LARGE = {"max_small_px": 16, "tile_px": 16}
CASES = {
    "cifar": Case(replace(RECIPE, blur_prob=0.0), (32, 32), FULL, num_views=2),
    "strong": Case(replace(STRONG, blur_prob=0.0), (32, 32), FULL),
    "blur": Case(replace(RECIPE, crop_px=28), (40, 40), PADDED),
    "one image": Case(replace(RECIPE, crop_px=24), (30, 50), ((20, 50),)),
    "tiles": Case(replace(RECIPE, crop_px=40), (40, 48), ((40, 48), (22, 31)), **LARGE),
    "tiles without blur": Case(
        replace(STRONG, crop_px=20, blur_prob=0.0), (50, 42), ((50, 40), (34, 42)), **LARGE
    ),
    "photograph": Case(replace(RECIPE, crop_px=66), (80, 96), ((80, 90),)),
}


def made(case: Case, dtype: torch.dtype) -> Tensor:
    """Return the views (V, B, 3, S, S) as the kernels make them."""
    limits = {"MAX_SMALL_PX": case.max_small_px, "TILE_PX": case.tile_px}
    with mock.patch.multiple(rendering, **limits):
        views = rendering.fused_views(case.images, case.params, case.recipe, dtype=dtype)
    assert all(v.is_contiguous(memory_format=torch.channels_last) for v in views)
    return torch.stack(views)


def main() -> None:
    """Make the views of all cases, and those of one in bfloat16 as well."""
    assert os.environ["TRITON_INTERPRET"] == "1"
    found = {name: made(case, torch.float32) for name, case in CASES.items()}
    found["bfloat16"] = made(CASES["one image"], torch.bfloat16)
    torch.save(found, sys.argv[1])


if __name__ == "__main__":
    main()
