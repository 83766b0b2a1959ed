"""Images per second on one core: sdclr.augment beside torchvision's PIL pipeline, CIFAR recipe.

    python benchmarks/augment.py

Both make one view of the same 256 images of 32 px, from uint8 pixels (ours) and from PIL images
(torchvision) to float tensors; ours includes drawing the parameters. Time is CPU time of the one
thread, and the two alternate, so that a busy machine disturbs both little and alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import transforms as T

from sdclr.augment import AugmentRecipe, apply_view, sample_view

NUM_IMAGES, SIDE_PX, REPEATS = 256, 32, 9
NAMES = ("sdclr images/s", "PIL images/s", "ratio")
RECIPE = AugmentRecipe(
    crop_px=SIDE_PX,
    crop_scale_min=0.1,
    crop_scale_max=1.0,
    crop_ratio_min=3 / 4,
    crop_ratio_max=4 / 3,
    hflip_prob=0.5,
    jitter_prob=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    gray_prob=0.2,
    blur_prob=0.0,
    blur_sigma_min=0.1,
    blur_sigma_max=2.0,
)
PIL_PIPELINE = T.Compose(
    [
        T.RandomResizedCrop(SIDE_PX, (0.1, 1.0), interpolation=T.InterpolationMode.BICUBIC),
        T.RandomHorizontalFlip(),
        T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        T.RandomGrayscale(0.2),
        T.ToTensor(),
    ]
)


def smooth_images() -> torch.Tensor:
    """Images with the smoothness of photographs, uint8 (256, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(NUM_IMAGES, 3, 8, 8, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, SIDE_PX, mode="bicubic", align_corners=False)
    return fine.clamp(0, 1).mul(255).round().to(torch.uint8)


def images_per_s(make_batch: Callable[[], object], num_batches: int) -> float:
    """Mean over some batches, per second of CPU time: one thread, so per core."""
    start = time.process_time()
    for _ in range(num_batches):
        make_batch()
    return num_batches * NUM_IMAGES / (time.process_time() - start)


def main() -> None:
    """Print the repeats, their median and spread, and the ratio."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = smooth_images()
    sizes = torch.tensor([SIDE_PX, SIDE_PX]).expand(NUM_IMAGES, 2)
    pil_images = [Image.fromarray(np.asarray(image.permute(1, 2, 0))) for image in images]
    generator = torch.Generator().manual_seed(0)

    def ours() -> object:
        return apply_view(images, sample_view(RECIPE, sizes, generator), RECIPE)

    def theirs() -> object:
        return torch.stack([PIL_PIPELINE(image) for image in pil_images])

    ours(), theirs()
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, 1 thread")
    print(f"{'repeat':>6} {'sdclr images/s':>15} {'PIL images/s':>13} {'ratio':>6}")
    rows = []
    for repeat in range(REPEATS):
        fast, slow = images_per_s(ours, 60), images_per_s(theirs, 6)
        rows.append((fast, slow, fast / slow))
        print(f"{repeat:6d} {fast:15.0f} {slow:13.0f} {fast / slow:6.1f}")
    for name, values in zip(NAMES, zip(*rows, strict=True), strict=True):
        spread = f"min {min(values):.1f}, max {max(values):.1f}, std {statistics.stdev(values):.1f}"
        print(f"{name}: median {statistics.median(values):.1f} ({spread}, n = {REPEATS})")


if __name__ == "__main__":
    main()
