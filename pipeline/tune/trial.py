"""One trial on a worker: the loop of `pipeline.train.method_run`, measured after every epoch.

With one worker the trial trains in the process that Ray Tune gave it. With more, it is a Ray Train
run whose reports Tune sees. Both are a `TrialRun`: the same training, resume and checkpoints.

What was measured is written beside the checkpoints. A trial that goes on reports its past epochs
again, so that Optuna, ASHA and the record see the whole course, whoever was killed in between.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypedDict

import torch

from pipeline import storage
from pipeline.config import Config
from pipeline.config.file import config_hash
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.errors import ErrorReport
from pipeline.train.method_run import Job, MethodRun
from pipeline.train.stopping import Notices
from pipeline.train.torch_trainer import Workers, returned, torch_trainer
from pipeline.train.worker import LASTING
from pipeline.tune.images import DecodedSet, SetRefs
from pipeline.tune.objective import Measure, measure_of, objectives
from pipeline.tune.placement import CPUS_PER_WORKER
from pipeline.tune.point import Point
from pipeline.tune.space import Params, trial_config
from pipeline.tune.trials import Role, Row
from sdclr import SimCLR, StepReport, Twin


@dataclass(frozen=True)
class SweepJob:
    """Data that every trial of a sweep gets; plain values only.

    Args:
        config: the sweep's configuration, as JSON.
        run_uri, data_uri: where the sweep's record and the shards are.
        init_from: URI of the weights to start from, if any.
        gpus_per_worker: 0 on CPUs.
    """

    config: str
    run_uri: str
    data_uri: str
    init_from: str | None
    gpus_per_worker: float


@dataclass(frozen=True)
class Plan:
    """One trial: the completed form of what Tune calls its configuration.

    Args:
        name: of its folder and record.
        method, params, seed, number, role, label: as in its record.
        config: to train with.
    """

    name: str
    method: str
    params: Params
    seed: int
    number: int
    role: Role
    label: str
    config: Config

    @classmethod
    def of(cls, given: Mapping[str, object], base: Config) -> Plan:
        """Make the plan of what Tune was given, in a sweep of configuration `base`."""
        point = Point.of(given)
        seed = base.run.seed if point.seed is None else point.seed
        return cls(
            name=point.name,
            method=point.method,
            params=point.params,
            seed=seed,
            number=point.number,
            role=point.role,
            label=point.label,
            config=trial_config(base, point.method, point.params, seed=seed),
        )


class TrialRun(MethodRun):
    """The training of a trial on one rank, with a report after each measured epoch.

    Args:
        measure: of the network.
        send: gives a row to Ray, on every rank, and whether it is of an earlier attempt; None =
            another rank's row.
    """

    def __init__(
        self,
        job: Job,
        config: Config,
        manifest: Manifest,
        method: str,
        rank: int,
        device: torch.device,
        *,
        measure: Measure,
        send: Callable[[Row | None, bool], None],
    ) -> None:
        super().__init__(job, config, manifest, method, rank, device)
        if config.tune.trial_workers == 1:
            self.notices = Notices(None)  # it trains in the process that Ray Tune gave it
        self._measure, self._send = measure, send
        self._log_uri = storage.join(job.run_uri, "measures.jsonl")
        self._since_s, self._seconds_before = time.monotonic(), 0.0

    def _restore(self) -> list[str]:
        refused = super()._restore()
        rows = self._on_first_rank(self._past_rows) or []
        num_rows = int(self._all_ranks(len(rows))[0])
        for number in range(num_rows):
            self._send(rows[number] if self.rank == 0 else None, True)
        if rows:
            self._seconds_before = rows[-1]["seconds"] or 0.0
        return refused

    def _past_rows(self) -> list[Row]:
        """Return rows up to the restored step; drop later ones, of an attempt that was lost."""
        rows: list[Row] = []
        epochs_done = self.trainer.step // self.plan.num_steps
        if storage.exists(self._log_uri):
            for line in storage.read_bytes(self._log_uri).split(b"\n"):
                if line.endswith(b"}") and (row := json.loads(line))["epoch"] <= epochs_done:
                    rows.append(row)
        if epochs_done and (not rows or (rows[-1]["epoch"] or 0) < epochs_done):
            # Killed between the checkpoint and its row: the network is the one to be measured.
            rows.append(self._row(epochs_done, loss=None))
        text = "".join(json.dumps(row) + "\n" for row in rows)
        storage.write_bytes(self._log_uri, text.encode())
        return rows

    def _report(self, report: StepReport) -> None:
        row = None
        if self.rank == 0:
            row = self._row(report.epoch + 1, loss=report.loss)
            with storage.LineLog(self._log_uri) as log:
                log.append(row)
        self._send(row, False)

    def _row(self, epoch: int, *, loss: float | None) -> Row:
        model = self.trainer.model
        assert isinstance(model, Twin | SimCLR)
        measured = self._measure(model)
        seconds = self._seconds_before + time.monotonic() - self._since_s
        row: Row = {"epoch": epoch, "train_loss": loss, **measured, "seconds": round(seconds, 3)}
        return {k: v if v is None or math.isfinite(v) else None for k, v in row.items()}

    def _export(self) -> None:
        """Do nothing: a trial's weights are in its checkpoint, and the best is trained again."""


