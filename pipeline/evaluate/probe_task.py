"""Ray task of the protocols that train on views: one classifier on one model, frozen or not.

Shapes: N shared labelled images, n of them trained on, M images to score on, D features, C classes,
B views of one step, S side of the views in px.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.embed.features import BATCH_IMAGES
from pipeline.errors import TrainingError
from pipeline.model.source import ModelSource, load_model
from sdclr import ImageSet, centre_view
from sdclr.accuracy import per_class_accuracy
from sdclr.trained_probe import ProbeEpoch, ProbeRecipe, ProbeView, best_epoch, train_probe
from sdclr.twin import Network


@dataclass(frozen=True)
class ProbeJob:
    """One classifier to train; plain values only.

    Args:
        config_json: the run's configuration.
        source: the model whose features are classified.
        init_from: of `load_model`.
        rows_n: which of the shared images to train on.
        recipe, view: of `train_probe`.
        num_features: D.
        num_classes: C.
        device: `cpu` or `cuda`.
        num_threads: on a CPU.
    """

    config_json: str
    source: ModelSource
    init_from: str | None
    rows_n: NDArray[np.int64]
    recipe: ProbeRecipe
    view: ProbeView
    num_features: int
    num_classes: int
    device: str
    num_threads: int


@dataclass(frozen=True)
class Labelled:
    """Features and labels to score on: (M, D) float32 and (M,) int64."""

    features_MD: NDArray[np.float32]
    labels_M: NDArray[np.int64]


@dataclass(frozen=True)
class Pictures:
    """Images to score a fine-tuned model on, whose features are not known beforehand.

    Args:
        images_MCHW, sizes_M2: canvases, uint8, and the size of each image on its canvas.
        labels_M: int64.
        crop_px, resize_px: of the view, as in `centre_view`.
    """

    images_MCHW: NDArray[np.uint8]
    sizes_M2: NDArray[np.int64]
    labels_M: NDArray[np.int64]
    crop_px: int
    resize_px: int | None


@dataclass(frozen=True)
class ProbeStep:
    """An epoch that has ended; `val` is the accuracy on the val set, None without one."""

    epoch: int
    val: float | None


@dataclass(frozen=True)
class ProbeEnd:
    """Accuracies per class (C,) of the last and the best epoch; best = last without a val set."""

    last: NDArray[np.float64]
    best: NDArray[np.float64]
    best_epoch: int | None


def train_job(
    job: ProbeJob,
    images_NCHW: NDArray[np.uint8],
    sizes_N2: NDArray[np.int64],
    labels_N: NDArray[np.int64],
    val: Labelled | None,
    test: Labelled | Pictures,
) -> Iterator[ProbeStep | ProbeEnd]:
    """Yield a `ProbeStep` after each epoch, and a `ProbeEnd` of what is scored on at the end.

    A model that is scored on `Pictures` is fine-tuned: all its weights are trained.

    Raises:
        TrainingError: the loss is not finite.
        CheckpointError: the model cannot be loaded.
    """
    torch.set_num_threads(job.num_threads)
    config = Config.model_validate_json(job.config_json)
    network = load_model(config, job.source, init_from=job.init_from).network.to(job.device).eval()
    rows_n, is_tuned = job.rows_n, isinstance(test, Pictures)
    images = ImageSet(torch.from_numpy(images_NCHW[rows_n]), torch.from_numpy(sizes_N2[rows_n]))

    epochs = []
    try:
        for epoch in train_probe(
            network.features,
            images,
            torch.from_numpy(labels_N[rows_n]),
            num_features=job.num_features,
            num_classes=job.num_classes,
            view=job.view,
            recipe=job.recipe,
            val=None if val is None else _tensors(val),
            seed=config.run.seed,
            device=job.device,
            backbone=network.backbone if is_tuned else None,
        ):
            epochs.append(epoch)
            yield ProbeStep(epoch.epoch, epoch.val_accuracy)
    except FloatingPointError as error:
        if is_tuned:
            raise TrainingError(
                "E-TRAIN-860",
                f"fine-tuning {job.source.name} diverged: {error}",
                where="evaluate.protocols",
                todo="look at the weights of this model, or leave the protocols finetune-* out",
            ) from error
        raise TrainingError(
            "E-TRAIN-002",
            f"the linear classifier on {job.source.name} diverged: {error}",
            where="evaluate.protocols",
            todo="look at the features of this model: the published learning rate of 30 is for "
            "features of a trained network",
        ) from error
    if isinstance(test, Pictures):
        test = Labelled(_features(network, test, job.device), test.labels_M)
    test_MD, labels_M = _tensors(test)

    def accuracy(epoch: ProbeEpoch) -> NDArray[np.float64]:
        return per_class_accuracy(epoch.probe.predict(test_MD), labels_M, job.num_classes)

    best = best_epoch(epochs) if val is not None else None
    yield ProbeEnd(
        last=accuracy(epochs[-1]),
        best=accuracy(epochs[-1] if best is None else best),
        best_epoch=None if best is None else best.epoch,
    )


@torch.inference_mode()
def _features(network: Network, pictures: Pictures, device: str) -> NDArray[np.float32]:
    """Return the features (M, D) of the centre views."""
    parts = []
    for start in range(0, len(pictures.labels_M), BATCH_IMAGES):
        part = slice(start, start + BATCH_IMAGES)
        view_BCSS = centre_view(
            torch.from_numpy(pictures.images_MCHW[part].copy()).to(device),
            torch.from_numpy(pictures.sizes_M2[part].copy()),
            crop_px=pictures.crop_px,
            resize_px=pictures.resize_px,
        )
        parts.append(network.features(view_BCSS).float().cpu())
    return torch.cat(parts).numpy()


def _tensors(labelled: Labelled) -> tuple[torch.Tensor, torch.Tensor]:
    # Arrays from the object store are read-only, which torch warns about.
    return torch.from_numpy(labelled.features_MD.copy()), torch.from_numpy(labelled.labels_M.copy())
