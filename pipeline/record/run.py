"""The record of a run: RUN/run.json says what ran, when, where, on what, and how it ended.

The file is rewritten as a whole at every change, so a reader sees either the old or the new one.
No secret reaches it: every string passes `redact.redact` before it is written.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pipeline import storage
from pipeline.errors import ConfigError, DataError, ErrorReport, PipelineError
from pipeline.record import provenance
from pipeline.record.metrics import metrics_uri
from pipeline.redact import redact_tree

SCHEMA_VERSION = 1
RUNNING, COMPLETE, FAILED = "running", "complete", "failed"


class RunRecord:
    """run.json of one run, kept on storage. Every change is written at once.

    Use `create` for a new run, `open` for an existing one.
    """

    def __init__(self, run_uri: str, content: dict[str, Any]) -> None:
        self.run_uri = run_uri
        self._content = content

    @classmethod
    def create(
        cls,
        run_uri: str,
        *,
        name: str,
        config_hash: str,
        seed: int,
        data: Mapping[str, Any] | None = None,
        argv: Sequence[str] | None = None,
    ) -> RunRecord:
        """Start the record of a new run, status `running`.

        Args:
            run_uri: folder of the run.
            name: run name.
            config_hash: hex digest of the validated configuration.
            seed: the run's seed.
            data: {"uri", "manifest_hash", "name"} when known already; see `set_data`.
            argv: the command; None = this process's.

        Raises:
            ConfigError: the run exists already; nothing is overwritten.
        """
        uri = storage.join(run_uri, "run.json")
        if storage.exists(uri):
            raise ConfigError(
                "E-CONFIG-032",
                f"the run {name!r} exists already",
                where=uri,
                todo=f"continue it with --resume {shlex.quote(run_uri)}, "
                "or choose another run.name",
            )
        record = cls(
            run_uri,
            {
                "schema_version": SCHEMA_VERSION,
                "run": name,
                "status": RUNNING,
                "config_hash": config_hash,
                "command": provenance.command_line(argv),
                "seed": seed,
                "started_utc": _now(),
                "git": provenance.git_state(),
                "versions": provenance.versions(),
                "hardware": provenance.hardware(),
                "data": dict(data) if data else None,
                "timings_s": {},
                "resumes": [],
                "error": None,
            },
        )
        record._save()
        return record

    @classmethod
    def open(cls, run_uri: str) -> RunRecord:
        """Load an existing record.

        Raises:
            DataError: there is none, it is not JSON, or it has another schema version.
        """
        return cls(run_uri, read_json(storage.join(run_uri, "run.json")))

    @property
    def content(self) -> dict[str, Any]:
        """A copy of what run.json says."""
        return deepcopy(self._content)

    @property
    def status(self) -> str:
        """`running`, `complete` or `failed`. A killed process leaves `running` behind."""
        return str(self._content["status"])

    def resume(self, argv: Sequence[str] | None = None) -> None:
        """Set the status back to `running`, forget the error, note the time and the command."""
        self._content.update(status=RUNNING, error=None)
        self.note(argv)

    def note(self, argv: Sequence[str] | None = None) -> None:
        """Note the time and the command of a stage that leaves the status as it is."""
        note = {"utc": _now(), "command": provenance.command_line(argv)}
        self._content.setdefault("resumes", []).append(note)
        self._save()

    def set_data(self, *, uri: str, manifest_hash: str, name: str) -> None:
        """Name the data set the run reads."""
        self._content["data"] = {"uri": uri, "manifest_hash": manifest_hash, "name": name}
        self._save()

    def add_timing(self, stage: str, wall_s: float) -> None:
        """Add the seconds of a stage that ran before the record existed."""
        timings: dict[str, float] = self._content["timings_s"]
        timings[stage] = round(timings.get(stage, 0.0) + wall_s, 3)
        self._save()

    def set_gpus(self, names: Sequence[str]) -> None:
        """Name the GPUs that do the work, which the process that made the record may not see."""
        self._content["hardware"]["gpus"] = list(names)
        self._save()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage: a start and an end line in metrics.jsonl and seconds in `timings_s`.

        The seconds of a stage that runs again (a resume) are added up.
        """
        start_s = time.monotonic()
        self._log_stage(name, "start", 0.0)
        try:
            yield
        except BaseException:
            with suppress(PipelineError):  # the first error is the one to report
                self._end_stage(name, time.monotonic() - start_s)
            raise
        self._end_stage(name, time.monotonic() - start_s)

    def complete(self) -> None:
        """Mark a running run as complete."""
        self._finish(COMPLETE, None)

    def fail(self, error: BaseException) -> None:
        """Mark a running run as failed, with what, where, what to do and the exit code."""
        self._finish(FAILED, describe(error))

    def _finish(self, status: str, error: dict[str, Any] | None) -> None:
        if self.status != RUNNING:
            raise ValueError(f"a {self.status} run cannot become {status}; resume it first")
        self._content.update(status=status, error=error)
        self._save()

    def _end_stage(self, name: str, wall_s: float) -> None:
        timings: dict[str, float] = self._content["timings_s"]
        timings[name] = round(timings.get(name, 0.0) + wall_s, 3)
        self._save()
        self._log_stage(name, "end", wall_s)

    def _log_stage(self, name: str, event: str, wall_s: float) -> None:
        # Opened for one line only: during `train` another process writes to this file.
        row = {"kind": "stage", "stage": name, "event": event, "wall_s": round(wall_s, 3)}
        with storage.LineLog(metrics_uri(self.run_uri)) as log:
            log.append({**row, "time_s": time.time()})

    def _save(self) -> None:
        content = redact_tree(self._content)
        if "uri" in (self._content.get("data") or {}):
            # A place that has a secret's word in it must stay one; credentials are refused there.
            content["data"]["uri"] = self._content["data"]["uri"]
        text = json.dumps(content, indent=2, allow_nan=False)
        storage.write_bytes(storage.join(self.run_uri, "run.json"), (text + "\n").encode())


def describe(error: BaseException) -> dict[str, Any]:
    """Return an exception for the record: the fields of `ErrorReport`, no secrets."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        code = error.code if isinstance(error, SystemExit) else 130
        code = code if isinstance(code, int) else 1
        todo = "continue with --resume"
        report = ErrorReport("Interrupted", "E-STOP-001", "Interrupted", "", todo, code)
    elif isinstance(error, PipelineError):
        report = ErrorReport.of(error)
    else:
        todo = "this is a bug or a missing check; the traceback is in the console's output"
        what = f"{type(error).__name__}: {error}"
        report = ErrorReport("PipelineError", "E-BUG-001", what, "", todo, 1)
    tidy: dict[str, Any] = redact_tree(asdict(report))
    return tidy


def read_json(uri: str) -> dict[str, Any]:
    """Read a record file with `schema_version` 1.

    Raises:
        DataError: missing, not a JSON object, or of another version.
    """
    if not storage.exists(uri):
        raise DataError(
            "E-DATA-085", "the record is missing", where=uri, todo="check the run's name and root"
        )
    try:
        content = json.loads(storage.read_bytes(uri))
    except (ValueError, RecursionError) as error:
        raise DataError(
            "E-DATA-086", f"the record is not JSON ({error})", where=uri, todo="restore it"
        ) from None
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            "E-DATA-087",
            f"the record does not have schema_version {SCHEMA_VERSION}",
            where=uri,
            todo="read it with the version of this program that wrote it",
        )
    return content


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
