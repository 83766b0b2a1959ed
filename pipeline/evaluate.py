"""The evaluate stage: how good are the features of each model, for frequent and for rare classes?

Every model of the run is scored by its dense branch, and so is the network before training. Groups
follow the *pre-training* counts. The images that pruning forgets most are found without labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import storage
from pipeline.checkpoint import Found, checkpoints_uri, latest
from pipeline.cluster import Cluster
from pipeline.config import Config
from pipeline.dataset.manifest import Manifest
from pipeline.errors import CheckpointError, DataError
from pipeline.features import UNTRAINED, SetFeatures, extract
from pipeline.forgotten import forgotten_images
from sdclr.longtail import (
    Groups,
    fewshot_draws,
    group_scores,
    groups_by_tercile,
    groups_by_threshold,
    mean_scores,
)
from sdclr.probe import knn_predict, linear_probe, per_class_accuracy

SCHEMA_VERSION = 1
_KNN_K = 20


def evaluate(
    config: Config,
    *,
    config_json: str,
    config_hash: str,
    run_uri: str,
    data_uri: str,
    manifest: Manifest,
    cluster: Cluster,
    progress: Callable[[int, int], None],
) -> dict[str, Any] | None:
    """Score the run's models; writes evaluation.json and forgotten.json.

    Returns:
        The content of evaluation.json; None when the data set has no labels to score with.

    Raises:
        CheckpointError: a method of the run has no finished checkpoint.
        ConfigError: the data set has labels, but not the set of `evaluate.split`.
        DataError: a few-shot list names images that the labelled set does not have.
    """
    found: dict[str, Found] = {}
    for method in config.train.methods:
        found[method] = _newest(run_uri, method, config_hash)
    scored_on = config.evaluate.split
    labelled = manifest.class_names is not None and {"probe", scored_on} <= manifest.sets.keys()
    set_names: tuple[str, ...] = ("probe", scored_on) if labelled else ()
    if "sdclr" in found:
        set_names = (*set_names, "pretrain")
    if not set_names:
        return None
    features = extract(
        config,
        config_json,
        config_hash=config_hash,
        checkpoints={method: checkpoint.uri for method, checkpoint in found.items()},
        data_uri=data_uri,
        manifest=manifest,
        set_names=set_names,
        cluster=cluster,
        progress=progress,
    )
    counts = manifest.sets["pretrain"].class_counts
    groups = _groups(config, counts) if counts is not None else None
    if "sdclr" in found:
        forgotten = forgotten_images(config, data_uri, manifest, features["pretrain"], groups)
        _write_json(storage.join(run_uri, "forgotten.json"), forgotten)
    if not labelled or groups is None or counts is None:
        return None
    scorer = Scorer(config, manifest, features["probe"], features[scored_on], groups)
    evaluation = {
        "schema_version": SCHEMA_VERSION,
        "class_names": list(manifest.class_names or ()),
        "pretrain_counts": list(counts),
        "groups": {name: list(getattr(groups, name)) for name in ("many", "medium", "few")},
        "sets": {name: info.rows for name, info in manifest.sets.items()},
        "scored_on": scored_on,
        "seed": config.run.seed,
        "notes": _notes(found),
        "models": [
            {
                "name": name,
                "step": _step(found.get(name)),
                "epochs": _epochs(found.get(name), config.train.epochs),
                "scores": [scorer.score(protocol, name) for protocol in config.evaluate.protocols],
            }
            for name in (*found, UNTRAINED)
        ],
    }
    _write_json(storage.join(run_uri, "evaluation.json"), evaluation)
    return evaluation


class Scorer:
    """Protocols on frozen features: fitted on the labelled set, scored on the held-out one."""

    def __init__(
        self,
        config: Config,
        manifest: Manifest,
        probe: SetFeatures,
        test: SetFeatures,
        groups: Groups,
    ) -> None:
        self.config, self.groups = config, groups
        self.probe, self.test = probe, test
        self.num_classes = len(manifest.class_names or ())
        self.draws = self._draws(manifest)

    def score(self, protocol: str, model: str) -> dict[str, Any]:
        """One entry of evaluation.json's `scores`."""
        if protocol == "cached-linear":
            runs = [self._linear(model, None)]
            note = f"{len(self.probe.ids)} labels"
        elif protocol == "cached-fewshot":
            runs = [self._linear(model, rows) for rows in self.draws]
            note = f"{len(self.draws[0])} labels per draw"
        else:
            runs = [self._knn(model)]
            note = f"{len(self.probe.ids)} labels, cosine"
        summary = mean_scores([group_scores(accuracy_C, self.groups) for accuracy_C in runs])
        fields = ("many", "medium", "few", "std", "all")
        spread = summary.spread
        return {
            "protocol": protocol,
            "n": summary.n,
            **{name: getattr(summary.mean, name) for name in fields},
            "spread": None if spread is None else {n: getattr(spread, n) for n in fields},
            "per_class": np.mean(runs, axis=0).tolist(),
            "note": note,
        }

    def _linear(self, model: str, rows: NDArray[np.int64] | None) -> NDArray[np.float64]:
        features_ND, labels_N = self._train(model, rows)
        result = linear_probe(
            features_ND,
            labels_N,
            torch.from_numpy(self.test.by_model[model]),
            num_classes=self.num_classes,
            num_folds=self.config.evaluate.cv_folds,
            seed=self.config.run.seed,
        )
        return self._accuracy(result.predictions_M)

    def _knn(self, model: str) -> NDArray[np.float64]:
        features_ND, labels_N = self._train(model, None)
        test_MD = torch.from_numpy(self.test.by_model[model])
        return self._accuracy(
            knn_predict(features_ND, labels_N, test_MD, num_classes=self.num_classes, k=_KNN_K)
        )

    def _train(self, model: str, rows: NDArray[np.int64] | None) -> tuple[Tensor, Tensor]:
        everything = np.arange(len(self.probe.ids)) if rows is None else rows
        features_ND = torch.from_numpy(self.probe.by_model[model][everything])
        return features_ND, torch.from_numpy(self.probe.labels_N[everything])

    def _accuracy(self, predictions_M: Tensor) -> NDArray[np.float64]:
        labels_M = torch.from_numpy(self.test.labels_N)
        return per_class_accuracy(predictions_M, labels_M, self.num_classes)

    def _draws(self, manifest: Manifest) -> list[NDArray[np.int64]]:
        """Rows of the labelled set for each few-shot draw: the published lists, or our own."""
        if manifest.fewshot:
            row_of = {sample_id: row for row, sample_id in enumerate(self.probe.ids)}
            unknown = [i for ids in manifest.fewshot for i in ids if i not in row_of]
            if unknown:
                raise DataError(
                    f"{len(unknown)} few-shot images are not in the labelled set",
                    where=f"data set {manifest.name}, first: {unknown[0]}",
                    todo="use few-shot lists that are part of data.probe_index",
                )
            return [np.array([row_of[i] for i in ids], np.int64) for ids in manifest.fewshot]
        shots = self.config.evaluate.shots_per_class
        if shots is None:
            # One percent of the labels, as in the paper's few-shot sets.
            shots = max(1, round(0.01 * len(self.probe.ids) / self.num_classes))
        try:
            return fewshot_draws(
                self.probe.labels_N,
                shots_per_class=shots,
                num_draws=self.config.evaluate.fewshot_draws,
                seed=self.config.run.seed,
            )
        except ValueError as error:
            raise DataError(
                f"few-shot sets cannot be drawn: {error}",
                where=f"data set {manifest.name}",
                todo=f"lower evaluate.shots_per_class (now {shots})",
            ) from error


