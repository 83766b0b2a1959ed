"""Trials through Ray Tune: a Tuner for every invocation, and the callback that keeps records.

Tune's own files (results, pickled states) go to a scratch folder of this machine and are deleted.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from pipeline.config import Config
from pipeline.errors import ClusterError, ErrorReport, PipelineError, root_cause
from pipeline.record.gauges import Monitor, run_name
from pipeline.tune.images import SetRefs
from pipeline.tune.objective import objectives
from pipeline.tune.placement import Placement
from pipeline.tune.point import Point
from pipeline.tune.result import best_of
from pipeline.tune.trial import Plan, SweepJob, run_trial
from pipeline.tune.trials import Status, TrialRecord, Trials
from pipeline.tune.upstream import RayTrial

_SETTINGS = {
    # A trial that cannot go on reports why instead of a measure.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # No result.json, CSV and TensorBoard files: the records are ours.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
_POLL_S = 0.5
PLACEMENT_TIMEOUT_S = 600.0
"""A sweep ends when no trial could be placed for so long."""
_ERROR_CHARS = 500


class Recorder(tune.Callback):
    """Callback of Tune in the driver; it writes the record of each trial.

    Args:
        trials: where they are kept.
        base: the sweep's configuration.
    """

    def __init__(self, trials: Trials, base: Config) -> None:
        self.trials, self.base = trials, base
        self.running: set[str] = set()
        self.changed_s = time.monotonic()
        self._monitor = Monitor(run=run_name(trials.run_uri))

    def _record(self, trial: RayTrial) -> TrialRecord:
        plan = Plan.of(trial.config, self.base)
        found = self.trials.get(plan.name)
        if found is not None:
            return found
        return TrialRecord(
            name=plan.name, method=plan.method, number=plan.number, role=plan.role,
            params=plan.params, seed=plan.seed, label=plan.label,
        )  # fmt: skip

    def on_trial_start(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: object
    ) -> None:
        """Open a new record, or resume an unfinished one."""
        record = self._record(trial)
        record.status, self.changed_s = "running", time.monotonic()
        self.running.add(record.name)
        self._save(record)

    def on_trial_recover(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: object
    ) -> None:
        """Record that the trial's process failed and that it waits for another one."""
        self._ended(trial)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[RayTrial],
        trial: RayTrial,
        result: dict[str, object],
        **info: object,
    ) -> None:
        """Record a row of measures, or the reason why there will be none."""
        record, self.changed_s = self._record(trial), time.monotonic()
        error, row = result.get("error"), result.get("row")
        if isinstance(error, str) and error:
            record.error = ErrorReport.from_json(error)
        elif isinstance(row, Mapping) and row:
            record.add(dict(row))
            record.seconds = float(row["seconds"])
        self._save(record, lazily=True)

    def _ended(self, trial: RayTrial) -> TrialRecord:
        record, self.changed_s = self._record(trial), time.monotonic()
        self.running.discard(record.name)
        return record

    def on_trial_complete(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: object
    ) -> None:
        """Record that the trial reached its end, or that ASHA stopped it."""
        record = self._ended(trial)
        if record.error is not None:
            record.status = "failed"
        else:
            whole = record.epochs >= self.base.train.epochs
            record.status = "complete" if whole else "pruned"
        self._save(record)

    def on_trial_error(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: object
    ) -> None:
        """Record that the trial's process failed more often than allowed."""
        record = self._ended(trial)
        text = Path(trial.error_file).read_text("utf-8", "replace") if trial.error_file else ""
        last = (text.strip().splitlines() or ["its process ended"])[-1][:_ERROR_CHARS]
        where = self.trials.uri(record.name)
        failure = ClusterError(
            "E-CLUSTER-018", last, where=where, todo="see the logs of its worker in Ray"
        )
        record.error = ErrorReport.of(failure)
        record.status = "failed"
        self._save(record)

    def _save(self, record: TrialRecord, *, lazily: bool = False) -> None:
        self.trials.save(record, lazily=lazily)
        searched = self.trials.all(method=record.method)
        counts = Counter(r.status for r in searched)
        for status in get_args(Status):
            self._monitor.set("sdclr_trials", counts[status], method=record.method, status=status)
        objective = next(iter(objectives(self.base)))
        best = best_of(self.base, searched)
        value = None if best is None else best.last(objective)
        if value is not None:
            tags = {"method": record.method, "objective": objective}
            self._monitor.set("sdclr_best_trial", value, **tags)


