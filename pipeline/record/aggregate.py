"""Several runs together: aggregate.json of an evaluation, differences.json of a comparison."""

from __future__ import annotations

from typing import Literal

from pipeline.record.evaluation import GroupValues
from pipeline.record.schema import Part, Record


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

    def half(self, metric: str) -> float | None:
        """Return half of the 95 % interval of one metric."""
        return self.half_width.metric(metric) if self.half_width is not None else None

    def sign(self, metric: str) -> int:
        """Return 1 or -1 when the interval of a metric excludes 0, else 0."""
        mean, half = self.metric(metric), self.half(metric)
        if mean is None or half is None or abs(mean) <= half:
            return 0
        return 1 if mean > 0 else -1


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


class RunDifference(Part):
    """Mean of a run minus the first over n classes, and how many classes rose and fell.

    Args:
        n: classes that both scored.
        half_width: of the 95 % interval over classes; null when n = 1.
    """

    protocol: str
    model: str
    run: str
    n: int
    mean: float
    half_width: float | None
    rose: int
    fell: int


class Differences(Record):
    """ROOT/comparison-HASH/differences.json: of methods within runs, and of runs by class."""

    schema_version: Literal[1] = 1
    methods: tuple[MeanDifference, ...]
    runs: tuple[RunDifference, ...]
