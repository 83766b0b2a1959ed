"""RUN/metrics.jsonl: one JSON object per line, written during a run, read by the report.

    {"kind": "step", ...}    loss, learning rate, speed: every few steps of one method
    {"kind": "mask", ...}    kept fraction of each layer: at the start of each epoch, SDCLR only
    {"kind": "health", ...}  label-free measures: before training and every few epochs
    {"kind": "stage", ...}   start and end of a stage

A process killed in the middle of a write leaves a torn last line: readers skip it, and
`truncate_metrics` removes it before a resume appends.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from pipeline import storage
from pipeline.errors import DataError

_INT, _FLOAT, _STR, _DICT, _LIST = (int,), (int, float), (str,), (dict,), (list,)
_SCHEMA: dict[str, dict[str, tuple[type, ...]]] = {
    "step": {
        "stage": _STR, "method": _STR, "seed": _INT, "epoch": _INT, "step": _INT,
        "num_steps": _INT, "loss": _FLOAT, "lr": _FLOAT, "temperature": _FLOAT,
        "grad_norm": _FLOAT, "images_per_s": _FLOAT, "data_wait_frac": _FLOAT, "time_s": _FLOAT,
    },
    "mask": {
        "stage": _STR, "method": _STR, "epoch": _INT, "step": _INT, "prune_ratio": _FLOAT,
        "kept_frac": _DICT, "time_s": _FLOAT,
    },
    "health": {
        "stage": _STR, "method": _STR, "seed": _INT, "epoch": _INT, "step": _INT,
        "num_images": _INT, "measures": _DICT, "alarms": _LIST, "wall_s": _FLOAT, "time_s": _FLOAT,
    },
    "stage": {"stage": _STR, "event": _STR, "wall_s": _FLOAT, "time_s": _FLOAT},
}  # fmt: skip
# NaN and infinities are written as null: the last thing that a diverged run has to say.
_MAY_BE_NULL = frozenset({"loss", "grad_norm"})


def metrics_uri(run_uri: str) -> str:
    """Return the URI of a run's metrics lines."""
    return storage.join(run_uri, "metrics.jsonl")


def read_metrics(
    run_uri: str, *, kind: str | None = None, method: str | None = None
) -> list[dict[str, Any]]:
    """Read and check the rows of metrics.jsonl in order; empty without the file.

    Rows of a kind unknown here, and keys unknown here, pass unchecked. Steps rise strictly per
    method and seed. An unreadable last line is skipped: it was being written when the process died.

    Args:
        run_uri: folder of the run.
        kind: keep only these rows: `step`, `mask`, `health` or `stage`.
        method: keep only rows of this method.

    Raises:
        DataError: a line is torn or breaks the schema; the line's number is named.
    """
    uri = metrics_uri(run_uri)
    rows: list[dict[str, Any]] = []
    last_step: dict[tuple[str, int], int] = {}
    for number, _, row in _lines(uri):
        if row is None:
            continue
        _check(row, f"{uri}, line {number}")
        if row["kind"] == "step":
            key = row["method"], row["seed"]
            if row["step"] <= last_step.get(key, -1):
                raise _line_error(f"step {row['step']} does not rise", f"{uri}, line {number}")
            last_step[key] = row["step"]
        if kind in (None, row["kind"]) and method in (None, row.get("method")):
            rows.append(row)
    return rows


def newest_rows(run_uri: str, *kinds: str) -> dict[str, dict[str, Any]]:
    """Return the last whole row of each kind, unchecked. Cheap enough to poll."""
    uri = metrics_uri(run_uri)
    found: dict[str, dict[str, Any]] = {}
    if not storage.exists(uri):
        return found
    for raw in reversed(storage.read_bytes(uri).split(b"\n")):
        wanted = [k for k in kinds if k not in found and f'"{k}"'.encode() in raw]
        if wanted and raw.endswith(b"}"):
            try:
                row = json.loads(raw)
            except (ValueError, RecursionError):  # torn behind a brace
                continue
            if row.get("kind") in wanted:
                found[row["kind"]] = row
        if len(found) == len(kinds):
            break
    return found


def truncate_metrics(run_uri: str, method: str, step: int) -> int:
    """Drop the rows of `method` after `step` (and a torn last line); returns how many.

    For a resume: call it before the log is opened for appending. Kept lines keep their bytes.
    """
    uri = metrics_uri(run_uri)
    lines = list(_lines(uri))
    kept = [
        raw
        for _, raw, row in lines
        if row is not None and not (row.get("method") == method and row.get("step", step) > step)
    ]
    if len(kept) < len(lines):
        storage.write_bytes(uri, b"".join(raw + b"\n" for raw in kept))
    return len(lines) - len(kept)


def _lines(uri: str) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """Yield (line number from 1, bytes, object or None for a torn last line); skip blanks."""
    if not storage.exists(uri):
        return
    raws = [(i, raw) for i, raw in enumerate(storage.read_bytes(uri).split(b"\n"), 1) if raw]
    for i, raw in raws:
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError):
            if i != raws[-1][0]:
                raise _line_error("the line is torn", f"{uri}, line {i}") from None
            row = None
        if row is not None and not isinstance(row, dict):
            raise _line_error("the line is not an object", f"{uri}, line {i}")
        yield i, raw, row


def _check(row: dict[str, Any], where: str) -> None:
    if not isinstance(row.get("kind"), str):
        raise _line_error("the row has no kind", where)
    for key, types in _SCHEMA.get(row["kind"], {}).items():
        value = row.get(key)
        if value is None and key in row and key in _MAY_BE_NULL:
            continue
        if not isinstance(value, types) or isinstance(value, bool):
            raise _line_error(f"{key} is {value!r}, not a {types[-1].__name__}", where)
        if isinstance(value, float) and not math.isfinite(value):
            raise _line_error(f"{key} is {value}", where)


def _line_error(what: str, where: str) -> DataError:
    todo = "restore the file from a copy, or delete this line if nothing depends on it"
    return DataError("E-DATA-084", f"metrics.jsonl is broken: {what}", where=where, todo=todo)
