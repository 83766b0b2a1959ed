"""The train stage, seen from the driver: workers up, progress on the console, failures in words."""

from __future__ import annotations

import os
import shlex
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from pipeline import feed, storage
from pipeline.cluster import auto
from pipeline.cluster.connect import (
    Cluster,
    check_workers,
    on_nodes_with,
    smallest_object_store_bytes,
)
from pipeline.config import Config
from pipeline.config.stages import NEEDS_VAL
from pipeline.console import Console
from pipeline.dataset.manifest import Manifest, verify_shards
from pipeline.errors import ConfigError, ErrorReport, PipelineError, TrainingError, root_cause
from pipeline.model import build
from pipeline.record import metrics
from pipeline.record.context import RunContext
from pipeline.record.gauges import Monitor, run_name
from pipeline.storage import arrow
from pipeline.train import claim, health_log, stopping
from pipeline.train.worker import Job, train_worker

_POLL_S, _POLL_REMOTE_S = 0.5, 5.0
STALL_TIMEOUT_S = 1800.0
"""A run without a new step for so long is ended."""
MAX_PREEMPTIONS, MAX_CONTROLLER_FAILURES = 20, 3
"""Restarts after a node was reclaimed, and after failures of Ray Train itself; `train.max_failures`
where that is more."""


def _controller_failures(config: Config) -> int:
    return max(MAX_CONTROLLER_FAILURES, config.train.max_failures)


def check(config: Config, manifest: Manifest, cluster: Cluster) -> None:
    """Refuse everything that is known to fail before a worker starts.

    Raises:
        PipelineError: too few images, too many workers, sizes that are missing or do not fit.
    """
    check_data(config, manifest, object_store_bytes=smallest_object_store_bytes())
    build.new_network(config, config.train.methods[0], init_from=build.init_uri(config))
    check_workers(cluster, config.train.num_workers, use_gpu=uses_gpu(config, cluster))


def check_data(config: Config, manifest: Manifest, *, object_store_bytes: int) -> None:
    """Check what `check` can check without a cluster.

    Raises:
        PipelineError: as `check`.
    """
    feed.epoch_plan(config, manifest)
    build.resize_px(config, manifest)
    check_split(config, manifest)
    feed.check_fits(config, manifest, object_store_bytes=object_store_bytes)


def check_split(config: Config, manifest: Manifest) -> None:
    """Refuse a labelled data set that lacks the set to score on, or to choose an epoch on.

    Raises:
        ConfigError: naming the sets that there are.
    """
    if manifest.class_names is not None and config.evaluate.split not in manifest.sets:
        raise ConfigError(
            "E-CONFIG-034",
            f"the data set has no {config.evaluate.split} set, it has {', '.join(manifest.sets)}",
            where=f"evaluate.split={config.evaluate.split}",
            todo="set data.num_test_per_class or data.num_val_per_class and ingest, or another "
            "split",
        )
    wanting = [p for p in config.evaluate.protocols if p in NEEDS_VAL]
    if manifest.class_names is not None and wanting and "val" not in manifest.sets:
        raise ConfigError(
            "E-CONFIG-035",
            f"{' and '.join(wanting)} choose the epoch on a val set, which the data set lacks",
            where=f"evaluate.protocols, data set {manifest.name}",
            todo="set data.sets.val and ingest, or leave these protocols out",
        )


def uses_gpu(config: Config, cluster: Cluster) -> bool:
    """Return whether the workers train on GPUs."""
    return auto.uses_gpu(config, cluster.num_gpus)