def _groups(config: Config, counts: tuple[int, ...]) -> Groups:
    if config.evaluate.groups == "threshold":
        return groups_by_threshold(list(counts))
    return groups_by_tercile(list(counts))


def _newest(run_uri: str, method: str, config_hash: str) -> Found:
    folder = checkpoints_uri(run_uri, method)
    found = latest(folder, config_hash=config_hash)
    if found.state is None:
        reasons = f" ({'; '.join(found.refused)})" if found.refused else ""
        raise CheckpointError(
            f"method {method} has no checkpoint{reasons}",
            where=folder,
            todo=f"train it first: python pipeline/run.py train --resume {run_uri}",
        )
    return found


def _notes(found: dict[str, Found]) -> list[str]:
    """What a reader of the scores must know about the checkpoints."""
    notes = [f"{name}: passed over {text}" for name, f in found.items() for text in f.refused]
    for name, f in found.items():
        numbers = f.state.numbers if f.state else {}
        if numbers.get("step") != numbers.get("num_steps"):
            step, num_steps = numbers.get("step"), numbers.get("num_steps")
            notes.append(f"{name}: trained in part, {step} of {num_steps} steps")
    return notes


def _epochs(found: Found | None, epochs: int) -> int:
    """Whole epochs that a checkpoint was trained for."""
    if found is None or found.state is None:
        return 0
    numbers = found.state.numbers
    return epochs * int(numbers["step"]) // int(numbers["num_steps"])


def _step(found: Found | None) -> int:
    return int(found.state.numbers["step"]) if found and found.state else 0


def _write_json(uri: str, content: dict[str, Any]) -> None:
    storage.write_bytes(uri, json.dumps(_without_nan(content), indent=1, allow_nan=False).encode())


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return [_without_nan(v) for v in value] if isinstance(value, list) else value
