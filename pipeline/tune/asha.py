"""Ray Tune's scheduler ASHA, made to continue from trial records."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

from ray.tune.schedulers import AsyncHyperBandScheduler

from pipeline.tune import upstream
from pipeline.tune.search import number_of
from pipeline.tune.trials import TrialRecord

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController


class RecordedASHA(AsyncHyperBandScheduler):
    """ASHA that does not judge again the past epochs that a resumed trial reports.

    The trials beside it have gone on since: an epoch that was good enough when it was new may not
    be so now, and the trial would be stopped behind rungs that it had passed.
    """

    def on_trial_result(
        self, tune_controller: TuneController, trial: upstream.RayTrial, result: dict[str, object]
    ) -> str:
        """Return CONTINUE or STOP; the value enters its rung in any case."""
        action: str = super().on_trial_result(tune_controller, trial, result)
        is_over = number_of(result, "epoch") >= upstream.last_epoch(self)
        return self.CONTINUE if result.get("is_past") and not is_over else action


def asha(
    records: Sequence[TrialRecord],
    *,
    metric: str,
    mode: str,
    max_epochs: int,
    grace_epochs: int,
    reduction_factor: int,
) -> RecordedASHA:
    """Set up ASHA (Li et al. 2020) by epochs, its rungs filled from finished trials.

    Unfinished trials report their past epochs again when they resume, and so enter by themselves.
    """
    scheduler = RecordedASHA(
        time_attr="epoch",
        metric=metric,
        mode=mode,
        max_t=max_epochs,
        grace_period=grace_epochs,
        reduction_factor=reduction_factor,
    )
    bracket = upstream.only_bracket(scheduler)
    sign = 1.0 if mode == "max" else -1.0
    for record in records:
        if record.status == "running":
            continue
        for row in record.rows:
            value = row.get(metric)
            if value is not None:
                stub = SimpleNamespace(trial_id=f"record {record.name}")
                bracket.on_result(stub, int(row["epoch"] or 0), sign * value)
    return scheduler