def train(run: RunContext, *, cluster: Cluster, console: Console) -> str | None:
    """Pre-train every method of the configuration; results are on storage when it returns.

    Returns:
        The name of the GPU that each worker had; None on CPUs.

    Raises:
        PipelineError: what went wrong, with the workers' own words first.
    """
    config, manifest, run_uri, data_uri = run.config, run.manifest, run.run_uri, run.data_uri
    check(config, manifest, cluster)
    verify_shards(data_uri, manifest)
    use_gpu = uses_gpu(config, cluster)
    local_threads = max(1, (cluster.num_cpus - 1) // config.train.num_workers)
    job = Job(
        config=run.config_json,
        config_hash=run.config_hash,
        run_uri=run_uri,
        data_uri=data_uri,
        init_from=build.init_uri(config),
        device="cuda" if use_gpu else "cpu",
        num_threads=local_threads if cluster.is_local else 1,
        claim=claim.begin(run_uri),
    )
    # Decoded once into the object store, where every worker and every restart finds it.
    datasets = {}
    if feed.is_cached(config, manifest):
        rows = feed.decoded_rows(config, data_uri, manifest, "pretrain")
        datasets["pretrain"] = rows.materialize()
    stopping.clear(run_uri)
    result = _fit_again(config, job, datasets, console, use_gpu=use_gpu)
    health_log.tell(console, metrics.read_metrics(run_uri, kind="health"))
    for row in metrics.read_metrics(run_uri, kind="fallback"):
        for sentence in row["refused"]:
            console.stage("train", f"{row['method']}: skipped {sentence}")
    gpu: str | None = result.return_value.get("gpu")
    return gpu


def _fit_again(
    config: Config, job: Job, datasets: dict[str, Any], console: Console, *, use_gpu: bool
) -> Any:
    """Train, and again when Ray Train's own controller failed: it does not restart itself."""
    from ray.train import ControllerError

    # Ray Train's own barriers (reports, notices) wait for ever by default.
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(config.train.collective_timeout_s)
    for failures in range(_controller_failures(config) + 1):
        outcome = _Outcome()
        trainer = _torch_trainer(config, job, datasets, use_gpu=use_gpu)
        thread = threading.Thread(target=outcome.run, args=(trainer.fit,), daemon=True)
        thread.start()
        _watch(thread, config, job.run_uri, console)
        again = failures < _controller_failures(config)
        if not isinstance(outcome.error, ControllerError) or not again:
            break
        console.stage("train", f"Ray Train failed and starts again: {root_cause(outcome.error)}")
    outcome.raise_failure(job.run_uri, console)
    return outcome.value


def _watch(thread: threading.Thread, config: Config, run_uri: str, console: Console) -> None:
    """Show progress until the thread ends; on SIGTERM or Ctrl-C, have the workers save first.

    Raises:
        TrainingError: there was no new step for too long.
    """
    view = _ProgressView(config, run_uri, console)
    limit_s = STALL_TIMEOUT_S
    try:
        while thread.is_alive():
            thread.join(_POLL_REMOTE_S if run_uri.startswith("s3://") else _POLL_S)
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
        if view.has_moved:
            _save_before_the_end(config, run_uri, console)
        raise


def _save_before_the_end(config: Config, run_uri: str, console: Console) -> None:
    grace_s = config.train.stop_grace_s
    console.stage("train", f"stopping: asking for a checkpoint, {grace_s:g} s at most")
    try:
        saved = stopping.ask(run_uri, grace_s=grace_s)
    except PipelineError as error:
        console.stage("train", f"no checkpoint could be asked for: {error.what}")
        return
    if saved is None:
        console.stage("train", "no checkpoint in time; the last one before counts")
    else:
        console.stage("train", f"{saved['method']} is saved at step {saved['step']}")


class _Outcome:
    """Outcome of a call in another thread."""

    def __init__(self) -> None:
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self, function: Any) -> None:
        try:
            self.value = function()
        except BaseException as error:  # kept for the main thread
            self.error = error

    def raise_failure(self, run_uri: str, console: Console) -> None:
        if self.error is not None:
            reason = type(root_cause(self.error)).__name__
            Monitor(run=run_name(run_uri)).add("sdclr_stops", reason=reason)
            failure = _failure(self.error, run_uri)
            for note in getattr(root_cause(self.error), "__notes__", []):
                console.line(note)  # the worker's own traceback
            raise failure from self.error
        outcome = self.value.return_value or {}
        if outcome.get("error") is not None:
            Monitor(run=run_name(run_uri)).add("sdclr_stops", reason=outcome["reason"])
            raise ErrorReport.from_json(outcome["error"]).error()


