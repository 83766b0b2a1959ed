"""Pre-training on a folder of photographs in one call, on one device and without Ray.

    result = sdclr.pretrain("photos", epochs=60)
    result.alarms                             # empty when the network learned
    result.encoder.save("backbone.safetensors")

The same trainer as on a cluster; `pipeline/` adds streaming, checkpoints, workers and evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from sdclr.checkup import Alarm, Checkup, Measures, alarms
from sdclr.encoder import CANVAS_PER_CROP, Encoder
from sdclr.loss_memory import PUBLISHED_MOMENTUM, LossMemory
from sdclr.methods import method_class
from sdclr.order import EpochPlan
from sdclr.photographs import Photographs, read_photographs
from sdclr.recipe import photo_recipe
from sdclr.reports import StepReport
from sdclr.trainer import Trainer
from sdclr.twin import build_network

_NUM_PROBED = 512


@dataclass(frozen=True)
class Pretrained:
    """Result of a pre-training.

    Attributes:
        encoder: the trained backbone with its view.
        photographs: what it was trained on, with rejects.
        before, after: measures that need no labels, see `sdclr.checkup.MEASURES`.
        alarms: what went wrong; empty when nothing did.
        losses: of each step.
    """

    encoder: Encoder
    photographs: Photographs
    before: Measures
    after: Measures
    alarms: tuple[Alarm, ...]
    losses: tuple[float, ...]


def pretrain(
    source: str | Path | Iterable[str | Path],
    *,
    method: str = "sdclr",
    backbone: str = "resnet18",
    stem: str = "imagenet",
    crop_px: int = 64,
    epochs: int = 60,
    batch: int = 64,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Callable[[StepReport, int], None] | None = None,
) -> Pretrained:
    """Pre-train on photographs that fit into memory.

    Args:
        source: a folder, or paths.
        method: a name in `sdclr.methods`.
        backbone: a name in `sdclr.backbone`.
        stem: `imagenet`, or `cifar` for small images.
        crop_px: side of the views, px.
        epochs: passes over the photographs.
        batch: photographs of one step; all of them where there are fewer.
        seed: of weights, order and views.
        device: None takes a GPU if there is one.
        progress: called after each step with its report and the number of steps of the run.

    Raises:
        FileNotFoundError: there is no such folder, or no photograph in it.
        ValueError: fewer than 4 photographs can be read, or an argument is out of range.
        NonFiniteError: the loss is not finite.
        StarvedLayerError: pruning would leave a layer empty.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    photographs = read_photographs(source, canvas_px=round(crop_px * CANVAS_PER_CROP))
    images = photographs.images
    if len(images) < 4:
        raise ValueError(f"contrastive training needs 4 photographs or more, got {len(images)}")
    batch = min(batch, len(images))
    recipe = photo_recipe(method, crop_px=crop_px, epochs=epochs, global_batch=batch, seed=seed)
    plan = EpochPlan(num_images=len(images), global_batch=batch, drop_last=True)
    network = build_network(backbone, stem=stem, head_depth=2, seed=seed, image_px=crop_px)
    needed = method_class(method).needs_losses
    memory = LossMemory(len(images), momentum=PUBLISHED_MOMENTUM) if needed else None
    trainer = Trainer(network, recipe, steps_per_epoch=plan.num_steps, device=device, memory=memory)
    checkup = Checkup.of_images(images, num_images=_NUM_PROBED, crop_px=crop_px)
    before, reports = checkup(trainer.model), []
    for report in trainer.run(images.feed(plan, seed=seed)):
        reports.append(report)
        if progress is not None:
            progress(report, trainer.num_steps)
    after = checkup(trainer.model)
    encoder = Encoder(network.backbone, architecture=backbone, stem=stem, crop_px=crop_px)
    return Pretrained(
        encoder=encoder.to(device),
        photographs=photographs,
        before=before,
        after=after,
        alarms=tuple(alarms([before, after], num_steps=trainer.num_steps)),
        losses=tuple(report.loss for report in reports),
    )
