"""Progress on the console while workers train: the newest lines of the record."""

from __future__ import annotations

import time
from contextlib import suppress

from pipeline.config import Config
from pipeline.console import Console, counted
from pipeline.errors import PipelineError
from pipeline.record.metrics import newest_rows, read_rows
from pipeline.record.rows import HealthRow, RestoreRow, StepRow


class ProgressView:
    """The newest metrics line as progress over all methods of the run."""

    def __init__(self, config: Config, run_uri: str, console: Console) -> None:
        self.config, self.run_uri, self.console = config, run_uri, console
        self._shown: tuple[str, int] | None = None
        with suppress(PipelineError):  # the newest line of a resumed run is no progress of this one
            self._shown = _place(newest_rows(run_uri).step)
        self.moved_at_s, self.has_moved = time.monotonic(), False
        self._reported: set[tuple[str, str]] = set()
        self._restored_after_s = time.time()

    def refresh(self) -> None:
        """Show the line, unless it was shown already."""
        newest = newest_rows(self.run_uri)
        self._show_alarms(newest.health)
        row = newest.step
        if row is None or self._shown == _place(row):
            return
        if not self.has_moved:
            self.show_restores()
        self._shown = _place(row)
        self.moved_at_s, self.has_moved = time.monotonic(), True
        methods, batch = self.config.train.methods, self.config.train.global_batch
        steps_before = methods.index(row.method) * row.num_steps
        loss = "not finite" if row.loss is None else f"{row.loss:.3f}"
        self.console.progress(
            "train",
            (steps_before + row.step) * batch,
            len(methods) * row.num_steps * batch,
            per_s=row.images_per_s,
            extra=f"{row.method}  epoch {row.epoch + 1}/{self.config.train.epochs}  "
            f"step {row.step}/{row.num_steps}  loss {loss}",
        )

    def show_restores(self) -> None:
        """Say from which steps workers resumed since the last call, and what they skipped."""
        rows = read_rows(self.run_uri, RestoreRow)
        for row in (row for row in rows if row.time_s >= self._restored_after_s):
            for sentence in row.refused:
                self.console.stage("train", f"{row.method}: skipped {sentence}")
            if row.step:
                text = (
                    "" if row.num_workers is None else f" on {counted(row.num_workers, 'worker')}"
                )
                self.console.stage("train", f"{row.method}: resumes from step {row.step}{text}")
            self._restored_after_s = max(self._restored_after_s, row.time_s + 1e-6)

    def _show_alarms(self, row: HealthRow | None) -> None:
        """Say what the newest check of the features found, each alarm once a method."""
        if row is None:
            return
        for alarm in row.alarms:
            if (row.method, alarm.name) not in self._reported:
                self._reported.add((row.method, alarm.name))
                self.console.stage(
                    "health",
                    f"{alarm.level}: {row.method}, epoch {row.epoch + 1}: {alarm.text}; "
                    f"{alarm.change}",
                )


def _place(row: StepRow | None) -> tuple[str, int] | None:
    return None if row is None else (row.method, row.step)