def _torch_trainer(config: Config, job: Job, datasets: dict[str, Any], *, use_gpu: bool) -> Any:
    from ray.train import DataConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    filesystem, path = arrow.filesystem(storage.absolute(storage.join(job.run_uri, "ray")))
    return TorchTrainer(
        train_worker,  # type: ignore[arg-type]
        train_loop_config=asdict(job),
        torch_config=TorchConfig(timeout_s=config.train.collective_timeout_s),
        scaling_config=ScalingConfig(
            num_workers=config.train.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={
                "CPU": 1,
                "GPU": int(use_gpu),
                **on_nodes_with(config.placement.train_resource),
            },
        ),
        datasets=datasets,
        # Every rank holds the whole set: the order of `sdclr.order` needs no shuffle between them.
        dataset_config=DataConfig(datasets_to_split=[]),
        run_config=RunConfig(
            name=f"{run_name(job.run_uri)}-{time.time_ns()}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=config.train.max_failures,
                max_preemption_failures=max(MAX_PREEMPTIONS, config.train.max_failures),
                controller_failure_limit=_controller_failures(config),
            ),
        ),
    )


def _failure(error: BaseException, run_uri: str) -> PipelineError:
    """Return the first cause of a failed run, in the workers' words rather than Ray's."""
    root = root_cause(error)
    if isinstance(root, PipelineError):
        return root
    return TrainingError(
        "E-TRAIN-005",
        f"the training workers failed: {type(root).__name__}: {root}",
        where=run_uri,
        todo=f"continue from the last checkpoint with --resume {shlex.quote(run_uri)}",
    )


class _ProgressView:
    """The newest metrics line as progress over all methods of the run."""

    def __init__(self, config: Config, run_uri: str, console: Console) -> None:
        self.config, self.run_uri, self.console = config, run_uri, console
        self._shown = self._newest()
        self.moved_at_s, self.has_moved = time.monotonic(), False
        self._told: set[tuple[str, str]] = set()

    def refresh(self) -> None:
        """Show the line, unless it was shown already."""
        rows = metrics.newest_rows(self.run_uri, "step", "health")
        self._tell_alarms(rows.get("health"))
        newest = rows.get("step")
        if newest is None or self._shown == (newest["method"], newest["step"]):
            return
        self._shown = newest["method"], newest["step"]
        self.moved_at_s, self.has_moved = time.monotonic(), True
        methods, batch = self.config.train.methods, self.config.train.global_batch
        steps_before = methods.index(newest["method"]) * newest["num_steps"]
        self.console.progress(
            "train",
            (steps_before + newest["step"]) * batch,
            len(methods) * newest["num_steps"] * batch,
            per_s=newest["images_per_s"],
            extra=f"{newest['method']}  epoch {newest['epoch'] + 1}/{self.config.train.epochs}  "
            f"step {newest['step']}/{newest['num_steps']}  loss {newest['loss']:.3f}",
        )

    def _newest(self) -> tuple[str, int] | None:
        """Return the newest line of a resumed run: it is no progress of this one."""
        with suppress(PipelineError):
            if newest := metrics.newest_rows(self.run_uri, "step").get("step"):
                return newest["method"], newest["step"]
        return None

    def _tell_alarms(self, row: dict[str, Any] | None) -> None:
        """Say what the newest check of the features found, each alarm once a method."""
        if row is None:
            return
        for text in row["alarms"]:
            kind = row["method"], text.partition(":")[0].partition(" (")[0]
            if kind not in self._told:
                self._told.add(kind)
                self.console.stage("health", f"{row['method']}, epoch {row['epoch'] + 1}: {text}")
