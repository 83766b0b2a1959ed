"""Goodput: the share of a training's wall time that went into steps which count.

The rest was lost: from the last line that still counts to the moment at which steps are made again,
by cause. Steps that are made twice are in it, since their first lines no longer count. The pause
before a stopped run is resumed is in neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.record.rows import RestoreRow, Row, StageRow


@dataclass(frozen=True)
class Goodput:
    """Wall time of a training, and what was lost of it.

    Attributes:
        wall_s: from the start of the first try to the last line, without pauses between tries.
        lost_s: cause -> seconds.
        restarts: cause -> how often; starts are not counted.
    """

    wall_s: float
    lost_s: Mapping[str, float]
    restarts: Mapping[str, int]

    @property
    def frac(self) -> float:
        """Useful share of the wall time, 0 to 1."""
        return 1 - min(1.0, sum(self.lost_s.values()) / max(self.wall_s, 1e-9))

    def after(self, seconds: float) -> Goodput:
        """Return what it is after so many seconds in which nothing was lost."""
        return replace(self, wall_s=self.wall_s + seconds)


def goodput(rows: Sequence[Row], *, method: str | None = None) -> Goodput | None:
    """Return what the lines of metrics.jsonl say; None before a training has begun.

    Args:
        rows: all of a run, in order.
        method: count the losses of one method alone; the wall time is that of the run.
    """
    starts = [row.time_s for row in rows if _is_start(row)]
    if not starts:
        return None
    times = [row.time_s for row in rows if row.stage == "train"]
    wall_s = 0.0
    for start_s, next_s in zip(starts, [*starts[1:], float("inf")], strict=True):
        wall_s += max(t for t in times if start_s <= t < next_s) - start_s
    lost, restarts = Counter[str](), Counter[str]()
    for row in rows:
        if isinstance(row, RestoreRow) and row.cause and method in (None, row.method):
            lost[row.cause] += row.lost_s  # type: ignore[assignment]
            restarts[row.cause] += row.cause != "start"
    return Goodput(wall_s, lost, +restarts)


@dataclass(frozen=True)
class Loss:
    """Cost of a start or a restart.

    Attributes:
        cause: start, resume, or None for a restart by Ray Train, which has a fault for cause.
        lost_s: seconds.
        num_steps: steps that are made again.
    """

    cause: Literal["start", "resume"] | None
    lost_s: float
    num_steps: int


def loss_at(rows: Sequence[Row], method: str, *, step: int, now_s: float) -> Loss:
    """Return what is lost when a method begins, or resumes, at a step.

    Args:
        rows: all lines so far, also those that the resume drops.
        method: that begins.
        step: steps that are done; -1 where no checkpoint is, and every line of it is dropped.
        now_s: when steps are made again.
    """
    own = [row for row in rows if not isinstance(row, StageRow) and row.method == method]
    started_s = max((row.time_s for row in rows if _is_start(row)), default=now_s)
    others = [
        row.time_s
        for row in rows
        if row.stage == "train" and (isinstance(row, StageRow) or row.method != method)
    ]
    began_s = max([started_s, *others])
    if not own:
        return Loss("start", now_s - began_s, 0)
    newest_s = max(row.time_s for row in own)
    kept_s = max((row.time_s for row in own if row.step <= step), default=None)
    num_steps = max(row.step for row in own) - max(step, 0)
    if started_s <= newest_s:
        return Loss(None, now_s - (began_s if kept_s is None else kept_s), num_steps)
    again_s = 0.0 if kept_s is None else newest_s - kept_s
    return Loss("resume", now_s - started_s + again_s, num_steps)


def _is_start(row: Row) -> bool:
    return isinstance(row, StageRow) and row.stage == "train" and row.event == "start"
