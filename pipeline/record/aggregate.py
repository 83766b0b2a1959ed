"""Summary of the evaluations of several runs: aggregate.json."""

from __future__ import annotations

from typing import Literal

from pipeline.record.evaluation import GroupValues
from pipeline.record.schema import Record


class MeanScore(GroupValues):
    """Mean scores of one model by one protocol over n pairs of split and seed.

    Args:
        n: pairs.
        spread: sample standard deviation over them; null when n = 1.
    """

    protocol: str
    model: str
    n: int
    spread: GroupValues | None


class MeanDifference(GroupValues):
    """Mean of a minus b over the pairs of split and seed that both have.

    Args:
        n: pairs.
        spread: sample standard deviation of the differences; null when n = 1.
        half_width: of the 95 % interval of the paired t around the mean; null when n = 1.
    """

    protocol: str
    a: str
    b: str
    n: int
    spread: GroupValues | None
    half_width: GroupValues | None


class Aggregate(Record):
    """RUN/aggregate.json.

    Args:
        runs: URIs of the runs.
        scored_on: the held-out set of all of them.
        notes: in what else the runs differ, and which scores some of them lack.
        scores: by protocol and model.
        differences: by protocol and pair of models.
    """

    schema_version: Literal[1] = 1
    runs: tuple[str, ...]
    scored_on: str
    notes: tuple[str, ...]
    scores: tuple[MeanScore, ...]
    differences: tuple[MeanDifference, ...]
