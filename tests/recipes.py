"""Small recipes, networks and images that several tests train on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from sdclr import (
    AugmentRecipe,
    ImageSet,
    LossMemory,
    OperationRule,
    PruneRule,
    Recipe,
    TemperatureSchedule,
    Trainer,
    build_network,
)
from sdclr.methods import method_class
from sdclr.order import EpochPlan

AUGMENT = AugmentRecipe(
    crop_px=16,
    crop_scale_min=0.3,
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
    blur_prob=0.0,
    blur_sigma_min=0.1,
    blur_sigma_max=2.0,
)
RECIPE = Recipe(
    method="sdclr",
    epochs=3,
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    warmup_epochs=1,
    final_lr=1e-6,
    temperature=0.2,
    augment=AUGMENT,
    seed=0,
    prune=PruneRule(prune_ratio=0.9),
    schedule=TemperatureSchedule(low=0.1, high=1.0, period_epochs=4),
    boost=OperationRule(num_operations=2),
)


def some_images(num_images: int = 40, px: int = 16) -> ImageSet:
    g = torch.Generator().manual_seed(7)
    shape = (num_images, 3, px, px)
    return ImageSet(torch.randint(0, 256, shape, generator=g, dtype=torch.uint8))


def some_plan(num_images: int = 40, *, num_ranks: int = 1) -> EpochPlan:
    return EpochPlan(num_images=num_images, global_batch=8, drop_last=True, num_ranks=num_ranks)


def some_trainer(
    plan: EpochPlan, *, dtype: torch.dtype = torch.float32, device: str = "cpu", **changes: Any
) -> Trainer:
    recipe = replace(RECIPE, **changes)
    network = build_network(
        "resnet8", stem="cifar", head_depth=2, embedding_dim=16, seed=recipe.seed
    )
    needed = method_class(recipe.method).needs_losses
    memory = LossMemory(plan.num_images, momentum=0.5) if needed else None
    return Trainer(
        network.to(dtype), recipe, steps_per_epoch=plan.num_steps, device=device, memory=memory
    )
