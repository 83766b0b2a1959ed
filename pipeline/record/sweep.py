"""RUN/sweep.json: the result of a sweep, a function of the records of its trials."""

from __future__ import annotations

from typing import Literal

from pipeline.record.schema import Measured, Part, Record


class Searched(Part):
    """A dimension of the search: a range, or a few choices; `configured` is where it started."""

    key: str
    low: float
    high: float
    log: bool
    choices: tuple[int, ...]
    configured: float | int


class MethodSearch(Part):
    """The search of one method.

    Args:
        method: its name.
        parameters: that were searched.
        counts: trials by how they ended.
        epochs: trained in all, and those without stopping trials early.
        seconds: of training and measuring.
        best: name of its best complete trial; null without any.
        importance: key -> share in the variation of good trials; null when they are too few.
    """

    method: str
    parameters: tuple[Searched, ...]
    counts: dict[str, int]
    epochs: int
    epochs_without_stopping: int
    seconds: float
    best: str | None
    importance: dict[str, float] | None


class SearchedTrial(Part):
    """One training of the search.

    Args:
        name, method, status, params, epochs, seconds: as in its record.
        values: objective -> its last value.
        at_common_epoch: first objective at the last epoch that all trials have reached.
        course: (epochs trained, first objective).
        error: why it failed.
    """

    name: str
    method: str
    status: str
    params: dict[str, float | int]
    epochs: int
    seconds: float
    values: dict[str, Measured]
    at_common_epoch: Measured
    course: tuple[tuple[int, Measured], ...]
    error: str | None

    def at(self, epoch: int) -> float | None:
        """Return the first objective after `epoch` epochs; None when it was not measured."""
        return dict(self.course).get(epoch)


class Spread(Part):
    """Mean and sample standard deviation over n fresh seeds."""

    n: int
    mean: Measured
    std: Measured
    by_seed: tuple[float, ...]


class Confirmed(Part):
    """A setting that was trained with fresh seeds; `values` by objective."""

    label: str
    method: str
    params: dict[str, float | int]
    values: dict[str, Spread]


class SweepResult(Record):
    """RUN/sweep.json.

    Args:
        objectives: `max` or `min` by the name of each objective.
        scored_on: the set that trials are judged on, of `num_scored` images.
        common_epoch: the last epoch that all trials with a measure have reached.
        max_epochs: of a trial.
        seed: of the search.
        sampler: of the search.
        best: name of the best trial.
        pareto: names of the trials that no other one beats in both objectives, best first.
        methods, trials, confirmed: by method; all of the search; settings with fresh seeds.
    """

    schema_version: Literal[1] = 1
    objectives: dict[str, str]
    scored_on: str
    num_scored: int
    common_epoch: int | None
    max_epochs: int
    seed: int
    sampler: str
    best: str
    pareto: tuple[str, ...]
    methods: tuple[MethodSearch, ...]
    trials: tuple[SearchedTrial, ...]
    confirmed: tuple[Confirmed, ...]

    @property
    def first(self) -> str:
        """The objective that trials are judged by."""
        return next(iter(self.objectives))

    @property
    def sign(self) -> float:
        """1 when a higher first objective is better, else -1."""
        return 1.0 if self.objectives[self.first] == "max" else -1.0
