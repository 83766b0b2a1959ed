"""RUN/metrics.jsonl: one JSON object per line, written during a run, read by the report.

Its kinds of lines: `pipeline.record.rows`. A process killed in the middle of a write leaves a torn
last line: readers skip it, and `truncate_metrics` removes it before a resume appends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from pipeline import storage
from pipeline.errors import DataError
from pipeline.record.rows import ROW, HealthRow, Row, StageRow, StepRow
from pipeline.record.schema import problems

R = TypeVar("R", bound=Row)


def metrics_uri(run_uri: str) -> str:
    """Return where a run's metrics lines are."""
    return storage.join(run_uri, "metrics.jsonl")


def read_metrics(run_uri: str) -> list[Row]:
    """Return the rows of metrics.jsonl in order, checked; empty when the file does not exist.

    Steps rise strictly per method and seed. An unreadable last line is skipped: it was being
    written when the process died.

    Raises:
        DataError: a line is torn, of unknown kind or malformed; the line's number is named.
    """
    uri = metrics_uri(run_uri)
    rows: list[Row] = []
    last_step: dict[tuple[str, int], int] = {}
    for number, _, row in _lines(uri):
        if row is None:
            continue
        if isinstance(row, StepRow):
            key = row.method, row.seed
            if row.step <= last_step.get(key, -1):
                raise _line_error(f"step {row.step} does not rise", f"{uri}, line {number}")
            last_step[key] = row.step
        rows.append(row)
    return rows


def read_rows(run_uri: str, kind: type[R], *, method: str | None = None) -> list[R]:
    """Return the rows of one kind, and of one method where it is given; raises as `read_metrics`.

    Args:
        run_uri: folder of the run.
        kind: class of the rows.
        method: of which method; None = all.
    """
    rows = [row for row in read_metrics(run_uri) if isinstance(row, kind)]
    return [row for row in rows if method in (None, getattr(row, "method", None))]


@dataclass(frozen=True)
class Newest:
    """The last rows of the two kinds that a display follows."""

    step: StepRow | None = None
    health: HealthRow | None = None


def newest_rows(run_uri: str) -> Newest:
    """Return the last whole rows; others are neither parsed nor checked. Cheap enough to poll."""
    uri = metrics_uri(run_uri)
    step: StepRow | None = None
    health: HealthRow | None = None
    if not storage.exists(uri):
        return Newest()
    for raw in reversed(storage.read_bytes(uri).split(b"\n")):
        wanted = (step is None and b'"step"' in raw) or (health is None and b'"health"' in raw)
        if not wanted:
            continue
        try:
            row = ROW.validate_json(raw)
        except ValidationError:  # being written
            continue
        if isinstance(row, StepRow):
            step = step or row
        elif isinstance(row, HealthRow):
            health = health or row
        if step is not None and health is not None:
            break
    return Newest(step, health)


def truncate_metrics(run_uri: str, method: str, step: int) -> int:
    """Drop the rows of `method` after `step` (and a torn last line); return how many.

    For a resume: call it before the log is opened for appending. Kept lines keep their bytes.
    """
    uri = metrics_uri(run_uri)
    lines = list(_lines(uri))
    kept = [raw for _, raw, row in lines if row is not None and not is_later(row, method, step)]
    if len(kept) < len(lines):
        storage.write_bytes(uri, b"".join(raw + b"\n" for raw in kept))
    return len(lines) - len(kept)


def is_later(row: Row, method: str, step: int) -> bool:
    """Return whether a line is one of `method` after `step`."""
    return not isinstance(row, StageRow) and row.method == method and row.step > step


def _lines(uri: str) -> Iterator[tuple[int, bytes, Row | None]]:
    """Yield line number from 1, raw bytes, row or None for a torn last line; skip blank lines."""
    if not storage.exists(uri):
        return
    raws = [(i, raw) for i, raw in enumerate(storage.read_bytes(uri).split(b"\n"), 1) if raw]
    for i, raw in raws:
        row: Row | None = None
        if _is_json(raw):
            try:
                row = ROW.validate_json(raw)
            except ValidationError as error:
                raise _line_error(problems(error), f"{uri}, line {i}") from None
        elif i != raws[-1][0]:
            raise _line_error("the line is torn", f"{uri}, line {i}")
        yield i, raw, row


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def _line_error(what: str, where: str) -> DataError:
    todo = "restore the file from a backup, or delete this line if nothing depends on it"
    return DataError("E-DATA-084", f"metrics.jsonl is broken: {what}", where=where, todo=todo)
