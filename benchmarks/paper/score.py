"""Scores of a pre-trained network: the published protocols, each kept as soon as it is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.paper.pretrain import Pretraining
from benchmarks.paper.sets import NUM_CLASSES, SIDE_PX, LabelledSet
from sdclr import Network, centre_view
from sdclr.fewshot import fewshot_draws
from sdclr.groups import Groups, GroupScores, group_scores, groups_by_tercile, mean_scores
from sdclr.probe import linear_probe
from sdclr.trained_probe import PAPER_LINEAR, ProbeRecipe, ProbeView, best_epoch, train_probe

NUM_DRAWS, SHOT_FRAC = 5, 0.01


class Scoring:
    """Scores of one network in FOLDER/scores.json, by method and protocol.

    Args:
        run: pre-trained to its end.
        sets: by name, as `benchmarks.paper.sets.NAMES`.
        small: short classifiers for a CPU.
    """

    def __init__(self, run: Pretraining, sets: dict[str, LabelledSet], *, small: bool) -> None:
        self.method, self.file = run.plan.method, run.folder / "scores.json"
        self.device, self.sets, self.small = run.device, sets, small
        self.network: Network = run.trainer.network.eval()
        self.groups: Groups = groups_by_tercile(sets["pretrain"].class_counts)
        self._features: dict[str, Tensor] = {}

    def protocols(self) -> dict[str, Callable[[], GroupScores]]:
        """Return what computes each protocol, quickest first."""
        return {
            "cached-linear": self._cached_linear,
            "cached-fewshot": self._cached_fewshot,
            "paper-linear": self._paper_linear,
        }

    def missing(self) -> list[str]:
        """Return the protocols without a score."""
        return [name for name in self.protocols() if name not in kept(self.file, self.method)]

    def score(self, protocol: str) -> None:
        """Compute and keep one score, in percent."""
        found = asdict(self.protocols()[protocol]())
        content = json.loads(self.file.read_text()) if self.file.exists() else {}
        own = content.setdefault(self.method, {})
        own[protocol] = {name: 100 * value for name, value in found.items()}
        self.file.write_text(json.dumps(content, indent=1) + "\n")

    @torch.inference_mode()
    def features(self, name: str) -> Tensor:
        """Return the features (N, D) of a set's plain views, on the device."""
        if name not in self._features:
            images = self.sets[name].images
            parts = []
            for rows_B in torch.arange(len(images)).split(512):
                pixels_BCHW, sizes_B2 = images.take(rows_B)
                view = centre_view(
                    pixels_BCHW.to(self.device), sizes_B2, crop_px=SIDE_PX, resize_px=None
                )
                parts.append(self.network.features(view).float())
            self._features[name] = torch.cat(parts)
        return self._features[name]

    def _grouped(self, predictions_M: Tensor) -> GroupScores:
        labels_M = self.sets["test"].labels_N
        right_M = (predictions_M.cpu() == labels_M).double()
        per_class = [
            float(right_M[labels_M == label].mean()) if (labels_M == label).any() else np.nan
            for label in range(NUM_CLASSES)
        ]
        return group_scores(per_class, self.groups)

    def _linear(self, rows: Tensor) -> GroupScores:
        train = self.features("probe")[rows.to(self.device)]
        labels = self.sets["probe"].labels_N[rows]
        folds = min(5, int(labels.bincount().min()))
        found = linear_probe(
            train, labels, self.features("test"), num_classes=NUM_CLASSES, num_folds=folds, seed=0
        )
        return self._grouped(found.predictions_M)

    def _cached_linear(self) -> GroupScores:
        return self._linear(torch.arange(len(self.sets["probe"].labels_N)))

    def _cached_fewshot(self) -> GroupScores:
        labels = self.sets["probe"].labels_N.numpy()
        shots = max(2, round(SHOT_FRAC * len(labels) / NUM_CLASSES))
        draws = fewshot_draws(labels, shots_per_class=shots, num_draws=NUM_DRAWS, seed=0)
        return mean_scores([self._linear(torch.as_tensor(draw)) for draw in draws]).mean

    def _paper_linear(self) -> GroupScores:
        probe, val = self.sets["probe"], self.sets["val"]
        recipe = ProbeRecipe(epochs=2, lr=0.1) if self.small else PAPER_LINEAR
        epochs = train_probe(
            self.network.features,
            probe.images,
            probe.labels_N,
            num_features=self.features("val").shape[1],
            num_classes=NUM_CLASSES,
            view=ProbeView(kind="padded-crop", crop_px=SIDE_PX),
            recipe=recipe,
            val=(self.features("val").cpu(), val.labels_N),
            seed=0,
            device=self.device,
        )
        best = best_epoch(list(epochs))
        return self._grouped(best.probe.predict(self.features("test").cpu()))


def kept(file: Path, method: str) -> dict[str, dict[str, float]]:
    """Return the scores that a method has, by protocol."""
    found: dict[str, dict[str, float]] = (
        json.loads(file.read_text()).get(method, {}) if file.exists() else {}
    )
    return found
