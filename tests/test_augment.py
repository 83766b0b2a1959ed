"""Views against torchvision, image by image, and the edges. For the draws: test_augment_params."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as T
from torchvision.transforms.v2 import functional as F

from sdclr.augment import AugmentRecipe, ViewParams, apply_view, centre_view, sample_view
from sdclr.colour import blur_kernel_px

RECIPE = AugmentRecipe(
    crop_px=32,
    crop_scale_min=0.1,
    crop_scale_max=1.0,
    crop_ratio_min=0.75,
    crop_ratio_max=4 / 3,
    hflip_prob=0.5,
    jitter_prob=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    gray_prob=0.2,
    blur_prob=0.5,
    blur_sigma_min=0.1,
    blur_sigma_max=2.0,
)
IMAGENET = replace(RECIPE, crop_px=224, crop_scale_min=0.08)
STRONG = replace(RECIPE, jitter_prob=1.0, brightness=1.5, contrast=1.0, saturation=2.0, hue=0.5)
NOTHING = replace(RECIPE, hflip_prob=0.0, jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(num: int, height: int, width: int) -> Tensor:
    shape = (num, 3, height, width)
    return torch.randint(0, 256, shape, generator=generator(9), dtype=torch.uint8)


def random_sizes(num: int, low: int, high: int) -> Tensor:
    return torch.randint(low, high + 1, (num, 2), generator=generator(4))


def by_torchvision(image: Tensor, p: ViewParams, row: int, recipe: AugmentRecipe) -> Tensor:
    """One view of one image in float64, by torchvision's functions."""
    box = [int(values[row]) for values in (p.top, p.left, p.height, p.width)]
    x: Tensor = F.resized_crop(
        image.double() / 255,
        *box,
        [recipe.crop_px] * 2,
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    ).clamp(0, 1)
    if p.flip[row]:
        x = F.horizontal_flip(x)
    steps: list[tuple[Callable[[Tensor, float], Tensor], Tensor]] = [
        (F.adjust_brightness, p.brightness),
        (F.adjust_contrast, p.contrast),
        (F.adjust_saturation, p.saturation),
        (F.adjust_hue, p.hue),
    ]
    for op in p.order[row].tolist() if p.jitter[row] else []:
        adjust, factor_B = steps[op]
        x = adjust(x, float(factor_B[row]))
    if p.gray[row]:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if p.blur[row]:
        x = F.gaussian_blur(x, [blur_kernel_px(recipe.crop_px)] * 2, [float(p.blur_sigma[row])] * 2)
    return x


def largest_difference(
    images: Tensor, sizes: Tensor, ours: Tensor, p: ViewParams, recipe: AugmentRecipe
) -> list[float]:
    """Per image; torchvision sees the valid area only."""
    found = []
    for row, (height, width) in enumerate(sizes.tolist()):
        theirs = by_torchvision(images[row, :, :height, :width], p, row, recipe)
        found.append(float((ours[row] - theirs).abs().max()))
    return found


# The mathematics is the same; what is left is float32 rounding of the resize's weights, which
# grows with the position in px, and which three colour factors of up to 3 multiply on noise.
@pytest.mark.parametrize(
    ("recipe", "canvas_px", "low_px", "num", "tolerance"),
    [
        (RECIPE, 32, 32, 160, 5e-6),
        (STRONG, 32, 32, 160, 1e-5),
        (RECIPE, 48, 1, 160, 1e-5),
        (IMAGENET, 320, 200, 8, 3e-5),
    ],
    ids=["cifar", "strong", "canvas", "imagenet"],
)
def test_views_are_torchvisions(
    recipe: AugmentRecipe, canvas_px: int, low_px: int, num: int, tolerance: float
) -> None:
    images, sizes = noise(num, canvas_px, canvas_px), random_sizes(num, low_px, canvas_px)
    params = sample_view(recipe, sizes, draws())
    ours = apply_view(images, params, recipe)
    assert ours.shape == (num, 3, recipe.crop_px, recipe.crop_px)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    assert ours.min() >= 0
    assert ours.max() <= 1
    assert max(largest_difference(images, sizes, ours, params, recipe)) <= tolerance


@pytest.mark.parametrize("name", ["top", "flip", "jitter", "order", "brightness", "hue", "gray"])
def test_one_wrong_parameter_shows(name: str) -> None:
    images, sizes = noise(40, 40, 40), random_sizes(40, 36, 40)
    recipe = replace(RECIPE, jitter_prob=1.0, gray_prob=0.0, crop_scale_max=0.5)
    params = sample_view(recipe, sizes, draws())
    values = getattr(params, name)
    wrong = ~values if values.dtype == torch.bool else values.flip(0)
    ours = apply_view(images, replace(params, **{name: wrong}), recipe)
    different = torch.tensor(largest_difference(images, sizes, ours, params, recipe)) > 1e-3
    # Some pairs of orders differ only in steps that commute.
    assert different.double().mean() > (0.5 if name == "order" else 0.8)


def test_with_nothing_on_and_the_whole_image_the_view_is_the_image() -> None:
    images = noise(3, 32, 32)
    recipe = replace(NOTHING, crop_scale_min=1.0, crop_ratio_min=1.0, crop_ratio_max=1.0)
    params = sample_view(recipe, torch.tensor([[32, 32]] * 3), draws())
    view = apply_view(images, params, recipe)
    torch.testing.assert_close(view, images / 255, atol=1e-6, rtol=0)


