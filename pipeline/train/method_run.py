"""The training of one method on one rank: the loop of `sdclr` with storage, metrics and resume.

A method whose last checkpoint is committed is not trained again, so a restarted worker group, or a
resumed run, continues where the run stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from pipeline import feed, storage
from pipeline.cluster.ranks import on_first_rank
from pipeline.config import Config
from pipeline.config.stages import Train
from pipeline.dataset.manifest import Manifest
from pipeline.errors import CheckpointError, ClusterError, PipelineError, TrainingError
from pipeline.model import build, checkpoint, roofline
from pipeline.record.gauges import Monitor, run_name
from pipeline.record.metrics import is_later, read_metrics, truncate_metrics
from pipeline.record.rows import Row
from pipeline.train import claim, faults
from pipeline.train.checkpoint_writer import CheckpointWriter
from pipeline.train.health_log import NUM_IMAGES, HealthLog
from pipeline.train.step_log import MethodLog
from pipeline.train.stopping import DriverEndsError, Notices, StopWatch
from sdclr import (
    NonFiniteError,
    StateError,
    StepReport,
    Trainer,
    TrainState,
    capture,
    collective,
    restore,
)
from sdclr.replay import capture_step
from sdclr.replicas import ReplicaError

CHECKPOINT_TIMEOUT_S = 300.0
"""A checkpoint that takes longer to write is an error."""
NOTICE_EVERY_STEPS = 10
"""Steps between two questions whether a node is about to be taken away."""

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """The driver's order to a worker; plain values only.

    Args:
        config: the resolved configuration, as JSON.
        config_hash: ties checkpoints to it.
        run_uri, data_uri: where the run's record and the shards are.
        init_from: URI of the weights to start from, if any.
        claim: token of `run_claim`; empty where nobody else can train in the folder.
        device: `cpu` or `cuda`.
        num_threads: threads of each worker on a CPU.
        is_here: the worker is a thread of the driver, which cannot end before it.
    """

    config: str
    config_hash: str
    run_uri: str
    data_uri: str
    init_from: str | None
    device: str
    num_threads: int
    claim: str = ""
    is_here: bool = False


def is_due(step: int, *, steps_per_epoch: int, num_steps: int, train: Train) -> bool:
    """Return whether a checkpoint is due, by the step alone, so that all ranks agree."""
    epochs_done, rest = divmod(step, steps_per_epoch)
    if rest != 0:
        return False
    lasting = train.keep_every_epochs is not None and epochs_done % train.keep_every_epochs == 0
    return step == num_steps or lasting or epochs_done % train.checkpoint_every_epochs == 0


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
        self._lines, self._from_step = list[Row](), -1
        self.notices = Notices(NOTICE_EVERY_STEPS)
        network = build.new_network(config, method, init_from=job.init_from)
        self._work = roofline.of_training(config, manifest, network, device) if rank == 0 else None
        self.trainer = Trainer(
            network,
            build.training_recipe(config, manifest, method),
            steps_per_epoch=self.plan.num_steps,
            device=device,
            memory=build.loss_memory(config, method, self.plan.num_images),
        )

    def train(self, images: feed.Source, stop: StopWatch | None) -> None:
        """Train from the newest good checkpoint, or from the start, to the end."""
        refused = self._restore()
        batches = images.feed(self.plan, seed=self.config.run.seed, rank=self.rank)
        health = self._on_first_rank(lambda: self._health(images))
        with self._log() as log, self._writer(log) as writer, self._evidence():
            if health is not None and self.trainer.step == 0:
                log.append(health.row(epoch=0))
            if self.rank == 0:
                again = faults.restore_row(
                    self.job.run_uri,
                    self._lines,
                    method=self.method,
                    from_step=self._from_step,
                    refused=refused,
                    num_workers=self.config.train.num_workers,
                )
                kept = [r for r in self._lines if not is_later(r, self.method, self._from_step)]
                log.restore(again, kept)
            for report in self.trainer.run(batches):
                log.step(report)
                row = None
                if health is not None:
                    health.see(report)
                    if health.is_due():
                        log.append(row := health.row(epoch=report.epoch))
                with log.time.spent_on("checkpoint"):
                    self._save(report, writer, stop, None if row is None else row.measures)
        if self.rank == 0:
            self._export()

    def _health(self, images: feed.Source) -> HealthLog:
        some = feed.at_hand(images, NUM_IMAGES)
        return HealthLog(self.config, self.method, self.trainer, some, run_uri=self.job.run_uri)

    def _save(
        self,
        report: StepReport,
        writer: CheckpointWriter,
        stop: StopWatch | None,
        measures: Mapping[str, float | None] | None,
    ) -> None:
        due = is_due(
            report.step,
            steps_per_epoch=self.plan.num_steps,
            num_steps=self.trainer.num_steps,
            train=self.config.train,
        )
        asked = stop is not None and stop.is_asked
        warned = self.notices.is_new(report.step)
        if self.rank == 0 and warned:
            faults.note(self.job.run_uri, "reclaimed")
        # Between the epochs' checkpoints rank 0 saves alone: it has all that there is. A step that
        # was not finite is not saved: the next one ends all ranks together.
        wanted = self.rank == 0 and (due or asked or warned or self._is_time(writer))
        is_sound = not wanted or self.trainer.is_sound
        if wanted and is_sound:
            writer.save(capture(self.trainer), measures)
        if stop is not None and asked and is_sound:
            writer.wait()
            stop.answer(method=self.method, step=report.step)
            if self.job.is_here:
                raise DriverEndsError
        if due:
            self._report(report)

    def _log(self) -> MethodLog:
        return MethodLog(
            self.job.run_uri,
            self.config,
            self.method,
            num_steps=self.trainer.num_steps,
            rank=self.rank,
            work=self._work,
        )

    def _writer(self, log: MethodLog) -> CheckpointWriter:
        t = self.config.train
        lasting = t.keep_every_epochs and t.keep_every_epochs * self.plan.num_steps
        return CheckpointWriter(
            self.folder,
            config_hash=self.job.config_hash,
            keep=t.keep_checkpoints,
            keep_every_steps=lasting,
            keep_best=t.keep_best,
            deadline_s=CHECKPOINT_TIMEOUT_S,
            before_commit=lambda: self._before_commit(log),
            monitor=Monitor(run=run_name(self.job.run_uri), method=self.method),
        )

    def _before_commit(self, log: MethodLog) -> None:
        if self.job.claim:
            claim.refuse_another(self.job.run_uri, self.job.claim)
        log.flush()

    def _restore(self) -> list[str]:
        """Resume from the checkpoint that rank 0 chooses; what it had to skip, in words.

        Each rank looking for itself could find another one, when storage answers one and not the
        other: they would train different steps and hang.
        """
        found = self._on_first_rank(self._choose) or checkpoint.Found()
        step = int(self._all_ranks(int(found.state.numbers["step"]) if found.state else -1)[0])
        error = None
        if step >= 0:
            error = self._load(checkpoint.checkpoint_uri(self.folder, step), found.state)
        if not self._all_ranks(error is None).all():
            raise error or CheckpointError(
                "E-CHECKPOINT-013", "another rank cannot restore", where=self.folder
            )
        # A start from nothing writes the line of step 0 again.
        self._on_first_rank(lambda: self._truncate(step))
        return found.refused

    def _truncate(self, step: int) -> None:
        # Those that are dropped were paid for.
        self._lines, self._from_step = read_metrics(self.job.run_uri), step
        truncate_metrics(self.job.run_uri, self.method, step)

    def _choose(self) -> checkpoint.Found:
        found = checkpoint.latest(self.folder, config_hash=self.job.config_hash)
        if found.state is None and found.refused:
            raise CheckpointError(
                "E-CHECKPOINT-014",
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
            return CheckpointError(
                "E-CHECKPOINT-015", f"it does not fit this run: {error}", where=uri, todo=todo
            )
        except PipelineError as error:
            return error
        return None

    def _on_first_rank(self, work: Callable[[], T]) -> T | None:
        return on_first_rank(
            work, rank=self.rank, device=self.trainer.device, where=self.job.run_uri
        )

    def _all_ranks(self, value: int) -> torch.Tensor:
        return collective.stack_over_ranks(torch.tensor(value, device=self.trainer.device))

    @contextmanager
    def _evidence(self) -> Iterator[None]:
        """Keep a step that was not finite, and name a rank that differs: all ranks do."""
        try:
            yield
        except NonFiniteError as error:
            uri = storage.join(
                self.job.run_uri, "captures", f"{self.method}-step-{self.trainer.step:08d}.pt"
            )
            content = capture_step(
                self.trainer,
                error.batch,
                loss=error.loss,
                grad_norm=error.grad_norm,
                network=build.architecture(self.config, self.method),
            )
            if self.rank == 0:
                storage.write_bytes(uri, content)
            raise TrainingError(
                "E-TRAIN-006",
                str(error),
                where=uri,
                todo="repeat the step with python -m sdclr.replay and that file; then change keys "
                "and start a new run; the last checkpoint is kept",
            ) from error
        except ReplicaError as error:
            raise ClusterError(
                "E-CLUSTER-874",
                f"the ranks no longer hold the same model: {error}",
                where=f"{self.job.run_uri}, {self.method}, step {self.trainer.step}",
                todo="let the workers restart from the last checkpoint; if the same rank fails "
                "again, take its node out of the cluster and test its memory",
            ) from error

    def _is_time(self, writer: CheckpointWriter) -> bool:
        every_s = self.config.train.checkpoint_every_s
        if every_s is None or writer.is_busy:
            return False
        return time.monotonic() - writer.saved_at_s >= every_s

    def _report(self, report: StepReport) -> None:
        """Report to the dashboard; every rank must call it equally often."""
        import ray.train

        ray.train.report({"method": self.method, "step": report.step, "loss": report.loss})

    def _export(self) -> None:
        facts = {
            "architecture": self.config.model.backbone,
            "stem": self.config.model.stem,
            "method": self.method,
            "crop_px": build.crop_px(self.config, self.manifest),
            "step": self.trainer.step,
            "epochs": self.config.train.epochs,
            "config_hash": self.job.config_hash,
            "data_hash": self.manifest.hash,
        }
        uri = storage.join(self.job.run_uri, "models", self.method, "backbone.safetensors")
        build.export_backbone(uri, self.trainer.network.backbone, facts)
