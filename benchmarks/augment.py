"""Views per second on one core: sdclr.augment beside torchvision's pipelines, both recipes.

    python -m benchmarks.augment

CIFAR: one view of the same 256 images of 32 px, from uint8 pixels (ours) and from PIL images
(torchvision, what the published code does) to float tensors. ImageNet: one view of 224 px of the
same 16 images of 256 px, beside torchvision v2 on uint8 tensors, image by image, PIL, and kornia on
the batch where it is installed. Ours includes drawing the parameters. Time is CPU time of the one
thread, and all take turns.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import v2

from benchmarks.table import Row, main
from benchmarks.timing import in_turns, ratios
from sdclr import cifar_recipe
from sdclr.augment import AugmentRecipe, apply_view, sample_view
from sdclr.colour import blur_kernel_px

CIFAR = cifar_recipe("sdclr").augment
IMAGENET = replace(CIFAR, crop_px=224, crop_scale_min=0.08, blur_prob=0.5)
BLUR_PX = blur_kernel_px(224)


def smooth_images(num_images: int, side_px: int) -> Tensor:
    """Return images as smooth as photographs, uint8 (N, 3, side, side)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num_images, 3, 8, 8, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, side_px, mode="bicubic", align_corners=False)
    return fine.clamp(0, 1).mul(255).round().to(torch.uint8)


def ours(images_BCHW: Tensor, recipe: AugmentRecipe) -> Callable[[], Tensor]:
    """Draw one view of each image, with new parameters on each call."""
    sizes_B2 = torch.tensor(images_BCHW.shape[2:]).expand(len(images_BCHW), 2)
    generator = np.random.default_rng(0)
    return lambda: apply_view(images_BCHW, sample_view(recipe, sizes_B2, generator), recipe)


def pil_pipeline(recipe: AugmentRecipe) -> T.Compose:
    """Compose transforms of PIL images as the published code does."""
    blur = T.GaussianBlur(blur_kernel_px(recipe.crop_px), (0.1, 2.0))
    return T.Compose(
        [
            T.RandomResizedCrop(
                recipe.crop_px,
                (recipe.crop_scale_min, 1.0),
                interpolation=T.InterpolationMode.BICUBIC,
            ),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            *([T.RandomApply([blur], p=recipe.blur_prob)] if recipe.blur_prob else []),
            T.ToTensor(),
        ]
    )


def pil(images_BCHW: Tensor, recipe: AugmentRecipe) -> Callable[[], Tensor]:
    """Apply torchvision's PIL pipeline image by image."""
    pipeline = pil_pipeline(recipe)
    images = [Image.fromarray(np.asarray(image.permute(1, 2, 0))) for image in images_BCHW]
    return lambda: torch.stack([pipeline(image) for image in images])


def tensors_v2(images_BCHW: Tensor, recipe: AugmentRecipe) -> Callable[[], Tensor]:
    """Apply the v2 transforms image by image: on a batch they draw once for all."""
    pipeline = v2.Compose(
        [
            v2.RandomResizedCrop(
                recipe.crop_px,
                (recipe.crop_scale_min, 1.0),
                interpolation=v2.InterpolationMode.BICUBIC,
                antialias=True,
            ),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(BLUR_PX, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return lambda: torch.stack([pipeline(image) for image in images_BCHW])


def kornia_batch(images_BCHW: Tensor, recipe: AugmentRecipe) -> Callable[[], Tensor]:
    """Apply kornia's batched augmentation, with parameters for each image."""
    from kornia import augmentation as K

    pipeline = torch.nn.Sequential(
        K.RandomResizedCrop(
            (recipe.crop_px, recipe.crop_px), (recipe.crop_scale_min, 1.0), resample="bicubic"
        ),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((BLUR_PX, BLUR_PX), (0.1, 2.0), p=0.5),
    )
    return lambda: pipeline(images_BCHW.float() / 255)


def rows() -> list[Row]:
    """Measure both recipes; the speed of ours is a figure of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small, large = smooth_images(256, 32), smooth_images(16, 256)
    cifar = in_turns(
        {"sdclr": ours(small, CIFAR), "PIL": pil(small, CIFAR)},
        repeats=9,
        clock=time.process_time,
    )
    others = {"torchvision v2": tensors_v2(large, IMAGENET), "PIL": pil(large, IMAGENET)}
    has_kornia = importlib.util.find_spec("kornia") is not None
    if has_kornia:
        others["kornia"] = kornia_batch(large, IMAGENET)
    imagenet = in_turns(
        {"sdclr": ours(large, IMAGENET), **others}, repeats=9, clock=time.process_time
    )
    name = "views of one core, CIFAR recipe 32 px"
    result = [
        Row(name=name, values=[256 / s for s in cifar["sdclr"]], unit="views/s"),
        Row(
            name=name,
            values=ratios(cifar["PIL"], cifar["sdclr"]),
            unit="x",
            versus="torchvision PIL",
            target=4.0,
        ),
    ]
    name = "views of one core, ImageNet recipe 224 px"
    result.append(Row(name=name, values=[16 / s for s in imagenet["sdclr"]], unit="views/s"))
    for other in others:
        values = ratios(imagenet[other], imagenet["sdclr"])
        versus = other if other != "PIL" else "torchvision PIL"
        result.append(Row(name=name, values=values, unit="x", versus=versus))
    if not has_kornia:
        note = "kornia is not installed"
        result.append(Row(name=name, values=(), unit="x", versus="kornia", note=note))
    return result


if __name__ == "__main__":
    main(rows)