def run_trial(given: Mapping[str, object], *, job: SweepJob, sets: SetRefs) -> None:
    """Run one trial in Ray Tune; `given` as in `Point.of`, `sets` are references to sets."""
    from ray import tune

    base = Config.model_validate_json(job.config)
    plan = Plan.of(given, base)
    try:
        if base.tune.trial_workers > 1:
            _in_ray_train(given, plan, job, sets)
        else:
            device = torch.device("cuda" if job.gpus_per_worker else "cpu")
            _train(plan, job, sets, rank=0, device=device, send=tune.report)
    except LASTING as error:
        tune.report({"epoch": 0, "error": _report(error, job, plan)})


def _train(
    plan: Plan,
    job: SweepJob,
    sets: SetRefs,
    *,
    rank: int,
    device: torch.device,
    send: Callable[[dict[str, object]], None],
) -> None:
    import ray

    config = plan.config
    torch.set_num_threads(CPUS_PER_WORKER)
    decoded: dict[str, DecodedSet] = {name: ray.get(ref) for name, ref in sets.items()}
    manifest = read_manifest(job.data_uri)
    worker_job = Job(
        config=config.model_dump_json(),
        config_hash=config_hash(config),
        run_uri=storage.join(job.run_uri, "trials", plan.name),
        data_uri=job.data_uri,
        init_from=job.init_from,
        device=device.type,
        num_threads=CPUS_PER_WORKER,
    )
    run = TrialRun(
        worker_job, config, manifest, plan.method, rank, device,
        measure=measure_of(config, manifest, decoded),
        send=lambda row, is_past: send(_message(row, is_past, config)),
    )  # fmt: skip
    run.train(decoded["pretrain"].image_set(), None)
    del run
    gc.collect()  # a model and its gradients refer to each other


def _in_ray_train(given: Mapping[str, object], plan: Plan, job: SweepJob, sets: SetRefs) -> None:
    from ray.tune.integration.ray_train import TuneReportCallback

    on_gpu = job.gpus_per_worker > 0
    workers = Workers(
        plan.config.tune.trial_workers,
        cpus=1.0 if on_gpu else float(CPUS_PER_WORKER),
        gpus=job.gpus_per_worker,
    )
    outcome = torch_trainer(
        plan.config,
        _trial_worker,
        _Passed(given=given, job=job, sets=dict(sets)),
        run_uri=storage.join(job.run_uri, "trials", plan.name),
        workers=workers,
        callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call]
        is_whole_run=False,
    ).fit()
    error = returned(outcome).get("error")
    if error is not None:
        raise ErrorReport.from_json(error).error()


class _Passed(TypedDict):
    """Values that Ray Train hands to each worker."""

    given: Mapping[str, object]
    job: SweepJob
    sets: SetRefs


def _trial_worker(passed: _Passed) -> dict[str, str | None]:
    import ray.train
    import ray.train.torch

    job = passed["job"]
    plan = Plan.of(passed["given"], Config.model_validate_json(job.config))
    rank = ray.train.get_context().get_world_rank()
    device = ray.train.torch.get_device() if job.gpus_per_worker else torch.device("cpu")

    try:
        _train(plan, job, passed["sets"], rank=rank, device=device, send=ray.train.report)
    except LASTING as error:
        return {"error": _report(error, job, plan)}
    return {"error": None}


def _message(row: Row | None, is_past: bool, config: Config) -> dict[str, object]:
    """Return what Ray gets: epoch and objectives for Tune, the whole row for the record."""
    if row is None:
        return {}
    values = {name: row[name] for name in objectives(config) if row.get(name) is not None}
    return {"epoch": row["epoch"], **values, "row": row, "is_past": is_past}


def _report(error: Exception, job: SweepJob, plan: Plan) -> str:
    where = storage.join(job.run_uri, "trials", plan.name)
    return ErrorReport.of(error, where=where, todo="narrow the searched range").to_json()
