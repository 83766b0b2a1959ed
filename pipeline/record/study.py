"""STUDY/study.json: the runs of a study, and what they say together."""

from __future__ import annotations

from typing import Literal

from pipeline.record.aggregate import MeanDifference, MeanScore
from pipeline.record.schema import Measured, Part, Record


class StudyRun(Part):
    """One run of a study."""

    arm: str
    seed: int
    uri: str


class RareFound(Part):
    """Mean success of one score in finding images of rare classes, over n seeds.

    Args:
        model: `trained`, `untrained` or another that the mine stage compares.
        auroc: area under the ROC curve.
        auroc_half, precision_half: half of the 95 % interval of Student's t; null when n = 1.
        num_images: rarest images that `precision` is about.
        precision: share of them that are of a rare class.
        base_rate: that share in the whole set.
    """

    model: str
    score: str
    n: int
    auroc: float
    auroc_half: Measured
    num_images: int
    precision: float
    precision_half: Measured
    base_rate: float


class GapClosed(Part):
    """The part of the gap between a long-tailed and a balanced set that one method closes.

    The gap is the STD of the base method on the long-tailed set less its STD on the twin, and

        closed = (STD of the base - STD of the method, both long-tailed) / gap,   means over n pairs

    Args:
        base: the method that was trained on the twin too.
        gap: see above; gap_half is half of its 95 % interval, null when n = 1.
        closed: 1 = all of the gap; null when the interval of the gap does not exclude 0.
    """

    protocol: str
    model: str
    base: str
    n: int
    gap: float
    gap_half: Measured
    closed: Measured


class StudyRecord(Record):
    """STUDY/study.json.

    Args:
        name, title: of the study.
        command: that makes it again.
        runs: in the order of training.
        scored_on: the held-out set of all of them.
        scores, differences: by protocol, with the models of other arms as `model, arm`.
        gaps: empty in a study without a balanced twin.
        rare: empty where no images were ranked.
        wall_s: seconds of all stages of all runs.
    """

    schema_version: Literal[2] = 2
    name: str
    title: str
    command: str
    runs: tuple[StudyRun, ...]
    scored_on: str
    scores: tuple[MeanScore, ...]
    differences: tuple[MeanDifference, ...]
    gaps: tuple[GapClosed, ...]
    rare: tuple[RareFound, ...]
    wall_s: float
