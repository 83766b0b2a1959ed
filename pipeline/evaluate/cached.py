"""Protocols on features that were extracted once: logistic regression and nearest neighbours.

Shapes: N labelled images, M test images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.console import counted
from pipeline.embed.features import SetFeatures
from pipeline.evaluate.fits import Fit, Ints, fit_here
from pipeline.evaluate.score import score_of
from pipeline.record.evaluation import Score
from sdclr.accuracy import group_confusion, per_class_accuracy
from sdclr.groups import Groups

PROTOCOLS = ("cached-linear", "cached-fewshot", "knn")
_MOST_NEIGHBOURS = 20


class CachedProbes:
    """Classifiers fitted on the labelled images, scored on the held-out set.

    Args:
        config: folds and seed of the cross-validation.
        labelled: features of all images with a label.
        test: features of the held-out set.
        draws: rows of `labelled` for each few-shot draw.
        groups: of the classes.
        num_classes: C.
        num_probe: how many rows of `labelled`, the first ones, are the labelled set; None = all.
            The others are for few-shot draws alone.
    """

    def __init__(
        self,
        config: Config,
        labelled: SetFeatures,
        test: SetFeatures,
        draws: Sequence[NDArray[np.int64]],
        *,
        groups: Groups,
        num_classes: int,
        num_probe: int | None = None,
    ) -> None:
        self.config, self.groups, self.num_classes = config, groups, num_classes
        self.labelled, self.test, self.draws = labelled, test, draws
        self.all_rows = np.arange(len(labelled.ids) if num_probe is None else num_probe)

    def score(
        self,
        protocol: str,
        models: Sequence[str],
        fit: Callable[[Sequence[Fit]], list[Ints]] = fit_here,
    ) -> dict[str, Score]:
        """Return model -> its score by one protocol.

        Args:
            protocol: one of `PROTOCOLS`.
            models: names of the features.
            fit: makes the predictions of all fits, in this process or elsewhere.
        """
        draws = self.draws if protocol == "cached-fewshot" else [self.all_rows]
        k = self.neighbours if protocol == "knn" else None
        predictions = iter(fit([self._fit(model, rows, k) for model in models for rows in draws]))
        name = f"knn-k{k}" if k is not None else protocol
        return {
            model: self._score(name, [next(predictions) for _ in draws], self._note(protocol))
            for model in models
        }

    @property
    def neighbours(self) -> int:
        """Votes of `knn`: 20, or fewer where a class has fewer labelled images.

        With more votes than a class has images, a class of many images outvotes it even where all
        images of the small class are the nearest ones.
        """
        counts_C = np.bincount(self.labelled.labels_N[self.all_rows])
        return int(min(_MOST_NEIGHBOURS, counts_C[counts_C > 0].min()))

    def _note(self, protocol: str) -> str:
        if protocol == "cached-fewshot":
            return f"{counted(len(self.draws[0]), 'label')} per draw"
        note = f"{counted(len(self.all_rows), 'label')}"
        if protocol == "knn":
            note += ", cosine"
            k = self.neighbours
            if k < _MOST_NEIGHBOURS:
                note += f", {k} votes as the smallest class has {counted(k, 'labelled image')}"
        return note

    def _fit(self, model: str, rows: NDArray[np.int64], k: int | None) -> Fit:
        features_ND = self.labelled.by_model[model]
        whole = len(rows) == len(features_ND)
        return Fit(
            features_ND if whole else features_ND[rows],
            self.labelled.labels_N[rows],
            self.test.by_model[model],
            self.num_classes,
            num_folds=self.config.evaluate.cv_folds,
            seed=self.config.run.seed,
            k=k,
        )

    def _score(self, protocol: str, predictions: Sequence[Ints], note: str) -> Score:
        labels_M = torch.from_numpy(self.test.labels_N)
        draws = [torch.from_numpy(p_M) for p_M in predictions]
        groups = (self.groups.many, self.groups.medium, self.groups.few)
        return score_of(
            protocol,
            [per_class_accuracy(p_M, labels_M, self.num_classes) for p_M in draws],
            self.groups,
            note,
            group_confusion=np.mean(
                [group_confusion(p_M, labels_M, groups) for p_M in draws], axis=0
            ),
        )
