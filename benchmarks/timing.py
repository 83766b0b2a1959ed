"""Times of things that are compared, taken in turns within one run.

A busy or throttled machine then slows down both alike, and each ratio is of neighbours in time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time each call in each repeat, after one warm-up call of each.

    Args:
        calls: name -> what to time.
        repeats: each runs all calls once, in order.
        clock: `time.process_time` counts CPU time of this process alone.
    """
    for call in calls.values():
        call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            call()
            spent[name].append(clock() - start)
    return spent


def ratios(slow_s: list[float], fast_s: list[float]) -> list[float]:
    """Return how many times as long the first took, repeat by repeat."""
    return [slow / fast for slow, fast in zip(slow_s, fast_s, strict=True)]