def run_trials(
    *,
    job: SweepJob,
    base: Config,
    trials: Trials,
    sets: SetRefs,
    placement: Placement,
    num_trials: int,
    search: Searcher | None = None,
    scheduler: TrialScheduler | None = None,
    points: Sequence[Point] | None = None,
    refresh: Callable[[], None],
) -> None:
    """Run so many trials that `search` suggests, or those of `points`; `refresh` is called often.

    Raises:
        ClusterError: no trial could be placed for `PLACEMENT_TIMEOUT_S`.
        PipelineError: Tune itself failed.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    recorder = Recorder(trials, base)
    # Tune's thread goes on when this one gives up, and may write while the folder is deleted.
    with tempfile.TemporaryDirectory(prefix="sdclr-tune-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, job=job, sets=sets), _bundle(placement)
            ),
            param_space=_space(base, points),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=scheduler,
                num_samples=num_trials if points is None else 1,
                max_concurrent_trials=placement.concurrent,
                # A process imports torch once and serves one trial after the other.
                reuse_actors=base.tune.trial_workers == 1,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=scratch,
                callbacks=[recorder],
                failure_config=tune.FailureConfig(max_failures=base.train.max_failures),
                verbose=0,
            ),
        )
        failure: list[BaseException] = []
        thread = threading.Thread(target=_fit, args=(tuner, failure), daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_S)
            _check_placed(trials, recorder, base, placement)
            refresh()
    if failure:
        root = root_cause(failure[0])
        if isinstance(root, PipelineError):
            raise root from failure[0]
        raise ClusterError(
            "E-CLUSTER-016",
            f"Ray Tune failed: {type(root).__name__}: {root}",
            where=trials.run_uri,
            todo="run the same command again: finished trials are kept",
        ) from failure[0]


def _space(base: Config, points: Sequence[Point] | None) -> dict[str, object]:
    if points is None:
        return {}
    # One trial for each point: Tune looks into a dictionary only when it is chosen from a grid.
    return {"point": tune.grid_search([point.given() for point in points])}


def _fit(tuner: tune.Tuner, failure: list[BaseException]) -> None:
    try:
        tuner.fit()
    except BaseException as error:  # raised by the main thread
        failure.append(error)


def _bundle(placement: Placement) -> tune.PlacementGroupFactory:
    selector = [placement.labels] if placement.labels else None
    return tune.PlacementGroupFactory([placement.resources], bundle_label_selector=selector)


def _check_placed(trials: Trials, recorder: Recorder, base: Config, placement: Placement) -> None:
    """Give up when nothing has moved for long and nothing runs, or what runs has lost its place."""
    waited_s = time.monotonic() - recorder.changed_s
    if waited_s < PLACEMENT_TIMEOUT_S:
        return
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fits = there.get("CPU", 0) >= placement.cpus and there.get("GPU", 0) >= placement.gpus
    if fits and recorder.running:
        return  # it is placed, and slow
    free = ray.available_resources()  # type: ignore[no-untyped-call]
    raise ClusterError(
        "E-CLUSTER-017",
        f"no trial could be placed for {waited_s:.0f} s: each needs {placement.cpus:g} CPU and "
        f"{placement.gpus:g} GPU, the cluster has {there.get('CPU', 0):g} and "
        f"{there.get('GPU', 0):g}, of which {free.get('CPU', 0):g} and {free.get('GPU', 0):g} are "
        "free",
        where="the cluster",
        todo="free them or bring the nodes back, and run the same command again: finished trials "
        "are kept",
    )
