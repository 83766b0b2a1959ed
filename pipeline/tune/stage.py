"""The tune stage, seen from the driver: a study for each method, then fresh seeds for the best.

Everything that a sweep knows is in RUN/trials; sweep.json, best.yaml, pareto/ and study.journal are
made from it. So the same command, given again, goes on where the last one was killed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import optuna

from pipeline import storage
from pipeline.cluster.connect import Cluster
from pipeline.config import Config
from pipeline.config.file import dump_config
from pipeline.console import Console, counted
from pipeline.dataset.manifest import Manifest, verify_shards
from pipeline.errors import ConfigError, TrainingError
from pipeline.model.build import init_uri
from pipeline.record.context import RunContext
from pipeline.record.sweep import SweepResult
from pipeline.train import claim
from pipeline.train.checks import check
from pipeline.tune import result, study
from pipeline.tune.asha import RecordedASHA, asha
from pipeline.tune.images import SetRefs, decode, needed_sets
from pipeline.tune.objective import PROBE_IMAGES, objectives
from pipeline.tune.placement import Placement, place_on
from pipeline.tune.point import Point
from pipeline.tune.runner import run_trials
from pipeline.tune.search import NumberedSampler, RecordedSearch, rebuild
from pipeline.tune.space import best_config, known_points, parameters, trial_config
from pipeline.tune.trial import SweepJob
from pipeline.tune.trials import FINISHED, TrialRecord, Trials
from pipeline.tune.view import View
from sdclr.schedule import MAX_WARMUP_FRAC

REDUCTION_FACTOR = 3
"""Of the trials that come to a rung, one in so many goes on."""


def grace_epochs(config: Config) -> int:
    """Return the epochs before ASHA may stop a trial: more than the warm-up lasts.

    By default those of one round of elimination, a third: earlier measures stop the best settings
    too (docs/sweeps.md).

    Raises:
        ConfigError: the configured number is not.
    """
    t = config.train
    warmup = min(t.warmup_epochs, MAX_WARMUP_FRAC * t.epochs)
    least = min(t.epochs, math.floor(warmup) + 1)
    wanted = config.tune.grace_epochs
    if wanted is None:
        return max(least, t.epochs // REDUCTION_FACTOR)
    if not least <= wanted <= t.epochs:
        raise ConfigError(
            "E-CONFIG-041",
            f"a trial would be judged in its warm-up of {warmup:g} epochs, or after its "
            f"{counted(t.epochs, 'epoch')}",
            where=f"tune.grace_epochs={wanted}",
            todo=f"set it to {least} or more, at most {t.epochs}, or leave it out",
        )
    return wanted


def check_sweep(config: Config, manifest: Manifest, cluster: Cluster) -> Placement:
    """Refuse everything that is known to fail before the first trial; return the placement.

    Raises:
        PipelineError: as `pipeline.train.checks.check`, and: no val set, no room for a trial, an
            empty space, a budget below the number of known points.
    """
    needed_sets(config, manifest)
    grace_epochs(config)
    for method in config.train.methods:
        num_known = len(known_points(config, method))
        if config.tune.trials < num_known:
            raise ConfigError(
                "E-CONFIG-042",
                f"{num_known} known settings are tried first, the budget is {config.tune.trials}",
                where=f"tune.trials={config.tune.trials}",
                todo=f"set tune.trials={num_known} or more",
            )
    method = config.train.methods[0]
    if not any(parameters(config, m) for m in config.train.methods):
        raise ConfigError(
            "E-CONFIG-043",
            "there is nothing to search: prune_ratio is for methods with a pruned branch only",
            where="tune.search, train.methods",
            todo="add sdclr to train.methods, or another name to tune.search",
        )
    placement = place_on(config, cluster)
    on_device = {"device": "cuda" if placement.gpus else "cpu", "workers": 1}
    one = trial_config(config, method, {}, seed=config.run.seed)
    check(one.model_copy(update={"train": one.train.model_copy(update=on_device)}), manifest,
          cluster)  # fmt: skip
    return placement


@dataclass
class Sweep:
    """One invocation of a sweep."""

    context: RunContext
    cluster: Cluster
    console: Console

    def run(self) -> SweepResult:
        """Search, confirm, conclude; returns the record at RUN/sweep.json.

        Raises:
            PipelineError: what went wrong; what was finished is kept.
            TrainingError: every trial failed.
        """
        self.config, self.manifest = self.context.config, self.context.manifest
        self.run_uri, self.data_uri = self.context.run_uri, self.context.data_uri
        config = self.config
        self.placement = check_sweep(config, self.manifest, self.cluster)
        claim.begin(self.run_uri)  # says later whether the process that ran the sweep lives
        self.trials = Trials(self.run_uri)
        self._sets: SetRefs | None = None
        methods = config.train.methods
        verb = "resumed" if self.trials.all() else "started"
        self.console.stage(
            "tune",
            f"{verb}: {counted(config.tune.trials, 'trial')} of "
            f"{counted(config.train.epochs, 'epoch')} for each of "
            f"{' and '.join(methods)}, {self.placement.concurrent} at a time",
        )
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        for method in methods:
            self._search(method)
        self._confirm()
        return self.conclude()

    def _search(self, method: str) -> None:
        config, searched = self.config, parameters(self.config, method)
        records = self.trials.all(method=method)
        num_left = config.tune.trials - sum(r.status in FINISHED for r in records)
        if not searched:  # nothing to choose: one trial of the configured setting
            num_left = min(num_left, 1 - sum(r.status in FINISHED for r in records))
        if num_left <= 0:
            return
        names = objectives(config)
        asked = optuna.create_study(
            study_name=method,
            directions=study.directions(names),
            sampler=NumberedSampler(config.tune.sampler, config.run.seed),
        )
        rebuild(asked, records, known_points(config, method), searched, list(names))
        (metric, *_), (mode, *_) = names.keys(), names.values()
        scheduler = None
        if config.tune.early_stopping and len(names) == 1:
            scheduler = asha(
                records,
                metric=metric,
                mode=mode,
                max_epochs=config.train.epochs,
                grace_epochs=grace_epochs(config),
                reduction_factor=REDUCTION_FACTOR,
            )
        search = RecordedSearch(
            asked,
            searched,
            metric=list(names) if len(names) > 1 else metric,
            mode=list(names.values()) if len(names) > 1 else mode,
            max_epochs=config.train.epochs,
        )
        view = self._view(method, planned=config.tune.trials)
        self._run(view, num_trials=num_left, search=search, scheduler=scheduler)
        study.publish(self.run_uri, self.trials, config)
        if all(r.status == "failed" for r in self.trials.all(method=method)):
            first = self.trials.all(method=method)[0].error
            raise TrainingError(
                "E-TRAIN-008",
                f"every {method} trial failed; the first: {first.what if first else 'unknown'}",
                where=first.where if first else self.run_uri,
                todo=first.todo if first else "look at the logs of the workers",
            )

    def _confirm(self) -> None:
        """Train the best settings and the configured one with seeds that the search did not see."""
        wanted = result.confirmations(self.config, self.trials)
        points = [p for p in wanted if not self._done(p)]
        if points:
            self._run(self._view("", planned=len(wanted)), num_trials=1, points=points)

    def _view(self, method: str, *, planned: int) -> View:
        return View(
            self.console, self.trials, self.config, method,
            concurrent=self.placement.concurrent, planned=planned,
        )  # fmt: skip

    def _done(self, point: Point) -> bool:
        known = self.trials.get(point.name)
        return known is not None and known.status in FINISHED

    def _run(
        self,
        view: View,
        *,
        num_trials: int,
        search: RecordedSearch | None = None,
        scheduler: RecordedASHA | None = None,
        points: Sequence[Point] | None = None,
    ) -> None:
        if self._sets is None:
            verify_shards(self.data_uri, self.manifest)
            self._sets = decode(self.config, self.data_uri, self.manifest)
        config = self.config
        job = SweepJob(
            config=config.model_dump_json(),
            run_uri=self.run_uri,
            data_uri=self.data_uri,
            init_from=init_uri(config),
            gpus_per_worker=self.placement.gpus_per_worker,
        )
        run_trials(
            job=job, base=config, trials=self.trials, sets=self._sets, placement=self.placement,
            refresh=view.refresh, num_trials=num_trials, search=search, scheduler=scheduler,
            points=points,
        )  # fmt: skip
        view.end()

    def conclude(self) -> SweepResult:
        """Write what the records say: sweep.json, best.yaml, pareto/*.yaml, study.journal."""
        found = result.summary(self.config, self.trials, self._num_scored())
        study.publish(self.run_uri, self.trials, self.config)
        found.write(storage.join(self.run_uri, "sweep.json"))
        best = self.trials.get(found.best)
        assert best is not None
        self._write_config("best.yaml", best)
        for name in found.pareto:
            member = self.trials.get(name)
            if member is not None:
                self._write_config(f"pareto/{name}.yaml", member)
        return found

    def _num_scored(self) -> int:
        sets = {str(name): info.rows for name, info in self.manifest.sets.items()}
        if self.config.tune.objective == "fewshot":
            return sets["val"]
        return min(PROBE_IMAGES, sets["pretrain"])

    def _write_config(self, name: str, record: TrialRecord) -> None:
        chosen = best_config(self.config, record.method, record.params)
        storage.write_bytes(storage.join(self.run_uri, name), dump_config(chosen).encode())
