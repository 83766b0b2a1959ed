"""Objectives of a trial, measured on the network as it trains.

    tune.objective   first objective                                        with tune.balance
    fewshot          balanced accuracy on val, mean over few-shot draws,    STD of many, medium
                     maximised                                              and few
    view_retrieval   of fixed views, times min(1, RankMe / floor),          STD over terciles
                     maximised                                              of clusters
    train_loss       of the last step, minimised                            the same

The second is minimised. It is never alone: a network that is bad everywhere is perfectly even.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from pipeline.config import Config
from pipeline.dataset.manifest import Manifest
from pipeline.embed.features import BATCH_IMAGES, SetFeatures
from pipeline.evaluate.cached import CachedProbes
from pipeline.evaluate.labelled import class_groups, fewshot_rows
from pipeline.model import build
from pipeline.tune.images import DecodedSet
from sdclr import SimCLR, Twin, centre_view
from sdclr.checkup import Checkup

Measures = dict[str, float]
Measure = Callable[[Twin | SimCLR], Measures]

BALANCE = "balance"
RANKME_FLOOR = 8.0
"""Effective rank below which view_retrieval is scaled down."""
PROBE_IMAGES = 1024
"""Pre-training images that are measured without labels; fewer when the set is smaller."""
_MODEL = "trial"
_LABELLED = ("fewshot", "many", "medium", "few")


def objectives(config: Config) -> dict[str, str]:
    """Return `max` or `min` by the name of each objective; one or two entries."""
    first = config.tune.objective
    found = {first: "min" if first == "train_loss" else "max"}
    return found | ({BALANCE: "min"} if config.tune.balance else {})


def with_rank_floor(view_retrieval: float, rankme: float, floor: float) -> float:
    """Scale retrieval down where the features use fewer dimensions than the floor.

    A network can tell its probe images apart in very few dimensions, which serves nothing else. The
    factor min(1, rankme / floor) is continuous, so a search sees which way is out.
    """
    return view_retrieval * min(1.0, rankme / floor)


def measure_of(config: Config, manifest: Manifest, sets: Mapping[str, DecodedSet]) -> Measure:
    """Return the function that measures a network in training and leaves it unchanged."""
    if config.tune.objective == "fewshot":
        return FewShot(config, manifest, sets["probe"], sets["val"])
    return Unlabelled(config, manifest, sets["pretrain"])


class FewShot:
    """Few-shot accuracy on the val set: the protocol `cached-fewshot`, on fixed draws."""

    def __init__(
        self, config: Config, manifest: Manifest, probe: DecodedSet, val: DecodedSet
    ) -> None:
        self._config, self._manifest = config, manifest
        self._probe, self._val = probe, val
        groups = class_groups(config, manifest)
        assert groups is not None  # `needed_sets` refuses a data set without labels
        draws = fewshot_rows(config, manifest, probe.ids_N.tolist(), probe.labels_N)
        self._probes = CachedProbes(
            config,
            _empty(probe),
            _empty(val),
            draws,
            groups=groups,
            num_classes=len(manifest.class_names or ()),
        )
        self._rows = np.unique(np.concatenate(draws))

    def __call__(self, model: Twin | SimCLR) -> Measures:
        """Measure accuracies in [0, 1]; `balance` is the STD of many, medium and few."""
        probe_nF = self._features(model, self._probe, self._rows)
        # Only rows of some draw are scored, so only they have features.
        probe_NF = np.zeros((len(self._probe.ids_N), probe_nF.shape[1]), np.float32)
        probe_NF[self._rows] = probe_nF
        val_MF = self._features(model, self._val, np.arange(len(self._val.ids_N)))
        if not (np.isfinite(probe_nF).all() and np.isfinite(val_MF).all()):
            return dict.fromkeys((*_LABELLED, BALANCE), math.nan)
        self._probes.labelled.by_model[_MODEL] = probe_NF
        self._probes.test.by_model[_MODEL] = val_MF
        score = self._probes.score("cached-fewshot", [_MODEL])[_MODEL]
        groups = {name: _known(getattr(score, name)) for name in ("many", "medium", "few")}
        return {"fewshot": _known(score.all), **groups, BALANCE: _known(score.std)}

    @torch.inference_mode()
    def _features(
        self, model: Twin | SimCLR, images: DecodedSet, rows_n: np.ndarray[tuple[int], np.dtype]
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        device = model.network.mean.device
        modes = {module: module.training for module in model.modules()}
        model.eval()
        batch, parts = BATCH_IMAGES, []
        try:
            for start in range(0, len(rows_n), batch):
                rows_B = rows_n[start : start + batch]
                views_BCHW = centre_view(
                    torch.from_numpy(images.images_NCHW[rows_B]).to(device),
                    torch.from_numpy(images.sizes_N2[rows_B]),
                    crop_px=build.crop_px(self._config, self._manifest),
                    resize_px=build.resize_px(self._config, self._manifest),
                )
                parts.append(model.network.features(views_BCHW).float().cpu())
        finally:
            for module, training in modes.items():
                module.training = training
        return torch.cat(parts).numpy()


class Unlabelled:
    """View retrieval, RankMe and balance over pseudo-terciles, on fixed views of fixed images."""

    def __init__(self, config: Config, manifest: Manifest, pretrain: DecodedSet) -> None:
        self._floor = RANKME_FLOOR
        self._checkup = Checkup.of_images(
            pretrain.image_set(),
            num_images=PROBE_IMAGES,
            crop_px=build.crop_px(config, manifest),
        )

    def __call__(self, model: Twin | SimCLR) -> Measures:
        """Measure `view_retrieval` with its floor applied, and `view_retrieval_raw` without."""
        found = self._checkup(model)
        raw, rankme = found["view_retrieval"], found["rankme"]
        return {
            "view_retrieval": with_rank_floor(raw, rankme, self._floor),
            "view_retrieval_raw": raw,
            "rankme": rankme,
            "balance_few": found["balance_few"],
            BALANCE: found["balance_std"],
        }


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _empty(images: DecodedSet) -> SetFeatures:
    return SetFeatures(images.ids_N.tolist(), images.labels_N)
