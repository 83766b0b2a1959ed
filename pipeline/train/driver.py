"""The train stage, seen from the driver: workers up, progress on the console, failures in words."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pipeline import feed
from pipeline.cluster.connect import Cluster
from pipeline.config import Config
from pipeline.console import Console
from pipeline.dataset.manifest import verify_shards
from pipeline.errors import ErrorReport, PipelineError, TrainingError, root_cause
from pipeline.model import build
from pipeline.model.backbone import pruning_texts
from pipeline.model.checkpoint import checkpoints_uri, committed
from pipeline.record.context import RunContext
from pipeline.record.gauges import Monitor, run_name
from pipeline.record.metrics import read_rows
from pipeline.record.rows import HealthRow
from pipeline.record.run import RunAlarm
from pipeline.train import claim, faults, health_log, stopping
from pipeline.train.checks import check, uses_gpu
from pipeline.train.method_run import Job
from pipeline.train.progress import ProgressView
from pipeline.train.torch_trainer import Workers, controller_failures, returned, torch_trainer
from pipeline.train.worker import train_worker
from sdclr.logistic import kept_threads

if TYPE_CHECKING:
    from ray.data import Dataset
    from ray.train import Result

_POLL_S, _POLL_REMOTE_S = 0.5, 5.0
STALL_TIMEOUT_S = 1800.0
"""A run without a new step for so long is ended."""


@dataclass(frozen=True)
class Trained:
    """Result of a training; the models are on storage.

    Attributes:
        gpu: name of the GPU that each worker had; None on CPUs.
        alarms: of the last look at the features of each method.
    """

    gpu: str | None
    alarms: tuple[RunAlarm, ...]


def train(run: RunContext, *, cluster: Cluster, console: Console) -> Trained:
    """Pre-train every method of the configuration; results are on storage when it returns.

    Raises:
        PipelineError: what went wrong, with the workers' own words first.
    """
    config, manifest = run.config, run.manifest
    check(config, manifest, cluster)
    for text in pruning_texts(config):
        console.stage("train", text)
    verify_shards(run.data_uri, manifest)
    use_gpu = uses_gpu(config, cluster)
    # On the CPUs of one machine one worker may be this process: 10 s less until the first step.
    is_here = cluster.is_local and not use_gpu and config.train.worker_counts == (1,)
    local_threads = max(1, (cluster.num_cpus - 1) // config.train.num_workers)
    job = Job(
        config=run.config_json,
        config_hash=run.config_hash,
        run_uri=run.run_uri,
        data_uri=run.data_uri,
        init_from=build.init_uri(config),
        device="cuda" if use_gpu else "cpu",
        num_threads=local_threads if cluster.is_local else 1,
        claim=claim.begin(run.run_uri),
        is_here=is_here,
    )
    # Decoded once into the object store, where every worker and every restart finds it.
    datasets: dict[str, Dataset] = {}
    if feed.is_cached(config, manifest):
        rows = feed.decoded_rows(config, run.data_uri, manifest, "pretrain")
        datasets["pretrain"] = rows.materialize()
    stopping.clear(run.run_uri)
    view = ProgressView(config, run.run_uri, console)
    price = config.cost.price_per_gpu_hour_usd
    if price is not None:
        num_gpus = config.train.num_workers if use_gpu else 0
        Monitor(run=run_name(run.run_uri)).set("sdclr_usd_per_hour", price * num_gpus)
    *fewer, most = config.train.worker_counts
    workers = Workers(most, cpus=1, gpus=int(use_gpu), is_here=is_here, fewer=tuple(fewer))
    with kept_threads():
        result = _fit_again(config, job, workers, datasets, view, console)
    view.show_restores()
    health = read_rows(run.run_uri, HealthRow)
    health_log.show_measures(console, health)
    return Trained(returned(result).get("gpu"), health_log.last_alarms(config, health))


def _fit_again(
    config: Config,
    job: Job,
    workers: Workers,
    datasets: dict[str, Dataset],
    view: ProgressView,
    console: Console,
) -> Result:
    """Train, and again when Ray Train's own controller failed: it does not restart itself."""
    from ray.train import ControllerError

    for failures in range(controller_failures(config) + 1):
        trainer = torch_trainer(
            config, train_worker, asdict(job), run_uri=job.run_uri, workers=workers,
            datasets=datasets,
        )  # fmt: skip
        outcome = _Outcome()
        threading.Thread(target=outcome.run, args=(trainer.fit,), daemon=True).start()
        _watch(outcome, view, config, job.run_uri, console, is_here=job.is_here)
        again = failures < controller_failures(config)
        if not isinstance(outcome.error, ControllerError) or not again:
            break
        faults.note(job.run_uri, "controller")
        console.stage("train", f"Ray Train failed and starts again: {root_cause(outcome.error)}")
    return outcome.result(job.run_uri, console)


