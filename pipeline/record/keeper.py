"""The one writer of RUN/run.json.

The file is rewritten as a whole at every change, so a reader sees either the old or the new one.
It is read anew before each change: another process may keep another stage of the same run.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pipeline import storage
from pipeline.errors import ConfigError, PipelineError
from pipeline.record import provenance
from pipeline.record.metrics import metrics_uri
from pipeline.record.rows import StageRow
from pipeline.record.run import (
    MAKING,
    RUNNING,
    DataRef,
    Resume,
    Run,
    RunAlarm,
    StageState,
    describe,
    end_of,
    status_of,
)

FILE = "run.json"


def read_run(run_uri: str) -> Run:
    """Return what RUN/run.json says; raises as `Record.read`."""
    return Run.read(storage.join(run_uri, FILE))


@dataclass
class StageEnd:
    """End of a stage, for the record."""

    alarms: tuple[RunAlarm, ...] = ()


class RunRecord:
    """run.json of one run, kept on storage. Every change is written at once.

    Use `create` for a new run, `open` for an existing one. Between `create` or `resume` and
    `finish` or `fail` the run is `running`, whatever its stages are.
    """

    def __init__(self, run_uri: str, run: Run, *, is_open: bool = False) -> None:
        self.run_uri = run_uri
        self._run, self._is_open = run, is_open
        self._has_error = False  # of a stage of this process

    @classmethod
    def create(
        cls,
        run_uri: str,
        *,
        name: str,
        config_hash: str,
        seed: int,
        argv: Sequence[str] | None = None,
    ) -> RunRecord:
        """Start the record of a new run, status `running`.

        Args:
            run_uri: folder of the run.
            name: run name.
            config_hash: hex digest of the validated configuration.
            seed: the run's seed.
            argv: the command; None = this process's.

        Raises:
            ConfigError: the run exists already; nothing is overwritten.
        """
        uri = storage.join(run_uri, FILE)
        if storage.exists(uri):
            raise ConfigError(
                "E-CONFIG-032",
                f"the run {name!r} exists already",
                where=uri,
                todo=f"resume it with --resume {shlex.quote(run_uri)}, or choose another run.name",
            )
        run = Run(
            run=name,
            status=RUNNING,
            config_hash=config_hash,
            command=provenance.command_line(argv),
            seed=seed,
            started_utc=_now(),
            git=provenance.git_state(),
            versions=provenance.versions(),
            hardware=provenance.hardware(),
            data=None,
            stages={},
            resumes=(),
        )
        record = cls(run_uri, run, is_open=True)
        record._write(run)
        return record

    @classmethod
    def open(cls, run_uri: str) -> RunRecord:
        """Return the keeper of an existing record; raises as `read_run`."""
        return cls(run_uri, read_run(run_uri))

    @property
    def run(self) -> Run:
        """What run.json said after the last change of this process."""
        return self._run

    def resume(self, argv: Sequence[str] | None = None) -> None:
        """Set the status back to `running`, and note the time and the command."""
        self._is_open = True
        note = Resume(utc=_now(), command=provenance.command_line(argv))
        run = self._newest()
        self._write(run.model_copy(update={"status": RUNNING, "resumes": (*run.resumes, note)}))

    def set_data(self, *, uri: str, manifest_hash: str, name: str) -> None:
        """Name the data set the run reads."""
        data = DataRef(uri=uri, manifest_hash=manifest_hash, name=name)
        self._write(self._newest().model_copy(update={"data": data}))

    def set_gpus(self, names: Sequence[str]) -> None:
        """Name the GPUs that do the work, which the process that made the record may not see."""
        run = self._newest()
        hardware = run.hardware.model_copy(update={"gpus": tuple(names)})
        self._write(run.model_copy(update={"hardware": hardware}))

    def add_stage(self, name: str, wall_s: float) -> None:
        """Add a stage that was complete before the record existed."""
        self._end(name, _now(), wall_s)

    @contextmanager
    def stage(self, name: str) -> Iterator[StageEnd]:
        """Keep the state of a stage: running, then how it ended.

        metrics.jsonl gets a line at the start and at the end. Time and state are those of the last
        try.
        """
        started_utc, start_s, end = _now(), time.monotonic(), StageEnd()
        self._set(name, self._state(RUNNING, started_utc, 0.0))
        self._log_stage(name, "start", 0.0)
        try:
            yield end
        except BaseException as error:
            self._has_error = True
            with suppress(PipelineError):  # the first error is the one to report
                self._end(name, started_utc, time.monotonic() - start_s, error=error)
            raise
        self._end(name, started_utc, time.monotonic() - start_s, alarms=end.alarms)

    def finish(self) -> None:
        """End the run as its stages did."""
        self._is_open = False
        run = self._newest()
        self._write(run.model_copy(update={"status": status_of(run.stages)}))

    def fail(self, error: BaseException, *, stage: str) -> None:
        """End an open run with an error; when no stage has it, `stage` gets it."""
        if not self._is_open:
            return
        if not self._has_error:
            self._set(stage, self._state(end_of(error, ()), _now(), 0.0, error))
        self.finish()

    def _end(
        self,
        name: str,
        started_utc: str,
        wall_s: float,
        *,
        error: BaseException | None = None,
        alarms: tuple[RunAlarm, ...] = (),
    ) -> None:
        status = end_of(error, alarms)
        self._set(name, self._state(status, started_utc, round(wall_s, 3), error, alarms))
        self._log_stage(name, "end", wall_s)

    def _state(
        self,
        status: str,
        started_utc: str,
        wall_s: float,
        error: BaseException | None = None,
        alarms: tuple[RunAlarm, ...] = (),
    ) -> StageState:
        return StageState.model_validate(
            {
                "status": status,
                "started_utc": started_utc,
                "wall_s": wall_s,
                "command": provenance.command_line(),
                "error": None if error is None else describe(error),
                "alarms": alarms,
            }
        )

    def _set(self, name: str, state: StageState) -> None:
        run = self._newest()
        stages = {**run.stages, name: state}
        # A page of a run that failed before its first stage leaves it failed.
        status = status_of(stages) if name in MAKING and not self._is_open else run.status
        self._write(run.model_copy(update={"stages": stages, "status": status}))

    def _log_stage(self, name: str, event: Literal["start", "end"], wall_s: float) -> None:
        # Opened for one line only: during `train` another process writes to this file.
        row = StageRow(stage=name, event=event, wall_s=round(wall_s, 3), time_s=time.time())
        with storage.LineLog(metrics_uri(self.run_uri)) as log:
            log.append(row.model_dump())

    def _newest(self) -> Run:
        return read_run(self.run_uri)

    def _write(self, run: Run) -> None:
        run.write(storage.join(self.run_uri, FILE))
        self._run = run


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
