"""The health of a network during training: fixed images, two fixed views of each, all measures.

    checkup = Checkup.of_images(images, num_images=512, crop_px=32)
    measures = checkup(trainer.model)                # {"view_retrieval": 0.93, "rankme": 41.2, ...}
    for sentence in alarms([*earlier, measures]): ...

Images and views do not depend on the run's seed or augmentation, so runs of one data set can be
compared and ranked. The model is left as it was, down to every BatchNorm statistic, and no random
number of the process is used: training goes on as if nobody had looked.

Shapes: N images of the probe set, B of one forward pass, F features, D embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdclr import health
from sdclr.augment import AugmentRecipe, ViewParams, apply_view, sample_view
from sdclr.imageset import Images, ImageSet
from sdclr.kmeans import kmeans
from sdclr.seeds import numpy_generator, torch_generator
from sdclr.twin import SimCLR, Twin

Measures = dict[str, float]

MEASURES: dict[str, str] = {
    "view_retrieval": "share of images found by another view of them; higher is better",
    "rankme": "effective number of dimensions in use; higher is better",
    "alpha_req": "decay of the covariance spectrum; about 1 is healthy",
    "alignment": "mean squared distance of two views; lower is more invariant",
    "uniformity": "how evenly features cover the sphere; lower is more even",
    "balance_few": "view retrieval in the smallest third of clusters; higher is better",
    "balance_std": "its spread over small, medium and large clusters; lower is more even",
    "dead_frac": "share of dimensions that hardly vary; lower is better",
    "disagreement": "mean of 1 - cosine of dense and pruned branch; SDCLR only",
}
"""Every measure: what it says, and which direction is good."""

NUM_CLUSTERS = 12
_SEED = 0

_COLLAPSED_RANK_SHARE, _DEAD_ALARM, _SAME, _UNRELATED = 0.5, 0.5, 0.01, 0.9


def probe_views(crop_px: int) -> AugmentRecipe:
    """Return the recipe of the measuring views, the same for every run and data set.

    A measure under views that follow the configuration would rank configurations by how easy their
    views are. Nothing is mirrored: there are images, such as digits, whose mirror image is another
    thing.
    """
    return AugmentRecipe(
        crop_px=crop_px,
        crop_scale_min=0.3,
        crop_scale_max=1.0,
        crop_ratio_min=3 / 4,
        crop_ratio_max=4 / 3,
        hflip_prob=0.0,
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


@dataclass(frozen=True, eq=False)
class Checkup:
    """A probe set that measures the model it is called with.

    Args:
        images: the N images.
        views: the random part of view 1 and of view 2.
        recipe: the rest of them.
        batch: images per forward pass.
    """

    images: ImageSet
    views: tuple[ViewParams, ViewParams]
    recipe: AugmentRecipe
    batch: int = 256

    @classmethod
    def of_images(cls, images: Images, *, num_images: int, crop_px: int) -> Checkup:
        """Choose at most `num_images` images and two views of side `crop_px`, both fixed.

        Raises:
            ValueError: fewer than 2 images.
        """
        num_images = min(num_images, len(images))
        if num_images < 2:
            raise ValueError(f"a probe set needs 2 images or more, got {num_images}")
        order_N = numpy_generator(_SEED, "checkup").permutation(len(images))[:num_images]
        rows_N = torch.from_numpy(order_N).sort().values
        chosen = ImageSet(*images.take(rows_N))
        recipe = probe_views(crop_px)
        first, second = (
            sample_view(recipe, chosen.sizes_N2, torch_generator(_SEED, "checkup view", which))
            for which in (1, 2)
        )
        return cls(chosen, (first, second), recipe)

    def __call__(self, model: nn.Module) -> Measures:
        """Measure all of `MEASURES` on the dense backbone's features in evaluation mode.

        A measure without a value is nan: `disagreement` without a pruned branch, all of them when
        features are not finite.

        Raises:
            TypeError: the model is neither a Twin nor a SimCLR.
        """
        if not isinstance(model, Twin | SimCLR):
            raise TypeError(f"expected a Twin or a SimCLR, got {type(model).__name__}")
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            view1_NF, view2_NF, disagreement = self._features(model)
        finally:
            for module, training in modes.items():
                module.training = training
        return measure(view1_NF, view2_NF) | {"disagreement": disagreement}

    @torch.inference_mode()
    def _features(self, model: Twin | SimCLR) -> tuple[Tensor, Tensor, float]:
        device = model.network.mean.device
        features: tuple[list[Tensor], list[Tensor]] = ([], [])
        changes = []
        for start in range(0, len(self.images), self.batch):
            stop = min(start + self.batch, len(self.images))
            pixels_BCHW = self.images.images_NCHW[start:stop].to(device)
            for which, params in enumerate(self.views):
                view_BCHW = apply_view(pixels_BCHW, params.rows(start, stop), self.recipe)
                features_BF = model.network.features(view_BCHW)
                features[which].append(features_BF.float())
                if which == 0 and isinstance(model, Twin):
                    dense_BD, pruned_BD = model.network.head(features_BF), model.pruned(view_BCHW)
                    changes.append(health.disagreement(dense_BD, pruned_BD))
        disagreement = float(torch.cat(changes).mean()) if changes else math.nan
        return torch.cat(features[0]), torch.cat(features[1]), disagreement


def measure(view1_NF: Tensor, view2_NF: Tensor) -> Measures:
    """Measure what features of two views alone allow; nan where a value is not finite."""
    finite = bool((view1_NF.isfinite() & view2_NF.isfinite()).all())
    balance = health.TercileBalance(math.nan, math.nan, math.nan, math.nan)
    hits_N = health.retrieval_hits(view1_NF, view2_NF)
    if finite:
        unit_NF = torch.nn.functional.normalize(view1_NF, dim=1)
        clusters = kmeans(unit_NF, min(NUM_CLUSTERS, len(unit_NF)), seed=_SEED)
        balance = health.tercile_balance(hits_N, clusters.labels_N)
    return {
        "view_retrieval": float(hits_N.mean()),
        "rankme": health.rankme(view1_NF),
        "alpha_req": health.alpha_req(view1_NF),
        "alignment": health.alignment(view1_NF, view2_NF),
        "uniformity": health.uniformity(view1_NF),
        "balance_few": balance.few,
        "balance_std": balance.std,
        "dead_frac": health.dead_frac(view1_NF),
    }


def alarms(history: Sequence[Mapping[str, float | None]]) -> list[str]:
    """Describe what is wrong at the end of a history of measures; empty when nothing is.

    Args:
        history: the measures of one model in the order of training, first those before training,
            which are never alarming (masks are still whole); None counts as nan.
    """
    if len(history) < 2:
        return []
    now = {name: _number(value) for name, value in history[-1].items()}
    if math.isnan(now["view_retrieval"]):
        return ["features are not finite: lower train.lr_per_256"]
    found = []
    ranks = [_number(measures["rankme"]) for measures in history]
    best = max((rank for rank in ranks if math.isfinite(rank)), default=math.nan)
    if now["rankme"] < _COLLAPSED_RANK_SHARE * best:
        found.append(
            f"features are collapsing: RankMe fell from {best:.1f} to {now['rankme']:.1f}; "
            "lower train.lr_per_256, or raise the temperature"
        )
    if now["dead_frac"] > _DEAD_ALARM:
        found.append(
            f"{100 * now['dead_frac']:.0f} % of the features are dead: lower train.lr_per_256"
        )
    if now["disagreement"] < _SAME:
        found.append(
            f"the pruned branch no longer differs (mean disagreement {now['disagreement']:.4f}): "
            "raise sdclr.prune_ratio"
        )
    if now["disagreement"] > _UNRELATED:
        found.append(
            f"the pruned branch sees something else (mean disagreement {now['disagreement']:.2f}): "
            "lower sdclr.prune_ratio"
        )
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value
