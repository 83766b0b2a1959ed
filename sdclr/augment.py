"""The random views of contrastive learning, for a whole batch of uint8 images at once.

    params = sample_view(recipe, sizes_B2, generator)     # all that is random, drawn on the CPU
    view_BCHW = apply_view(images_BCHW, params, recipe)   # none of it is, on any device

On a GPU `sdclr.rendering.render_views` does the second line in fewer launches.

The operations are SimCLR's (Chen et al. 2020, appendix A) with torchvision's definitions, in this
order: random resized crop with flip, colour jitter, grayscale, blur. An image smaller than the
canvas is in its top left corner; its size is the valid area, and no view sees beyond it.

Shapes: B images, C = 3 channels, H x W pixels of the canvas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from sdclr.colour import HUE, blur_, blur_kernel_px, gray_, jitter_
from sdclr.resample import CROP_NUMBERS, Window, resample, sample_crops

_CHUNK_PX = 2**16  # canvas or view pixels worked on together on a CPU, so that they stay in cache

VIEW_NUMBERS = 36
"""Random numbers that each image of a view takes, of which `CROP_NUMBERS` are for its crop."""


@dataclass(frozen=True, kw_only=True)
class AugmentRecipe:
    """Distributions that views are drawn from.

    Args:
        crop_px: side of the square views, px.
        crop_scale_min, crop_scale_max: share of the valid area that is cropped, in (0, 1].
        crop_ratio_min, crop_ratio_max: width / height of the crop, drawn log-uniformly.
        hflip_prob: of a horizontal flip.
        jitter_prob: of colour jitter.
        brightness, contrast, saturation: factors are drawn from [max(0, 1 - x), 1 + x]; x >= 0.
        hue: turns are drawn from [-hue, hue]; at most 1/2, the full circle.
        gray_prob: of grayscale.
        blur_prob: of Gaussian blur with the odd number of taps nearest to 10 % of `crop_px`.
        blur_sigma_min, blur_sigma_max: px.

    Raises:
        ValueError: a value out of its range, by name.
    """

    crop_px: int
    crop_scale_min: float
    crop_scale_max: float
    crop_ratio_min: float
    crop_ratio_max: float
    hflip_prob: float
    jitter_prob: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    gray_prob: float
    blur_prob: float
    blur_sigma_min: float
    blur_sigma_max: float

    def __post_init__(self) -> None:
        checks = [("crop_px", self.crop_px >= 1, "at least 1")]
        for name in ("hflip_prob", "jitter_prob", "gray_prob", "blur_prob"):
            checks.append((name, 0 <= getattr(self, name) <= 1, "in [0, 1]"))
        for name in ("brightness", "contrast", "saturation"):
            checks.append((name, 0 <= getattr(self, name) < math.inf, "at least 0 and finite"))
        checks.append(("hue", 0 <= self.hue <= 0.5, "in [0, 0.5]"))
        for name, top in (("crop_scale", 1.0), ("crop_ratio", math.inf), ("blur_sigma", math.inf)):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            checks.append((f"{name}_min", 0 < low < math.inf, "above 0 and finite"))
            checks.append((f"{name}_max", low <= high < math.inf, f"finite, at least {name}_min"))
            checks.append((f"{name}_max", high <= top, f"at most {top}"))
        for name, ok, rule in checks:
            if not ok:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class ViewParams:
    """Random parameters of the views of B images; tensors of length B.

    Args:
        top, left, height, width: int64, the crop in px of the canvas.
        flip, jitter, gray, blur: bool, whether the operation is applied.
        order: int64 (B, 4), order of 0 brightness, 1 contrast, 2 saturation, 3 hue.
        brightness, contrast, saturation: float32 factors; 1 changes nothing.
        hue: float32, turns; 0 changes nothing.
        blur_sigma: float32, px.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    jitter: Tensor
    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gray: Tensor
    blur: Tensor
    blur_sigma: Tensor

    def __len__(self) -> int:
        return len(self.top)

    def rows(self, start: int, stop: int) -> ViewParams:
        """Return the parameters of images start..stop - 1: one rank's part of the global batch."""
        return self._map(lambda values: values[start:stop])

    def to(self, device: str | torch.device) -> ViewParams:
        """Return the same parameters on another device."""
        # A copy to the CPU has to be complete before it is read, so only the other way is lazy.
        lazy = torch.device(device).type != "cpu"
        return self._map(lambda values: values.to(device, non_blocking=lazy))

    def take(self, index: Tensor) -> ViewParams:
        """Return the parameters of the images of an int64 index."""
        return self._map(lambda values: values.index_select(0, index))

    def _map(self, change: Callable[[Tensor], Tensor]) -> ViewParams:
        return ViewParams(**{f.name: change(getattr(self, f.name)) for f in fields(self)})


