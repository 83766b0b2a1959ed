"""Protocols on features that were extracted once: logistic regression and nearest neighbours.

Shapes: M test images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Config
from pipeline.evaluate.features import SetFeatures
from pipeline.evaluate.score import score_entry
from sdclr.accuracy import group_confusion, per_class_accuracy
from sdclr.longtail import Groups
from sdclr.probe import knn_predict, linear_probe

PROTOCOLS = ("cached-linear", "cached-fewshot", "knn-k20")
_KNN_K = 20


class CachedProbes:
    """Probes that are fitted on the labelled set and scored on the held-out one.

    Args:
        config: folds and seed of the cross-validation.
        probe, test: features of both sets.
        draws: rows of the labelled set for each few-shot draw.
        groups: of the classes.
        num_classes: C.
    """

    def __init__(
        self,
        config: Config,
        probe: SetFeatures,
        test: SetFeatures,
        draws: Sequence[NDArray[np.int64]],
        *,
        groups: Groups,
        num_classes: int,
    ) -> None:
        self.config, self.groups, self.num_classes = config, groups, num_classes
        self.probe, self.test, self.draws = probe, test, draws

    def score(self, protocol: str, model: str) -> dict[str, Any]:
        """Return one entry of evaluation.json's `scores`."""
        if protocol == "cached-linear":
            predictions = [self._linear(model, None)]
            note = f"{len(self.probe.ids)} labels"
        elif protocol == "cached-fewshot":
            predictions = [self._linear(model, rows) for rows in self.draws]
            note = f"{len(self.draws[0])} labels per draw"
        else:
            predictions = [self._knn(model)]
            note = f"{len(self.probe.ids)} labels, cosine"
        labels_M = torch.from_numpy(self.test.labels_N)
        runs = [per_class_accuracy(p_M, labels_M, self.num_classes) for p_M in predictions]
        groups = (self.groups.many, self.groups.medium, self.groups.few)
        confusion = np.mean([group_confusion(p_M, labels_M, groups) for p_M in predictions], axis=0)
        entry = score_entry(protocol, runs, self.groups, note)
        return entry | {"group_confusion": confusion.tolist()}

    def _linear(self, model: str, rows: NDArray[np.int64] | None) -> Tensor:
        features_ND, labels_N = self._train(model, rows)
        result = linear_probe(
            features_ND,
            labels_N,
            torch.from_numpy(self.test.by_model[model]),
            num_classes=self.num_classes,
            num_folds=self.config.evaluate.cv_folds,
            seed=self.config.run.seed,
        )
        return result.predictions_M

    def _knn(self, model: str) -> Tensor:
        features_ND, labels_N = self._train(model, None)
        test_MD = torch.from_numpy(self.test.by_model[model])
        return knn_predict(features_ND, labels_N, test_MD, num_classes=self.num_classes, k=_KNN_K)

    def _train(self, model: str, rows: NDArray[np.int64] | None) -> tuple[Tensor, Tensor]:
        everything = np.arange(len(self.probe.ids)) if rows is None else rows
        features_ND = torch.from_numpy(self.probe.by_model[model][everything])
        return features_ND, torch.from_numpy(self.probe.labels_N[everything])
