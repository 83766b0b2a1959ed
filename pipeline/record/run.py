"""RUN/run.json: what ran, when, where, on what, and how each stage ended.

The state of a run follows from those of the stages that make it (`MAKING`): running while one runs,
failed or interrupted when the last try of one was, else complete. A ranking, an export or a page
has its own state only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from pipeline.errors import ErrorReport, PipelineError
from pipeline.record.provenance import Git, Hardware
from pipeline.record.schema import Part, Record
from pipeline.redact import redact_tree

Status = Literal["running", "complete", "complete, with alarms", "interrupted", "failed"]
RUNNING: Status = "running"
COMPLETE: Status = "complete"
WITH_ALARMS: Status = "complete, with alarms"
INTERRUPTED: Status = "interrupted"
FAILED: Status = "failed"
# Whose state the run takes; the worst of them counts, in the order of _WORST_FIRST.
MAKING = ("ingest", "train", "tune", "evaluate")
_WORST_FIRST = (RUNNING, FAILED, INTERRUPTED, WITH_ALARMS, COMPLETE)
_INTERRUPTED_KIND = "Interrupted"


class DataRef(Part):
    """The data set that a run reads."""

    uri: str
    manifest_hash: str
    name: str


class Resume(Part):
    """A training that was resumed: when, and by which command."""

    utc: str
    command: str


class RunAlarm(Part):
    """One alarm of the features of a method at the last check of a training.

    Attributes:
        method: whose features.
        name: which alarm, such as `collapse`.
        level: `warning` or `alarm`.
        text: what is wrong.
        change: what helps, in words.
        words: `section.key=value` to try next; empty when there is none.
    """

    method: str
    name: str
    level: Literal["warning", "alarm"]
    text: str
    change: str
    words: tuple[str, ...] = ()


class StageState(Part):
    """The last try of one stage.

    Attributes:
        status: how it ended.
        started_utc: when the try began.
        wall_s: seconds that it took; 0 while it runs.
        command: that began it.
        error: of a try that failed or was interrupted.
        alarms: of a training.
    """

    status: Status
    started_utc: str
    wall_s: float
    command: str
    error: ErrorReport | None = None
    alarms: tuple[RunAlarm, ...] = ()


class Run(Record):
    """The content of run.json."""

    schema_version: Literal[2] = 2
    run: str
    status: Status
    config_hash: str
    command: str
    seed: int
    started_utc: str
    git: Git
    versions: dict[str, str | None]
    hardware: Hardware
    data: DataRef | None
    stages: dict[str, StageState]
    resumes: tuple[Resume, ...]

    @property
    def timings_s(self) -> dict[str, float]:
        """Seconds of the last try of each stage that has ended."""
        return {n: s.wall_s for n, s in self.stages.items() if s.status != RUNNING}

    @property
    def done_s(self) -> dict[str, float]:
        """Seconds of each stage whose last try did its work."""
        states = self.stages.items()
        return {n: s.wall_s for n, s in states if s.status in (COMPLETE, WITH_ALARMS)}

    @property
    def error(self) -> ErrorReport | None:
        """The error of the stage that makes the run failed or interrupted."""
        ends = (self.stages[n] for n in MAKING if n in self.stages)
        return next((end.error for end in ends if end.status == self.status), None)

    @property
    def alarms(self) -> tuple[RunAlarm, ...]:
        """Alarms and warnings of the last training, alarms first."""
        found = [alarm for state in self.stages.values() for alarm in state.alarms]
        return tuple(sorted(found, key=lambda alarm: alarm.level != "alarm"))

    def content(self) -> dict[str, Any]:
        """Return the record as plain values, without secrets."""
        content: dict[str, Any] = redact_tree(self.model_dump())
        if self.data is not None:
            # A place that has a secret's word in it must stay one; credentials are refused there.
            content["data"]["uri"] = self.data.uri
        return content


def status_of(stages: Mapping[str, StageState]) -> Status:
    """Return the state of a run from those of its stages."""
    found = {stages[name].status for name in MAKING if name in stages}
    return next((status for status in _WORST_FIRST if status in found), COMPLETE)


def end_of(error: BaseException | None, alarms: tuple[RunAlarm, ...]) -> Status:
    """Return the state of a stage that ended so."""
    if error is not None:
        return INTERRUPTED if describe(error).kind == _INTERRUPTED_KIND else FAILED
    return WITH_ALARMS if any(alarm.level == "alarm" for alarm in alarms) else COMPLETE


def describe(error: BaseException) -> ErrorReport:
    """Return an exception as the record keeps it, without secrets."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        code = error.code if isinstance(error, SystemExit) else 130
        code = code if isinstance(code, int) else 1
        what = "terminated by a signal" if isinstance(error, SystemExit) else "interrupted"
        todo = "resume with --resume"
        report = ErrorReport(_INTERRUPTED_KIND, "E-STOP-001", what, "", todo, code)
    elif isinstance(error, PipelineError):
        report = ErrorReport.of(error)
    else:
        todo = "this is a bug or a missing check; the traceback is in the console's output"
        what = f"{type(error).__name__}: {error}"
        report = ErrorReport("PipelineError", "E-BUG-001", what, "", todo, 1)
    return ErrorReport(**redact_tree(asdict(report)))