def sample_view(
    recipe: AugmentRecipe, sizes_B2: Tensor, generator: np.random.Generator
) -> ViewParams:
    """Draw one view of each image, on the CPU.

    Each image takes `VIEW_NUMBERS` doubles, whatever the recipe and the other images are. To switch
    one operation off leaves the others as they were. With `sdclr.seeds.place_generator` a rank
    draws the views of its own images that a single rank would draw.

    Args:
        recipe: the distributions.
        sizes_B2: int64, height and width in px of each image's valid area.
        generator: advanced by B times `VIEW_NUMBERS` doubles.

    Raises:
        ValueError: an image without pixels.
    """
    sizes_B2 = sizes_B2.cpu()
    if bool((sizes_B2 < 1).any()):
        raise ValueError(f"every image needs pixels, sizes_B2 goes down to {int(sizes_B2.min())}")
    numbers_BK = generator.random((len(sizes_B2), VIEW_NUMBERS))
    numbers_KB = torch.from_numpy(np.ascontiguousarray(numbers_BK.T))
    rest = iter(numbers_KB[CROP_NUMBERS + 4 :].unbind())

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return next(rest).mul(high - low).add_(low).float()

    def factor(strength: float) -> Tensor:
        return uniform(max(0.0, 1.0 - strength), 1.0 + strength)

    top_B, left_B, height_B, width_B = sample_crops(
        sizes_B2,
        numbers_KB[:CROP_NUMBERS],
        scale=(recipe.crop_scale_min, recipe.crop_scale_max),
        ratio=(recipe.crop_ratio_min, recipe.crop_ratio_max),
    )
    return ViewParams(
        top=top_B,
        left=left_B,
        height=height_B,
        width=width_B,
        flip=uniform() < recipe.hflip_prob,
        jitter=uniform() < recipe.jitter_prob,
        order=numbers_KB[CROP_NUMBERS : CROP_NUMBERS + 4].T.argsort(dim=1),
        brightness=factor(recipe.brightness),
        contrast=factor(recipe.contrast),
        saturation=factor(recipe.saturation),
        hue=uniform(-recipe.hue, recipe.hue),
        gray=uniform() < recipe.gray_prob,
        blur=uniform() < recipe.blur_prob,
        blur_sigma=uniform(recipe.blur_sigma_min, recipe.blur_sigma_max),
    )


