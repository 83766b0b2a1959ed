"""Retry of work that failed because Ray lost a worker, actor, node or object.

Ray repeats plain tasks by itself, and Ray Data replaces an actor that dies at work. It gives up at
once when an actor is lost before it has started, as one on a node that has just died is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pipeline.errors import ClusterError

_TRIES = 3
# Ray needs a moment to notice that the node of a lost actor is gone as well.
_PAUSE_S = 3.0
_T = TypeVar("_T")


def retry_lost_work(work: Callable[[], _T], *, say: Callable[[str], None]) -> _T:
    """Run `work`, up to 3 times when Ray lost a part of it; return its result.

    Args:
        work: leaves nothing behind that a second try would trip over.
        say: called with every loss.

    Raises:
        Exception: what `work` raises for another reason, or in the last try.
    """
    for number in range(1, _TRIES + 1):
        try:
            return work()
        except Exception as error:
            loss = _loss(error)
            if loss is None or getattr(loss, "actor_init_failed", False) or number == _TRIES:
                raise
            say(f"{_first_line(loss)}; beginning again, try {number + 1} of {_TRIES}")
        time.sleep(_PAUSE_S)
    raise AssertionError("the last try returns or raises")


def cluster_error_of(error: BaseException) -> ClusterError | None:
    """Translate an error of Ray itself into ours; None for anything else."""
    for inner in _chain(error):
        if type(inner).__name__ == "ExecutionTimeoutError":
            return ClusterError(
                "E-CLUSTER-009",
                f"Ray Data found no free CPU or GPU for its tasks: {_first_line(inner)}",
                where="the cluster",
                todo="wait until other work has ended or add nodes, then use --resume; for "
                "tasks that are slow by nature raise RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S",
            )
    loss = _loss(error)
    if loss is None:
        return None
    if getattr(loss, "actor_init_failed", False):
        return ClusterError(
            "E-CLUSTER-010",
            f"a worker could not start: {str(loss).strip().splitlines()[-1]}",
            where="the cluster",
            todo="fix what it says, then use --resume",
        )
    return ClusterError(
        "E-CLUSTER-011",
        f"Ray lost a part of the work again and again: {type(loss).__name__}: {_first_line(loss)}",
        where="the cluster",
        todo="look for nodes that died or ran out of memory in the dashboard, then use --resume",
    )


def _loss(error: BaseException) -> BaseException | None:
    """Return Ray's own failure behind an error; None if what ran in it failed."""
    from ray import exceptions as ray

    ours = (ray.RayTaskError, ray.UserCodeException, ray.TaskCancelledError)
    for inner in _chain(error):
        if isinstance(inner, ray.RayError) and not isinstance(inner, ours):
            return inner
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that it was raised from or wraps, from the outside in."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        inner = getattr(current, "cause", None) or current.__cause__
        current = inner if isinstance(inner, BaseException) else None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