def test_what_lies_outside_the_valid_area_is_never_seen() -> None:
    sizes = random_sizes(60, 5, 30)
    params = sample_view(RECIPE, sizes, draws())
    dark, bright = noise(60, 32, 32), noise(60, 32, 32)
    for row, (height, width) in enumerate(sizes.tolist()):
        bright[row, :, height:], bright[row, :, :, width:] = 255, 255
    assert not torch.equal(dark, bright)
    assert torch.equal(apply_view(dark, params, RECIPE), apply_view(bright, params, RECIPE))


def test_parts_of_a_batch_equal_the_whole() -> None:
    """To the last bits: how the batch is cut may change the order of sums, nothing else."""
    images, sizes = noise(250, 32, 32), random_sizes(250, 20, 32)
    params = sample_view(RECIPE, sizes, draws())
    whole = apply_view(images, params, RECIPE)
    parts = [(0, 125), (125, 249), (249, 250)]
    cut = [apply_view(images[a:b], params.rows(a, b), RECIPE) for a, b in parts]
    torch.testing.assert_close(torch.cat(cut), whole, atol=1e-6, rtol=0)
    shifted = apply_view(images[:125], params.rows(1, 126), RECIPE)
    assert (shifted - whole[:125]).abs().amax((1, 2, 3)).min() > 0.01


def test_an_empty_batch_and_images_of_one_pixel() -> None:
    nothing = sample_view(RECIPE, torch.empty(0, 2, dtype=torch.int64), draws())
    assert apply_view(noise(0, 32, 32), nothing, RECIPE).shape == (0, 3, 32, 32)
    sizes = torch.ones(20, 2, dtype=torch.int64)
    params = sample_view(NOTHING, sizes, draws())
    images = noise(20, 8, 8)
    view = apply_view(images, params, NOTHING)
    expected = (images[:, :, :1, :1] / 255).expand_as(view)
    torch.testing.assert_close(view, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("resize_px", [40, 57, 32, None])
def test_centre_view_is_torchvisions(resize_px: int | None) -> None:
    sizes = torch.tensor([[64, 64], [50, 64], [64, 41], [33, 60], [32, 32], [64, 32]])
    images = noise(len(sizes), 64, 64)
    ours = centre_view(images, sizes, crop_px=32, resize_px=resize_px)
    resize = [] if resize_px is None else [T.Resize(resize_px, antialias=True)]
    for row, (height, width) in enumerate(sizes.tolist()):
        image = images[row, :, :height, :width].double() / 255
        theirs = T.Compose([*resize, T.CenterCrop(32)])(image)
        torch.testing.assert_close(ours[row].double(), theirs, atol=1e-5, rtol=0)
    wrong = T.Compose([T.Resize(resize_px or 45, antialias=True), T.CenterCrop(32)])(images[0])
    assert (ours[1] - wrong / 255).abs().max() > 0.1


def test_centre_view_of_images_of_the_crop_size_is_exact() -> None:
    images, sizes = noise(4, 32, 32), torch.tensor([[32, 32]] * 4)
    ours = centre_view(images, sizes, crop_px=32, resize_px=None)
    assert torch.equal(ours, images / 255)


def test_centre_view_refuses_images_smaller_than_the_crop() -> None:
    sizes = torch.tensor([[32, 32], [32, 20]])
    for resize_px in (None, 24):
        with pytest.raises(ValueError, match="set resize_px to at least 28"):
            centre_view(noise(2, 32, 32), sizes, crop_px=28, resize_px=resize_px)


def test_wrong_inputs_are_refused() -> None:
    params = sample_view(RECIPE, random_sizes(2, 8, 8), draws())
    with pytest.raises(ValueError, match="uint8"):
        apply_view(noise(2, 8, 8).float(), params, RECIPE)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got .*\(2, 1, 8, 8\)"):
        centre_view(noise(2, 8, 8)[:, :1], random_sizes(2, 8, 8), crop_px=8, resize_px=None)
    with pytest.raises(ValueError, match="2 params for 3 images"):
        apply_view(noise(3, 8, 8), params, RECIPE)
    with pytest.raises(ValueError, match="goes down to 0"):
        sample_view(RECIPE, torch.tensor([[4, 0]]), draws())


def test_nothing_waits_for_the_device() -> None:
    """Tensors on "meta" have no values, so any step that reads one back would fail here."""
    images, sizes = noise(64, 48, 48).to("meta"), random_sizes(64, 20, 48)
    params = sample_view(RECIPE, sizes, draws())
    view = apply_view(images, params, RECIPE)
    assert (view.device.type, view.shape) == ("meta", (64, 3, 32, 32))
    assert centre_view(images, sizes, crop_px=32, resize_px=40).device.type == "meta"
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        apply_view(images, params.to("meta"), RECIPE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("params_on", ["cpu", "cuda"])
def test_a_gpu_makes_the_same_views(params_on: str) -> None:
    images, sizes = noise(64, 48, 48), random_sizes(64, 20, 48)
    params = sample_view(RECIPE, sizes, draws())
    expected = apply_view(images, params, RECIPE)
    ours = apply_view(images.cuda(), params.to(params_on), RECIPE)
    torch.testing.assert_close(ours.cpu(), expected, atol=1e-5, rtol=0)
