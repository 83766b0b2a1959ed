"""The recipe: everything that a trainer needs besides the network and the images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sdclr.augment import AugmentRecipe
from sdclr.operations import OperationRule
from sdclr.prune import PruneRule
from sdclr.schedule import TemperatureSchedule


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training.

    Args:
        method: a name in `sdclr.methods`.
        epochs: passes over the set.
        lr: peak learning rate; not scaled by anything.
        momentum: of SGD, without Nesterov, and of LARS; AdamW's first beta.
        weight_decay: L2 for SGD and LARS, decoupled for AdamW.
        warmup_epochs: linear warm-up, clamped to a tenth of the run.
        final_lr: where the cosine ends.
        temperature: of NT-Xent.
        boost: operations on top of the views; methods with BCL need it.
        augment: the two views.
        prune: the mask; methods with a pruned branch need it, others ignore it.
        refresh_epochs: between two masks, > 0; rounded to steps, at least one.
        dual_norm: whether the pruned branch has BatchNorm layers of its own.
        schedule: of the temperature, in place of `temperature`; methods with TS need it.
        seed: of order, views and random masks.
        precision: of the forward pass; loss and weights stay float32.
        sync_batchnorm: BatchNorm statistics over all ranks; without it, a state holds those of the
            rank that captured it.
        micro_batch: most images of each view that a rank holds activations of; None for all of its
            share. The gradient is the whole batch's, see `sdclr.gradcache`.
        compile: the forward pass through torch.compile.
        cuda_graph: whether a GPU gets each step as one CUDA graph, see `sdclr.step_graph`; with the
            compiled forward pass in it.
        optimizer: see `sdclr.optimizers`.
        decay_all: whether norms and biases decay as well, as published.
    """

    method: str
    epochs: int
    lr: float
    momentum: float
    weight_decay: float
    warmup_epochs: float
    final_lr: float
    temperature: float
    augment: AugmentRecipe
    seed: int
    prune: PruneRule | None = None
    refresh_epochs: float = 1.0
    dual_norm: bool = True
    schedule: TemperatureSchedule | None = None
    boost: OperationRule | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    sync_batchnorm: bool = True
    micro_batch: int | None = None
    compile: bool = False
    cuda_graph: bool = True
    optimizer: Literal["sgd", "adamw", "lars"] = "sgd"
    decay_all: bool = True


def cifar_recipe(method: str, *, epochs: int = 2000, seed: int = 0) -> Recipe:
    """Return the published recipe for 32 px images (Jiang et al. 2021), for global batches of 512.

    Args:
        method: a name in `sdclr.methods`; prune ratio 0.9 where there is a pruned branch.
        epochs: passes over the set; 2000 are published.
        seed: of order, views and random masks.
    """
    augment = AugmentRecipe(
        crop_px=32,
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
    return Recipe(
        method=method,
        epochs=epochs,
        lr=0.5,
        momentum=0.9,
        weight_decay=1e-4,
        warmup_epochs=10.0,
        final_lr=1e-6,
        temperature=0.2,
        schedule=TemperatureSchedule(low=0.1, high=1.0, period_epochs=epochs / 5),
        boost=OperationRule(),
        augment=augment,
        seed=seed,
        prune=PruneRule(prune_ratio=0.9),
    )


def photo_recipe(
    method: str, *, crop_px: int, epochs: int, global_batch: int, seed: int = 0
) -> Recipe:
    """Return a recipe for photographs of any size: ImageNet's views, learning rate by the batch.

    Args:
        method: a name in `sdclr.methods`.
        crop_px: side of the views, px.
        epochs: passes over the set.
        global_batch: images of one step; the learning rate is 0.5 for 256 and proportional to it.
        seed: of order, views and random masks.
    """
    base = cifar_recipe(method, epochs=epochs, seed=seed)
    augment = replace(base.augment, crop_px=crop_px, crop_scale_min=0.2)
    return replace(
        base,
        lr=base.lr * global_batch / 256,
        augment=augment,
        prune=PruneRule(prune_ratio=0.7),
    )
