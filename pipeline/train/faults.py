"""The cause of the next restart, from whoever knows it to the worker that counts it.

    RUN/fault.json      written when something is lost; taken by the first worker that resumes

A worker that is lost takes its knowledge along, and Ray Train does not pass the cause on. What says
more about it wins: the neighbours of a dead worker fail as well, with a broken connection.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Literal

import ray
from ray.train import UserCallback

from pipeline import storage
from pipeline.errors import PipelineError, is_broken_connection, root_cause
from pipeline.record.goodput import loss_at
from pipeline.record.rows import Cause, RestoreRow, Row
from pipeline.record.schema import Record

FILE = "fault.json"
OLD_S = 600.0
"""A cause that nobody took for so long is that of no restart any more."""
_WEIGHT: dict[Cause, int] = {"error": 1, "worker": 1, "node": 2}
_KNOWN_BEFORE = 3  # a notice, a controller that failed


class Fault(Record):
    """Something that ends the workers."""

    schema_version: Literal[1] = 1
    cause: Cause
    time_s: float
    dead_nodes: int


def note(run_uri: str, cause: Cause) -> None:
    """Leave a cause, unless a weightier one is there; a storage that fails loses the word only."""
    with suppress(PipelineError):
        known = _read(run_uri)
        if known is None or _weight(cause) > _weight(known.cause):
            fault = Fault(cause=cause, time_s=time.time(), dead_nodes=_dead_nodes())
            fault.write(storage.join(run_uri, FILE))


def take(run_uri: str) -> Cause | None:
    """Return the cause and remove it; None where nobody left one.

    Ray learns seconds after the workers that a node is dead.
    """
    with suppress(PipelineError):
        known = _read(run_uri)
        storage.delete_tree(storage.join(run_uri, FILE))
        if known is not None:
            is_node = known.cause == "worker" and _dead_nodes() > known.dead_nodes
            return "node" if is_node else known.cause
    return None


def restore_row(
    run_uri: str,
    lines: Sequence[Row],
    *,
    method: str,
    from_step: int,
    refused: Sequence[str],
    num_workers: int,
) -> RestoreRow:
    """Return the line of a start or a resume, and take the cause that was left for it.

    Args:
        run_uri: of the training.
        lines: of metrics.jsonl so far, those that the resume drops included: they were paid for.
        method: that begins.
        from_step: of the checkpoint; -1 where none is.
        refused: checkpoints that could not be used.
        num_workers: that train from here on.
    """
    now_s = time.time()
    loss = loss_at(lines, method, step=from_step, now_s=now_s)
    earlier = [row.num_workers for row in lines if isinstance(row, RestoreRow)]
    # Workers without a fault were replaced by more, or by fewer.
    unknown: Cause = "worker" if earlier[-1:] in ([], [None], [num_workers]) else "resize"
    return RestoreRow(
        method=method,
        step=max(0, from_step),
        refused=tuple(refused),
        num_workers=num_workers,
        cause=loss.cause or take(run_uri) or unknown,
        lost_s=loss.lost_s,
        lost_steps=loss.num_steps,
        time_s=now_s,
    )


def _dead_nodes() -> int:
    if not ray.is_initialized():
        return 0
    return sum(not node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]


def _weight(cause: Cause) -> int:
    return _WEIGHT.get(cause, _KNOWN_BEFORE)


def _read(run_uri: str) -> Fault | None:
    uri = storage.join(run_uri, FILE)
    if not storage.exists(uri):
        return None
    fault = Fault.read(uri)
    return fault if time.time() - fault.time_s < OLD_S else None


class FaultNotes(UserCallback):
    """Callback in Ray Train's controller, which sees how each worker ended."""

    def __init__(self, run_uri: str) -> None:
        self._run_uri = run_uri

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Leave the cause of what ended the workers."""
        note(self._run_uri, cause_of(worker_exceptions.values()))


def cause_of(errors: Iterable[BaseException]) -> Cause:
    """Return what ended the workers: a node, a process, or an error of one of them."""
    found = {_cause_of(root_cause(error)) for error in errors}
    kinds: tuple[Cause, ...] = ("reclaimed", "node", "worker", "error")
    # Broken connections alone are those to a worker that was lost.
    return next((kind for kind in kinds if kind in found), "worker")


def _cause_of(error: BaseException) -> Cause | None:
    from ray.exceptions import NodeDiedError, RayActorError

    error = getattr(error, "health_check_failure", error)
    if getattr(error, "preempted", False):
        return "reclaimed"
    if isinstance(error, NodeDiedError):
        return "node"
    if isinstance(error, RayActorError):
        return "node" if "node has died" in str(error) else "worker"
    return None if is_broken_connection(error) else "error"
