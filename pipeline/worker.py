"""What runs in each Ray Train worker: the loop of `sdclr` with storage, metrics and resume.

A method whose last checkpoint is committed is not trained again, so a restarted worker group, or a
resumed run, goes on where the run stopped.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import Any

import torch

from pipeline import checkpoint, feed, models, storage
from pipeline.config import Config
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PipelineError,
    TrainingError,
)
from pipeline.health_log import HealthLog
from pipeline.metrics import metrics_uri, truncate_metrics
from sdclr import (
    ImageSet,
    NonFiniteError,
    StarvedLayerError,
    StateError,
    StepReport,
    Trainer,
    TrainState,
    capture,
    collective,
    restore,
)


@dataclass(frozen=True)
class Job:
    """What the driver tells a worker; plain values only.

    Args:
        config: the resolved configuration, as JSON.
        config_hash: ties checkpoints to it.
        run_uri, data_uri: where the run's record and the shards are.
        init_from: URI of the weights to start from, if any.
        device: `cpu` or `cuda`.
        num_threads: threads of each worker on a CPU.
    """

    config: str
    config_hash: str
    run_uri: str
    data_uri: str
    init_from: str | None
    device: str
    num_threads: int


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Train all methods of the run; every rank calls it.

    Returns:
        {"error": None}, or what, where and todo of a failure that a restart cannot cure. Other
        failures are raised, so that Ray Train restarts the workers.
    """
    import ray.train
    import ray.train.torch

    work = Job(**job)
    config = Config.model_validate_json(work.config)
    torch.set_num_threads(work.num_threads)
    manifest = read_manifest(work.data_uri)
    rank = ray.train.get_context().get_world_rank()
    device = ray.train.torch.get_device() if work.device == "cuda" else torch.device("cpu")
    shard = ray.train.get_dataset_shard("pretrain")
    try:
        images = feed.collect(
            shard.iter_batches(batch_size=None, batch_format="numpy"), config, manifest
        )
        for method in config.train.methods:
            MethodRun(work, config, manifest, method, rank, device).train(images)
            gc.collect()  # a model and its gradients refer to each other
    except (NonFiniteError, StarvedLayerError, ConfigError, DataError, CheckpointError) as error:
        # The same on every rank and on every try: tell the driver instead of restarting.
        return {"error": _told(error, work.run_uri)}
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"error": None, "gpu": gpu}


class MethodRun:
    """The training of one method on one rank."""

    def __init__(
        self,
        job: Job,
        config: Config,
        manifest: Manifest,
        method: str,
        rank: int,
        device: torch.device,
    ) -> None:
        self.job, self.config, self.manifest = job, config, manifest
        self.method, self.rank = method, rank
        self.plan = feed.epoch_plan(config, manifest)
        self.folder = checkpoint.checkpoints_uri(job.run_uri, method)
        network = models.new_network(config, method, init_from=job.init_from)
        self.trainer = Trainer(
            network,
            models.training_recipe(config, manifest, method),
            steps_per_epoch=self.plan.num_steps,
            device=device,
        )

    def train(self, images: ImageSet) -> None:
        """From the newest good checkpoint, or from the start, to the end."""
        refused = self._restore()
        batches = images.feed(self.plan, seed=self.config.run.seed, rank=self.rank)
        health = None
        if self.rank == 0:
            health = HealthLog(
                self.config, self.method, self.trainer, images, run_uri=self.job.run_uri
            )
        with MethodLog(self) as log:
            log.fallback(refused)
            if health is not None and self.trainer.step == 0:
                log.append(health.row(epoch=0))
            for report in self.trainer.run(batches):
                log.step(report)
                if health is not None and health.is_due():
                    log.append(health.row(epoch=report.epoch))
                if self._is_due(report):
                    log.flush()
                    self._save(report)
        if self.rank == 0:
            self._export()

    def _restore(self) -> list[str]:
        """Go on from the checkpoint that rank 0 chooses; what it had to pass over, in words.

        Each rank looking for itself could find another one, when storage answers one and not the
        other: they would train different steps and hang.
        """
        found, error = checkpoint.Found(), None
        if self.rank == 0:
            try:
                found = self._choose()
            except PipelineError as caught:
                error = caught
        mine = -2 if error else int(found.state.numbers["step"]) if found.state else -1
        step = int(self._all_ranks(mine)[0])
        if step == -2:
            raise error or CheckpointError("rank 0 cannot restore a checkpoint", where=self.folder)
        if step >= 0:
            error = self._load(checkpoint.checkpoint_uri(self.folder, step), found.state)
        if not self._all_ranks(error is None).all():
            raise error or CheckpointError("another rank cannot restore", where=self.folder)
        if self.rank == 0:
            # A start from nothing writes the line of step 0 again.
            truncate_metrics(self.job.run_uri, self.method, step)
        return found.refused

    def _choose(self) -> checkpoint.Found:
        found = checkpoint.latest(self.folder, config_hash=self.job.config_hash)
        if found.state is None and found.refused:
            raise CheckpointError(
                "none of the run's checkpoints can be used:\n" + "\n".join(found.refused),
                where=self.folder,
                todo="restore one from a copy, or delete the folder to train from the start",
            )
        return found

    def _load(self, uri: str, state: TrainState | None) -> PipelineError | None:
        try:
            state = state or checkpoint.load(uri, config_hash=self.job.config_hash)
            restore(self.trainer, state)
        except StateError as error:
            todo = "start a new run"
            return CheckpointError(f"it does not fit this run: {error}", where=uri, todo=todo)
        except PipelineError as error:
            return error
        return None

    def _all_ranks(self, value: int) -> torch.Tensor:
        return collective.stack_over_ranks(torch.tensor(value, device=self.trainer.device))

    def _is_due(self, report: StepReport) -> bool:
        epochs_done, rest = divmod(report.step, self.plan.num_steps)
        every = self.config.train.checkpoint_every_epochs
        is_last = report.step == self.trainer.num_steps
        return rest == 0 and (epochs_done % every == 0 or is_last)

    def _save(self, report: StepReport) -> None:
        import ray.train

        if self.rank == 0:
            state = capture(self.trainer)
            checkpoint.save(self.folder, state, config_hash=self.job.config_hash)
            keep = self.config.train.keep_checkpoints
            checkpoint.retain(self.folder, keep, newest_step=report.step)
        # For the dashboard; it also keeps the ranks together.
        ray.train.report({"method": self.method, "step": report.step, "loss": report.loss})

    def _export(self) -> None:
        facts = {
            "architecture": self.config.model.backbone,
            "stem": self.config.model.stem,
            "method": self.method,
            "step": self.trainer.step,
            "config_hash": self.job.config_hash,
            "data_hash": self.manifest.hash,
        }
        uri = storage.join(self.job.run_uri, "models", self.method, "backbone.safetensors")
        models.export_backbone(uri, self.trainer.network.backbone, facts)


