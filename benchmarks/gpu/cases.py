"""Two networks with their images, in full size and small, and the bound of a step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image

from benchmarks.augment import CIFAR, IMAGENET, pil_pipeline, smooth_images
from pipeline.model.roofline import Ceilings, work
from sdclr import EpochPlan, ImageSet, Recipe, Trainer, build_network, cifar_recipe
from sdclr.augment import AugmentRecipe
from sdclr.imageset import Batch


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its images, and the ratio to the published scheme that is aimed at."""

    name: str
    backbone: str
    stem: str
    canvas_px: int
    batch: int
    augment: AugmentRecipe
    target: float


FULL = {
    "resnet18": Case(
        name="ResNet-18 32 px, batch 512", backbone="resnet18", stem="cifar", canvas_px=32,
        batch=512, augment=CIFAR, target=3.5,
    ),
    "resnet50": Case(
        name="ResNet-50 224 px, batch 256", backbone="resnet50", stem="imagenet", canvas_px=256,
        batch=256, augment=IMAGENET, target=5.0,
    ),
}  # fmt: skip


def case_of(name: str, *, small: bool) -> Case:
    """Return a case by name, in a size for a CPU if asked."""
    case = FULL[name]
    if not small:
        return case
    augment = replace(case.augment, crop_px=24)
    label = f"ResNet-8 24 px, batch 6, for {case.name.partition(' ')[0]}"
    return replace(case, name=label, backbone="resnet8", canvas_px=28, batch=6, augment=augment)


def trainer_of(
    case: Case, device: torch.device, *, steps_per_epoch: int = 1, **changes: object
) -> Trainer:
    """Return a trainer of a case that has made its masks."""
    recipe: Recipe = replace(cifar_recipe("sdclr"), augment=case.augment, **changes)  # type: ignore[arg-type]
    network = build_network(case.backbone, stem=case.stem, head_depth=2, seed=0)
    trainer = Trainer(network, recipe, steps_per_epoch=steps_per_epoch, device=device)
    trainer.method.refresh(trainer.model, step=0, steps_per_epoch=1)
    return trainer


def batch_of(case: Case, device: torch.device) -> Batch:
    """Return a batch whose images are on the device."""
    images = ImageSet(smooth_images(case.batch, case.canvas_px).to(device))
    plan = EpochPlan(num_images=case.batch, global_batch=case.batch, drop_last=True)
    return next(iter(images.feed(plan, seed=0).batches(0)))


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Two PIL views of each image, as the published loader makes them."""

    def __init__(self, images_NCHW: Tensor, augment: AugmentRecipe) -> None:
        self.images = [to_pil_image(image) for image in images_NCHW]
        self.pipeline = pil_pipeline(augment)

    def __len__(self) -> int:
        return 1_000_000  # never ends while it is timed

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index % len(self.images)]
        return self.pipeline(image), self.pipeline(image)


def bound_s(case: Case, *, flops: float, bytes_per_s: float, value_bytes: int = 2) -> float:
    """Return the least seconds of a joint step on a device with these two ceilings.

    See `pipeline.model.roofline.work`; a joint step makes two views of each image.

    Args:
        case: the network and its batch.
        flops: floating-point operations a second.
        bytes_per_s: of memory.
        value_bytes: of an activation.
    """
    network = build_network(case.backbone, stem=case.stem, head_depth=2, seed=0).backbone
    at = Ceilings(flops, bytes_per_s)
    return 2 * case.batch * work(network, case.augment.crop_px, at, value_bytes=value_bytes).bound_s
