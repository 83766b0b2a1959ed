"""The metrics of one method in training: rank 0 writes lines, every rank its waiting time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from pipeline import storage
from pipeline.config import Config
from pipeline.model.roofline import Work
from pipeline.record.gauges import Monitor, run_name
from pipeline.record.goodput import Goodput, goodput
from pipeline.record.metrics import metrics_uri
from pipeline.record.rows import HealthRow, MaskRow, RestoreRow, Row, StepRow
from pipeline.train.step_time import Span, StepTime
from sdclr import StepReport
from sdclr.transfer import HostCopy

SLOW_S = 20.0
"""There is a line after so long, however few steps were made: the console shows it."""
SHORT_STEPS = 200
"""A run of up to so many steps has a line for each."""


class MethodLog:
    """Step counter that writes lines; use as a context manager.

    Args:
        run_uri: the run with the metrics.jsonl.
        config: how often, and what a line repeats.
        method: of the lines.
        num_steps: of the whole run of the method.
        rank: of this worker.
        work: of one view of an image, on this device; None where it is unknown.

    Attributes:
        time: where the time since the last line went.
    """

    def __init__(
        self,
        run_uri: str,
        config: Config,
        method: str,
        *,
        num_steps: int,
        rank: int,
        work: Work | None = None,
    ) -> None:
        self._config, self._method, self._num_steps = config, method, num_steps
        self._rank, self._monitor = rank, Monitor(run=run_name(run_uri), method=method)
        self._every_steps = config.train.log_every_steps or (1 if num_steps <= SHORT_STEPS else 10)
        self._log = storage.LineLog(metrics_uri(run_uri)) if rank == 0 else None
        self._work, self.time = work, StepTime()
        self._goodput: tuple[Goodput, float] | None = None
        # Lines whose figures are still on their way from a GPU, in order.
        self._held: deque[tuple[HostCopy, Callable[[], Row]]] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> MethodLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._write_held(wait=True)
        if self._log is not None:
            self._log.close()

    def append(self, row: Row) -> None:
        """Write a line, and hand its numbers to the dashboard; lines before it come first."""
        self._write_held(wait=True)
        if isinstance(row, HealthRow):
            self.time.spend("health", row.wall_s)
        self._write(row)

    def _write_held(self, *, wait: bool) -> None:
        """Write the lines that can be written, or wait for the figures of all."""
        with self._lock:
            while self._held and (wait or self._held[0][0].is_here):
                self._write(self._held.popleft()[1]())

    def _write(self, row: Row) -> None:
        if self._log is None:
            return
        self._log.append(row.model_dump())
        if isinstance(row, HealthRow):
            self._monitor.health(row.measures)
        elif isinstance(row, MaskRow):
            self._monitor.mask(row.kept_frac)
        elif isinstance(row, StepRow):
            self._monitor.step(row)
            if self._goodput is not None:
                found, since_s = self._goodput
                self._monitor.set("sdclr_goodput", found.after(row.time_s - since_s).frac)
        elif isinstance(row, RestoreRow):
            if row.cause != "start":
                self._monitor.add("sdclr_restarts", cause=row.cause or "unknown")
            self._monitor.add("sdclr_checkpoints_refused", len(row.refused))

    def flush(self) -> None:
        """Publish the lines so far: a checkpoint must not be ahead of its metrics."""
        self._write_held(wait=True)
        if self._log is not None:
            self._log.flush()

    def restore(self, row: RestoreRow, rows: Sequence[Row]) -> None:
        """Write where the method begins or resumes; `rows` are the lines before it that count."""
        self.append(row)
        found = goodput([*rows, row])
        if self._log is not None and found is not None:
            self._goodput = found, row.time_s
            for cause, seconds in found.lost_s.items():
                self._monitor.set("sdclr_lost_s", seconds, cause=cause)

    def step(self, report: StepReport) -> None:
        """Count a step, and write a line if one is due, as soon as its figures are there."""
        self.time.see(report)
        time_s = time.time()
        if report.kept_frac is not None:
            self._held.append((report.figures, lambda: self._mask_row(report, time_s)))
        is_due = report.step % self._every_steps == 0 or report.step == self._num_steps
        if is_due or self.time.age_s >= SLOW_S:
            span = self.time.span()
            self._monitor.set("sdclr_data_wait_frac", span.wait_frac, rank=str(self._rank))
            if span.work_s is not None:
                self._monitor.set("sdclr_work_s", span.work_s, rank=str(self._rank))
            self._held.append((report.figures, lambda: self._step_row(report, span, time_s)))
            if self._log is not None:
                self._monitor.add("sdclr_images", span.num_images)
        self._write_held(wait=False)

    def _mask_row(self, report: StepReport, time_s: float) -> MaskRow:
        return MaskRow(
            method=self._method,
            epoch=report.epoch,
            step=report.step,
            prune_ratio=self._config.sdclr.prune_ratio,
            kept_frac=dict(report.kept_frac or {}),
            time_s=time_s,
        )

    def _step_row(self, report: StepReport, span: Span, time_s: float) -> StepRow:
        work, views_per_s = self._work, 2 * span.images_per_s
        views_of_one_per_s = views_per_s / self._config.train.num_workers
        return StepRow(
            method=self._method,
            seed=self._config.run.seed,
            epoch=report.epoch,
            step=report.step,
            num_steps=self._num_steps,
            loss=report.loss,
            lr=report.lr,
            temperature=report.temperature,
            grad_norm=report.grad_norm,
            images_per_s=span.images_per_s,
            data_wait_frac=span.wait_frac,
            parts_s=span.parts_s,
            flops_per_s=None if work is None else views_per_s * work.flops,
            roofline_frac=None if work is None else views_of_one_per_s * work.bound_s,
            time_s=time_s,
        )