class MethodLog:
    """The metrics lines of one method; rank 0 writes, the others do nothing."""

    def __init__(self, run: MethodRun) -> None:
        self.run = run
        uri = metrics_uri(run.job.run_uri)
        self._log = storage.LineLog(uri) if run.rank == 0 else None
        self._since_s = time.monotonic()
        self._num_images, self._wait_s = 0, 0.0

    def __enter__(self) -> MethodLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            self._log.close()

    def append(self, row: dict[str, Any]) -> None:
        """Write a line of another kind."""
        if self._log is not None:
            self._log.append(row)

    def flush(self) -> None:
        """Publish the lines so far: a checkpoint must not be ahead of its metrics."""
        if self._log is not None:
            self._log.flush()

    def fallback(self, refused: list[str]) -> None:
        """Say which checkpoints were passed over."""
        if self._log is not None and refused:
            row = {"kind": "fallback", "stage": "train", "method": self.run.method}
            self._log.append({**row, "refused": refused, "time_s": time.time()})

    def step(self, report: StepReport) -> None:
        """Count a step, and write a line if one is due."""
        if self._log is None:
            return
        common = {"stage": "train", "method": self.run.method, "epoch": report.epoch}
        common |= {"step": report.step, "time_s": time.time()}
        if report.kept_frac is not None:
            ratio = self.run.config.sdclr.prune_ratio
            facts = {"prune_ratio": ratio, "kept_frac": report.kept_frac}
            self._log.append({"kind": "mask", **common, **facts})
        self._num_images += report.num_images
        self._wait_s += report.wait_s
        trainer = self.run.trainer
        if report.step % self.run.config.train.log_every_steps and report.step < trainer.num_steps:
            return
        now_s = time.monotonic()
        elapsed_s = max(now_s - self._since_s, 1e-9)
        row = {
            "kind": "step",
            **common,
            "seed": self.run.config.run.seed,
            "num_steps": trainer.num_steps,
            "loss": report.loss,
            "lr": report.lr,
            "temperature": report.temperature,
            "grad_norm": report.grad_norm,
            "images_per_s": self._num_images / elapsed_s,
            "data_wait_frac": min(1.0, self._wait_s / elapsed_s),
        }
        self._log.append(row)
        self._since_s, self._num_images, self._wait_s = now_s, 0, 0.0


def _told(error: Exception, run_uri: str) -> dict[str, Any]:
    if not isinstance(error, PipelineError):
        error = TrainingError(
            str(error),
            where=run_uri,
            todo="change the keys named above and start a new run; the last checkpoint is kept",
        )
    return {
        "kind": type(error).__name__,
        "what": error.what,
        "where": error.where,
        "todo": error.todo,
    }