def _watch(
    outcome: _Outcome,
    view: ProgressView,
    config: Config,
    run_uri: str,
    console: Console,
    *,
    is_here: bool = False,
) -> None:
    """Show progress until the call ends; on SIGTERM or Ctrl-C, have the workers save first.

    Raises:
        TrainingError: there was no new step for too long.
    """
    limit_s = STALL_TIMEOUT_S
    try:
        while outcome.is_awaited():
            outcome.wait(_POLL_REMOTE_S if run_uri.startswith("s3://") else _POLL_S)
            with suppress(PipelineError):  # a display that cannot be refreshed is no reason to stop
                view.refresh()
            if time.monotonic() - view.moved_at_s > limit_s:
                raise TrainingError(
                    "E-TRAIN-004",
                    f"there was no new step for {limit_s:g} s",
                    where=run_uri,
                    todo="look at the workers in the dashboard, then use "
                    f"--resume {shlex.quote(run_uri)}",
                )
    except (SystemExit, KeyboardInterrupt):
        if view.has_moved or is_here:
            _save_before_the_end(config, run_uri, console, is_over=lambda: not outcome.is_awaited())
        if is_here:  # it uses memory of Ray, which ends with this process
            outcome.wait(config.train.stop_grace_s)
        raise


def _save_before_the_end(
    config: Config, run_uri: str, console: Console, *, is_over: Callable[[], bool] = lambda: False
) -> None:
    grace_s = config.train.stop_grace_s
    console.stage("train", f"stopping: asking for a checkpoint, {grace_s:g} s at most")
    try:
        saved = stopping.ask(run_uri, grace_s=grace_s, is_over=is_over)
    except PipelineError as error:
        console.stage("train", f"no checkpoint could be asked for: {error.what}")
        return
    if saved is None and is_over():
        console.stage("train", "the training has just ended; its last checkpoint counts")
    elif saved is None and any(
        committed(checkpoints_uri(run_uri, m)) for m in config.train.methods
    ):
        console.stage("train", "no checkpoint in time; the last one before counts")
    elif saved is None:
        console.stage("train", "no checkpoint in time, and none before: a resume begins anew")
    else:
        console.stage("train", f"{saved.method} is saved at step {saved.step}")


class _Outcome:
    """Outcome of a call in another thread.

    The thread is not asked itself: Python 3.11 and 3.12 take it for ended once a signal has raised
    an exception in `join`.
    """

    def __init__(self) -> None:
        self.value: Result | None = None
        self.error: BaseException | None = None
        self._ended = threading.Event()

    def is_awaited(self) -> bool:
        """Return whether the call has not ended."""
        return not self._ended.is_set()

    def wait(self, timeout_s: float) -> None:
        """Wait for the end of the call, or for so long."""
        self._ended.wait(timeout_s)

    def run(self, function: Callable[[], Result]) -> None:
        try:
            self.value = function()
        except BaseException as error:  # kept for the main thread
            self.error = error
        finally:
            self._ended.set()

    def result(self, run_uri: str, console: Console) -> Result:
        """Return what the workers did; raise what went wrong, theirs or Ray's."""
        if self.value is None:
            assert self.error is not None
            root = root_cause(self.error)
            Monitor(run=run_name(run_uri)).add("sdclr_stops", reason=type(root).__name__)
            for note in getattr(root, "__notes__", []):
                console.line(note)  # the worker's own traceback
            raise _failure(root, run_uri) from self.error
        found = returned(self.value)
        error = found.get("error")
        if error is not None:
            Monitor(run=run_name(run_uri)).add("sdclr_stops", reason=str(found["reason"]))
            raise ErrorReport.from_json(error).error()
        return self.value


def _failure(root: BaseException, run_uri: str) -> PipelineError:
    """Return the first cause of a failed run, in the workers' words rather than Ray's."""
    if isinstance(root, PipelineError):
        return root
    return TrainingError(
        "E-TRAIN-005",
        f"the training workers failed: {type(root).__name__}: {root}",
        where=run_uri,
        todo=f"resume from the last checkpoint with --resume {shlex.quote(run_uri)}",
    )
