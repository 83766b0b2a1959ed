"""Views of sweep.json: what the page of a sweep shows of it."""

from __future__ import annotations

from pipeline.report.views import View


class Trial(View):
    """One training of the search; `course` is (epochs trained, first objective)."""

    name: str
    method: str
    status: str
    params: dict[str, float | None]
    epochs: int
    seconds: float
    values: dict[str, float | None]
    course: tuple[tuple[float, float | None], ...]
    error: str | None = None

    def at(self, epoch: float) -> float | None:
        """Return the first objective after `epoch` epochs; None when it was not measured."""
        return dict(self.course).get(epoch)


class Parameter(View):
    """A dimension of the search."""

    key: str
    low: float | None
    high: float | None
    log: bool
    choices: tuple[float, ...] = ()


class MethodPart(View):
    """The search of one method."""

    method: str
    parameters: tuple[Parameter, ...]
    counts: dict[str, int]
    epochs: int
    epochs_without_stopping: int
    seconds: float
    best: str | None
    importance: dict[str, float] | None


class Spread(View):
    """Mean and sample standard deviation over fresh seeds."""

    n: int
    mean: float | None
    std: float | None


class Confirmed(View):
    """A setting that was trained with fresh seeds."""

    label: str
    params: dict[str, float | None]
    values: dict[str, Spread]


class Sweep(View):
    """sweep.json."""

    objectives: dict[str, str]
    scored_on: str
    max_epochs: int
    best: str
    pareto: tuple[str, ...] = ()
    methods: tuple[MethodPart, ...]
    trials: tuple[Trial, ...]
    confirmed: tuple[Confirmed, ...]

    @property
    def first(self) -> str:
        """The objective that trials are judged by."""
        return next(iter(self.objectives))

    @property
    def sign(self) -> float:
        """1 when a higher first objective is better, else -1."""
        return 1.0 if self.objectives[self.first] == "max" else -1.0