def apply_view(images_BCHW: Tensor, params: ViewParams, recipe: AugmentRecipe) -> Tensor:
    """Render the views, (B, 3, crop_px, crop_px) float32 in [0, 1], on the device of the images.

    Nothing is drawn here, and no image depends on the others in its batch. On a GPU nothing waits
    for the device as long as `params` are on the CPU, where the work is planned; params from
    elsewhere are copied there first. Call it outside autocast, and without TF32 matrix products:
    those would round the resize to 10 bits.

    Args:
        images_BCHW: uint8.
        params: of these images; the crops inside the canvas.
        recipe: the one that `params` were drawn from; gives `crop_px`.

    Raises:
        ValueError: images of another type or shape, or another number of params.
    """
    check_images(images_BCHW, params)
    device, crop_px = images_BCHW.device, recipe.crop_px
    # `jitter_` wants the images by the place of hue in their order, those without jitter first.
    params = params.to("cpu")
    key_B = torch.where(params.jitter, (params.order == HUE).long().argmax(dim=1), -1)
    key_B, sorted_B = key_B.sort(stable=True)
    params = params.take(sorted_B)
    chunk = max(1, len(params))
    if device.type == "cpu":
        chunk = min(chunk, max(1, _CHUNK_PX // max(crop_px**2, math.prod(images_BCHW.shape[2:]))))
    shape = (len(params), 3, crop_px, crop_px)
    view_BCOO = images_BCHW.new_empty(shape, dtype=torch.float32)
    work_CNOO = images_BCHW.new_empty((3, chunk, crop_px, crop_px), dtype=torch.float32)
    for start in range(0, len(params), chunk):
        part = slice(start, start + chunk)
        rows_N = sorted_B[part].to(device, non_blocking=True)
        part_CNOO = work_CNOO[:, : len(rows_N)]
        some = params.rows(start, start + chunk)
        _render(images_BCHW.index_select(0, rows_N), some, key_B[part], part_CNOO)
        view_BCOO.index_copy_(0, rows_N, part_CNOO.transpose(0, 1))
    return view_BCOO


def _render(images_NCHW: Tensor, p: ViewParams, key_N: Tensor, view_CNOO: Tensor) -> None:
    """Write the views of images that are sorted by the place of hue, -1 for none, in `key_N`."""
    device = images_NCHW.device
    on = p.to(device)
    rows = Window(start_B=on.top, length_B=on.height)
    columns = Window(start_B=on.left, length_B=on.width, flip_B=on.flip)
    resample(images_NCHW, rows, columns, view_CNOO, kernel="bicubic")
    pixels_CNP = view_CNOO.flatten(2)
    starts = torch.searchsorted(key_N, torch.arange(5)).tolist()
    if starts[0] < len(key_N):
        factors_N4 = torch.stack([on.brightness, on.contrast, on.saturation, on.hue], dim=1)
        jitter_(pixels_CNP, on.order, factors_N4, starts)
    gray_R = p.gray.nonzero()[:, 0]
    if len(gray_R):
        gray_(pixels_CNP, gray_R.to(device, non_blocking=True))
    blur_R = p.blur.nonzero()[:, 0]
    if len(blur_R):
        sigma_R = p.blur_sigma[blur_R].to(device, non_blocking=True)
        kernel_px = blur_kernel_px(view_CNOO.shape[-1])
        blur_(view_CNOO, blur_R.to(device, non_blocking=True), sigma_R, kernel_px=kernel_px)


def centre_view(
    images_BCHW: Tensor, sizes_B2: Tensor, *, crop_px: int, resize_px: int | None
) -> Tensor:
    """Return the evaluation view, (B, 3, crop_px, crop_px) float32 in [0, 1]; nothing is random.

    torchvision's Resize(resize_px), which is bilinear and antialiased, then CenterCrop(crop_px).

    Args:
        images_BCHW: uint8.
        sizes_B2: int64, height and width in px of each image's valid area.
        crop_px: side of the view.
        resize_px: the short side before the crop; None to crop without a resize.

    Raises:
        ValueError: images of another type or shape, or smaller than the crop.
    """
    check_images(images_BCHW)
    size_2B = sizes_B2.cpu().T
    new_2B = size_2B
    if resize_px is not None:
        # torchvision truncates resize_px * long / short; whole numbers, so // is the same.
        new_2B = resize_px * size_2B // size_2B.amin(dim=0)
    if bool((new_2B < crop_px).any()):
        raise ValueError(
            f"a side of {int(new_2B.min())} px is smaller than crop_px = {crop_px}: "
            f"set resize_px to at least {crop_px}, it is {resize_px}"
        )
    if resize_px is None and images_BCHW.shape[2:] == (crop_px, crop_px):
        return images_BCHW.float().div_(255.0)
    device = images_BCHW.device
    offset_2B = ((new_2B - crop_px) / 2).round().long().to(device)
    new_2B, size_2B = new_2B.to(device), size_2B.to(device)
    rows, columns = (
        Window(
            start_B=torch.zeros_like(size_2B[axis]),
            length_B=size_2B[axis],
            resized_B=new_2B[axis],
            offset_B=offset_2B[axis],
        )
        for axis in (0, 1)
    )
    view_CBOO = images_BCHW.new_empty((3, len(sizes_B2), crop_px, crop_px), dtype=torch.float32)
    resample(images_BCHW, rows, columns, view_CBOO, kernel="bilinear")
    return view_CBOO.transpose(0, 1).contiguous()


def check_images(images_BCHW: Tensor, *params: ViewParams) -> None:
    """Refuse images of another type or shape, and another number of params.

    Raises:
        ValueError: what was found instead.
    """
    if images_BCHW.dtype != torch.uint8 or images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3:
        found = f"{images_BCHW.dtype} {tuple(images_BCHW.shape)}"
        raise ValueError(f"images must be uint8 of shape (B, 3, H, W), got {found}")
    for some in params:
        if len(some) != len(images_BCHW):
            raise ValueError(f"{len(some)} params for {len(images_BCHW)} images")
