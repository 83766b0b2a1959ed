"""A classifier trained on views: through the frozen backbone as published, or fine-tuning it.

    min over W, b of  cross_entropy(W f(view(x)) + b, y),   f = dense backbone in evaluation mode

(Jiang et al. 2021, section 4: SGD with learning rate 30 and momentum 0.9, no weight decay; features
are neither normalised nor scaled.) The backbone is in evaluation mode, so the features of a view do
not depend on its batch. After each epoch the classifier is scored on validation features, whose
images are not augmented; the epoch of the best score is the protocol's.

Fine-tuning minimises the same loss over the weights of f as well, with the settings of Chen et al.
2020 (SimCLR, appendix B.5). f stays in evaluation mode: norms keep the statistics of pre-training,
so a batch of a few images does no harm.

Shapes: N labelled images, B images of one step, V validation images, D features, C classes,
S side of the views in px.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdclr.imageset import ImageSet
from sdclr.logistic import LinearProbe
from sdclr.order import epoch_order
from sdclr.resample import CROP_NUMBERS, Window, resample, sample_crops
from sdclr.seeds import torch_generator

# RandomCrop(32, padding=4) of the CIFAR protocol; other sides in proportion.
_PADDING_FRAC = 1 / 8
# torchvision's defaults of RandomResizedCrop.
_CROP_SCALE, _CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True, kw_only=True)
class ProbeView:
    """The random view of a labelled image.

    Args:
        kind: `padded-crop` is RandomCrop(S, padding S / 8 of black) of images of S x S px, for
            CIFAR; `resized-crop` is RandomResizedCrop(S), bilinear, for photographs.
        crop_px: S.
        hflip_prob: of a horizontal flip.
    """

    kind: Literal["padded-crop", "resized-crop"]
    crop_px: int
    hflip_prob: float = 0.5

    def __call__(self, images_BCHW: Tensor, sizes_B2: Tensor, generator: torch.Generator) -> Tensor:
        """Return views (B, 3, S, S) float32 in [0, 1], on the device of the images.

        Args:
            images_BCHW: uint8.
            sizes_B2: int64, height and width in px of each image on its canvas.
            generator: a CPU generator; advanced.

        Raises:
            ValueError: `padded-crop` of images that are not S x S.
        """
        if self.kind == "resized-crop":
            return self._resized_crop(images_BCHW, sizes_B2, generator)
        if images_BCHW.shape[2:] != (self.crop_px, self.crop_px):
            found = "x".join(map(str, images_BCHW.shape[2:]))
            raise ValueError(f"padded-crop needs images of side {self.crop_px} px, got {found}")
        return self._padded_crop(images_BCHW, generator)

    def _padded_crop(self, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
        num_images, device = len(images_BCHW), images_BCHW.device
        padding_px = round(_PADDING_FRAC * self.crop_px)
        top_B, left_B = torch.randint(2 * padding_px + 1, (2, num_images), generator=generator)
        flip_B = torch.rand(num_images, generator=generator) < self.hflip_prob
        place_S = torch.arange(self.crop_px)
        rows_BS = top_B[:, None] + place_S
        columns_BS = left_B[:, None] + torch.where(flip_B[:, None], place_S.flip(0), place_S)
        padded_BCHW = F.pad(images_BCHW, 4 * (padding_px,))
        image_B = torch.arange(num_images)
        picked = (image_B[:, None, None], rows_BS[:, :, None], columns_BS[:, None, :])
        index = [part.to(device, non_blocking=True) for part in picked]
        view_BSSC = padded_BCHW.permute(0, 2, 3, 1)[index[0], index[1], index[2]]
        return view_BSSC.permute(0, 3, 1, 2).float().div_(255.0)

    def _resized_crop(
        self, images_BCHW: Tensor, sizes_B2: Tensor, generator: torch.Generator
    ) -> Tensor:
        device, num_images = images_BCHW.device, len(images_BCHW)
        shape = (CROP_NUMBERS + 1, num_images)
        numbers_KB = torch.rand(shape, generator=generator, dtype=torch.float64)
        crop_4B = sample_crops(
            sizes_B2.cpu(), numbers_KB[:-1], scale=_CROP_SCALE, ratio=_CROP_RATIO
        )
        flip_B = numbers_KB[-1] < self.hflip_prob
        top_B, left_B, height_B, width_B = (part.to(device) for part in crop_4B)
        view_CBSS = images_BCHW.new_empty(
            (3, num_images, self.crop_px, self.crop_px), dtype=torch.float32
        )
        columns = Window(start_B=left_B, length_B=width_B, flip_B=flip_B.to(device))
        rows = Window(start_B=top_B, length_B=height_B)
        resample(images_BCHW, rows, columns, view_CBSS, kernel="bilinear")
        return view_CBSS.transpose(0, 1).contiguous()


@dataclass(frozen=True, kw_only=True)
class ProbeRecipe:
    """Training of the classifier; the defaults are those of `paper-linear` on CIFAR.

    Args:
        epochs: passes over the labelled images.
        milestones: epochs after which the learning rate is divided by 10.
        batch: images per step; the last step of an epoch takes what is left.
        lr, momentum: of SGD without weight decay.
        init_std: of the normal distribution of the first weights; the first bias is 0.
    """

    epochs: int = 30
    milestones: tuple[int, ...] = (10, 20)
    batch: int = 128
    lr: float = 30.0
    momentum: float = 0.9
    init_std: float = 0.01


PAPER_LINEAR = ProbeRecipe()
PAPER_FEWSHOT = ProbeRecipe(epochs=100, milestones=(40, 60))
# Chen et al. 2020: 0.05 at 256 images a step, no weight decay, 60 epochs of 1 % and 30 of 10 % of
# the labels. Batches are smaller here, so that a few labels give steps enough; the rate falls in
# steps, as in the other protocols.
FINETUNE_FEWSHOT = ProbeRecipe(epochs=60, milestones=(36, 48), batch=32, lr=0.05 * 32 / 256)
FINETUNE_TENTH = ProbeRecipe(epochs=30, milestones=(18, 24), batch=32, lr=0.05 * 32 / 256)


@dataclass(frozen=True)
class ProbeEpoch:
    """The classifier after an epoch.

    Args:
        epoch: counted from 1.
        loss: mean training loss of the epoch, while it changed.
        val_accuracy: fraction of the validation images that are right; None without any.
        probe: the classifier.
    """

    epoch: int
    loss: float
    val_accuracy: float | None
    probe: LinearProbe


def train_probe(
    features: Callable[[Tensor], Tensor],
    images: ImageSet,
    labels_N: Tensor,
    *,
    num_features: int,
    num_classes: int,
    view: ProbeView,
    recipe: ProbeRecipe,
    val: tuple[Tensor, Tensor] | None,
    seed: int,
    device: torch.device | str = "cpu",
    backbone: nn.Module | None = None,
) -> Iterator[ProbeEpoch]:
    """Train a linear classifier, and the backbone where it is given; yields after every epoch.

    The order of an epoch is a function of (seed, epoch), the views of a step of (seed, epoch,
    step), the first weights of the seed.

    Args:
        features: views (B, 3, S, S) to features (B, D) of the backbone, in evaluation mode; called
            without gradients while it is frozen.
        images: the labelled images; each batch is moved to `device`.
        labels_N: classes 0..C-1.
        num_features: D.
        num_classes: C.
        view: random views of the training images.
        recipe: the optimisation.
        val: features (V, D) and labels (V) to score each epoch on, made from views without
            randomness; None when no epoch is to be chosen.
        seed: see above.
        device: where features are computed and the classifier is trained.
        backbone: what `features` goes through: its weights are trained in place, at the same
            learning rate; None = frozen.

    Raises:
        ValueError: numbers of images and labels differ, a label is out of range, or a backbone that
            is trained comes with `val`, whose features are those of a frozen one.
        FloatingPointError: the loss is not finite.
    """
    if len(images) != len(labels_N) or not len(labels_N):
        raise ValueError(f"{len(images)} images and {len(labels_N)} labels")
    if not 0 <= int(labels_N.min()) <= int(labels_N.max()) < num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}")
    if backbone is not None and val is not None:
        raise ValueError("validation features are those of a frozen backbone, not of a trained one")
    classifier = nn.Linear(num_features, num_classes)
    with torch.no_grad():
        classifier.weight.normal_(0, recipe.init_std, generator=torch_generator(seed, "probe"))
        classifier.bias.zero_()
    classifier.to(device)
    weights = [*classifier.parameters(), *(() if backbone is None else backbone.parameters())]
    optimizer = torch.optim.SGD(weights, lr=recipe.lr, momentum=recipe.momentum)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(recipe.milestones), gamma=0.1)
    for epoch in range(recipe.epochs):
        order_N = torch.from_numpy(epoch_order(len(images), seed=seed, epoch=epoch))
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        for step, rows_B in enumerate(torch.split(order_N, recipe.batch)):
            generator = torch_generator(seed, "probe view", epoch, step)
            pixels_BCHW = images.images_NCHW[rows_B].to(device)
            with torch.no_grad():
                views_BCSS = view(pixels_BCHW, images.sizes_N2[rows_B], generator)
            with torch.set_grad_enabled(backbone is not None):
                features_BD = features(views_BCSS).float()
            loss = F.cross_entropy(classifier(features_BD), labels_N[rows_B].to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += loss.detach() * len(rows_B)
        schedule.step()
        mean_loss = float(loss_sum) / len(images)
        if not torch.isfinite(loss_sum):
            raise FloatingPointError(f"the loss is {mean_loss} in epoch {epoch + 1}")
        weight_CD, bias_C = classifier.weight.detach().cpu(), classifier.bias.detach().cpu()
        probe = LinearProbe(weight_CD.clone(), bias_C.clone(), converged=True)
        accuracy = None if val is None else _accuracy(probe, *val)
        yield ProbeEpoch(epoch + 1, mean_loss, accuracy, probe)


def best_epoch(epochs: Sequence[ProbeEpoch]) -> ProbeEpoch:
    """Return the epoch of the highest validation accuracy; of equal ones the first.

    Raises:
        ValueError: no epochs, or epochs without validation.
    """
    if not epochs or any(epoch.val_accuracy is None for epoch in epochs):
        raise ValueError("to choose an epoch needs the validation accuracy of each")
    return max(epochs, key=lambda e: (e.val_accuracy or 0.0, -e.epoch))


def _accuracy(probe: LinearProbe, features_VD: Tensor, labels_V: Tensor) -> float:
    return float((probe.predict(features_VD) == labels_V).double().mean())
