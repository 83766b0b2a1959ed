"""The health of a network during training: fixed images, two fixed views of each, all measures.

    checkup = Checkup.of_images(images, num_images=512, crop_px=32)
    measures = checkup(trainer.model)                # {"view_retrieval": 0.93, "rankme": 41.2, ...}
    for alarm in alarms([*earlier, measures]): print(alarm.level, alarm)

Images and views do not depend on the run's seed or augmentation, so runs of one data set can be
compared and ranked. The model is left as it was, down to every BatchNorm statistic, and no random
number of the process is used: training goes on as if nobody had looked.

Shapes: N images of the probe set, B of one forward pass, F features, D embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn

from sdclr import health
from sdclr.augment import AugmentRecipe, ViewParams, sample_view
from sdclr.imageset import Images, ImageSet
from sdclr.kmeans import kmeans
from sdclr.rendering import render_views
from sdclr.seeds import numpy_generator
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

AlarmName = Literal[
    "not finite", "collapse", "falling rank", "dead", "not learned", "branches agree",
    "branches unrelated", "stuck loss",
]  # fmt: skip
MIN_STEPS_TO_LEARN = 100
ADVISED_STEPS = 4 * MIN_STEPS_TO_LEARN
"""Steps to train for where there were too few: at the fewest that count, little is learned yet."""
LOWER_LR = "lower the learning rate"
_FALLING_RANK_SHARE, _COLLAPSED_RANK_SHARE, _DEAD_ALARM, _STUCK_SHARE = 0.5, 0.2, 0.5, 0.05
# A prune ratio of 0.3, as published for photographs, was measured at 0.009 to 0.011, and one of 0.9
# at 0.02 to 0.2: only below a tenth of the former is the twin SimCLR in all but name.
_SAME, _UNRELATED = 0.001, 0.9


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
            sample_view(recipe, chosen.sizes_N2, numpy_generator(_SEED, "checkup view", which))
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
            params = [view.rows(start, stop) for view in self.views]
            for which, view_BCHW in enumerate(render_views(pixels_BCHW, params, self.recipe)):
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


@dataclass(frozen=True)
class Alarm:
    """Something wrong with the features.

    Attributes:
        name: which rule found it.
        level: `alarm` for a network that failed to learn; `warning` for what may pass, or what
            training survives.
        text: what is wrong, with its numbers.
        change: what helps.
    """

    name: AlarmName
    level: Literal["warning", "alarm"]
    text: str
    change: str

    def __str__(self) -> str:
        return f"{self.text}; {self.change}"


def alarms(
    history: Sequence[Mapping[str, float | None]], *, num_steps: int | None = None
) -> list[Alarm]:
    """Describe what is wrong at the end of a history of measures; empty when nothing is.

    RankMe often falls in the first steps and recovers, so half of its best is a warning and a fifth
    an alarm. Features that find views no better than before training are an alarm once the network
    had `MIN_STEPS_TO_LEARN` steps.

    Args:
        history: the measures of one model in the order of training, first those before training,
            which are never alarming (masks are still whole); None counts as nan.
        num_steps: steps done at the end of the history; None = enough to have learned.
    """
    if len(history) < 2:
        return []
    now = {name: _number(value) for name, value in history[-1].items()}
    if math.isnan(now["view_retrieval"]):
        return [Alarm("not finite", "alarm", "features are not finite", LOWER_LR)]
    found = [
        _rank_alarm([_number(measures["rankme"]) for measures in history]),
        _dead_alarm(now["dead_frac"]),
        _learning_alarm(_number(history[0]["view_retrieval"]), now["view_retrieval"], num_steps),
        _branch_alarm(now["disagreement"]),
    ]
    return [alarm for alarm in found if alarm is not None]


def loss_alarm(
    losses: Sequence[float], *, temperature: float, num_images: int, num_steps: int
) -> Alarm | None:
    """Describe a loss that stays where embeddings that are all alike have it; None otherwise.

    Such embeddings have log(2B - 1). Views that are equal while other images are orthogonal have
    log(1 + (2B - 2) exp(-1 / T)). A loss that went less than a twentieth of the way between the two
    after `MIN_STEPS_TO_LEARN` steps is stuck.

    Args:
        losses: of the last steps.
        temperature: T, of the last step.
        num_images: B, the images of a step.
        num_steps: steps done.
    """
    if not losses or num_images < 2 or num_steps < MIN_STEPS_TO_LEARN:
        return None
    chance = math.log(2 * num_images - 1)
    good = math.log1p((2 * num_images - 2) * math.exp(-1 / temperature))
    mean = fmean(losses)
    if not chance - mean < _STUCK_SHARE * (chance - good):
        return None
    return Alarm(
        "stuck loss",
        "alarm",
        f"the loss is stuck at {mean:.2f}; embeddings that are all alike have {chance:.2f}",
        f"{LOWER_LR}, or train for more epochs",
    )


def _rank_alarm(ranks: Sequence[float]) -> Alarm | None:
    best = max((rank for rank in ranks if math.isfinite(rank)), default=math.nan)
    if not ranks[-1] < _FALLING_RANK_SHARE * best:
        return None
    text = f"RankMe fell from {best:.1f} to {ranks[-1]:.1f}"
    change = f"{LOWER_LR}, or raise the temperature"
    if ranks[-1] < _COLLAPSED_RANK_SHARE * best:
        return Alarm("collapse", "alarm", f"features have collapsed: {text}", change)
    return Alarm("falling rank", "warning", f"features use fewer dimensions: {text}", change)


def _dead_alarm(dead_frac: float) -> Alarm | None:
    if not dead_frac > _DEAD_ALARM:
        return None
    return Alarm("dead", "alarm", f"{100 * dead_frac:.0f} % of the features are dead", LOWER_LR)


def _learning_alarm(before: float, now: float, num_steps: int | None) -> Alarm | None:
    if not now <= before or before == 1:
        return None
    level: Literal["warning", "alarm"] = "alarm"
    change = "lower the learning rate, or train for more epochs"
    if num_steps is not None and num_steps < MIN_STEPS_TO_LEARN:
        level, change = "warning", f"train for more epochs: {num_steps} steps are few"
    return Alarm(
        "not learned",
        level,
        "views are found no better than before training: "
        f"{100 * before:.1f} % then, {100 * now:.1f} % now",
        change,
    )


def _branch_alarm(disagreement: float) -> Alarm | None:
    if disagreement < _SAME:
        return Alarm(
            "branches agree",
            "warning",
            f"the pruned branch no longer differs (mean disagreement {disagreement:.4f})",
            "raise the prune ratio",
        )
    if disagreement > _UNRELATED:
        return Alarm(
            "branches unrelated",
            "warning",
            f"the pruned branch sees something else (mean disagreement {disagreement:.2f})",
            "lower the prune ratio",
        )
    return None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
