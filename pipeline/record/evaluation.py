"""Files of an evaluation: evaluation.json, forgotten.json, one for each ended protocol."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pipeline.record.schema import Measured, Part, Record

METRICS = ("many", "medium", "few", "std", "all")


class GroupValues(Part):
    """One number for each frequency group, their spread STD, and the mean over all classes."""

    many: Measured
    medium: Measured
    few: Measured
    std: Measured
    all: Measured

    def metric(self, name: str) -> float | None:
        """Return one of `METRICS`."""
        value: float | None = getattr(self, name)
        return value


class Score(GroupValues):
    """Score of one model by one protocol: accuracies in [0, 1], null where a group is empty.

    Args:
        protocol: its id, which stands beside every number.
        n: draws that the numbers are a mean of.
        spread: sample standard deviation over the draws; null when n = 1.
        per_class: mean accuracy of each class.
        note: what a reader must know: labels used, the epoch chosen.
        group_confusion: share of the images of a group (row) that is taken for each group; null
            for protocols that do not measure it.
    """

    protocol: str
    n: int
    spread: GroupValues | None
    per_class: tuple[Measured, ...]
    note: str
    group_confusion: tuple[tuple[Measured, ...], ...] | None = None


class ModelScores(Part):
    """The scores of one model; step and epochs are null when its weights do not say."""

    name: str
    step: int | None
    epochs: int | None
    scores: tuple[Score, ...]


class ClassGroups(Part):
    """Class indices of each frequency group, by pre-training counts."""

    many: tuple[int, ...]
    medium: tuple[int, ...]
    few: tuple[int, ...]


class Leak(Part):
    """Images that a held-out set shares with another one.

    Args:
        sets: the held-out set and the other.
        images: of the held-out set, `of` its size.
        examples: the first pairs of ids.
    """

    sets: tuple[str, str]
    images: int
    of: int
    examples: tuple[tuple[str, str], ...]


class Evaluation(Record):
    """RUN/evaluation.json.

    Args:
        class_names: of the data set.
        pretrain_counts: pre-training images of each class, which the groups follow.
        groups: of the classes.
        sets: images of each set.
        scored_on: the held-out set.
        seed: of the run.
        notes: what a reader must know of the models and of the sets.
        leaks: images that sets share.
        models: the final models, in the order of the tables.
        curve: every scored checkpoint by method and step; empty when only the newest were scored.
        timings_s: seconds by protocol, for all models together.
    """

    schema_version: Literal[1] = 1
    class_names: tuple[str, ...]
    pretrain_counts: tuple[int, ...]
    groups: ClassGroups
    sets: dict[str, int]
    scored_on: str
    seed: int
    notes: tuple[str, ...]
    leaks: tuple[Leak, ...]
    models: tuple[ModelScores, ...]
    curve: tuple[ModelScores, ...]
    timings_s: dict[str, float]

    @property
    def protocols(self) -> list[str]:
        """Protocol ids in the order in which they are first met."""
        return list(dict.fromkeys(s.protocol for model in self.models for s in model.scores))

    def scores_by(self, protocol: str) -> Iterator[tuple[ModelScores, Score]]:
        """Yield the models that a protocol scored, in the order of the record."""
        for model in self.models:
            for score in model.scores:
                if score.protocol == protocol:
                    yield model, score


class EndedProtocol(Record):
    """RUN/evaluation/PROTOCOL.json: the scores of a protocol that has ended.

    Args:
        key: hash of what the scores of all models depend on: data set and configuration.
        weights: hash of the weights of each model.
        seconds: that it took.
        scores: by model.
    """

    schema_version: Literal[1] = 1
    key: str
    weights: dict[str, str]
    seconds: float
    scores: dict[str, Score]


class Picture(Part):
    """A small picture of one image; `label` is null where there is none."""

    id: str
    label: int | None
    score: float
    png_base64: str


class GroupMean(Part):
    """A mean over images; `half` is half of its 95 % interval, null for a single image."""

    images: int
    mean: float
    half: Measured


class GroupMeans(Part):
    """A mean for each frequency group; null for an empty one."""

    many: GroupMean | None
    medium: GroupMean | None
    few: GroupMean | None


class Forgotten(Record):
    """RUN/forgotten.json: the images whose embedding pruning changes most and least.

    Args:
        method: whose pruned branch it is.
        prune_ratio: of that branch.
        scored: images that were compared.
        most, least: some of them, the most extreme first; score is 1 - cosine.
        group_mean: mean score; null without labels.
    """

    schema_version: Literal[2] = 2
    method: str
    prune_ratio: float
    scored: int
    most: tuple[Picture, ...]
    least: tuple[Picture, ...]
    group_mean: GroupMeans | None
