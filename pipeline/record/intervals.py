"""Intervals of what was measured, by arithmetic alone: pages start without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

NORMAL975 = 1.959964
"""Standard errors on each side of a mean that make its 95 % interval."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval; nan ends where no resample has a value."""

    value: float
    low: float
    high: float


def wilson(share: float, num: int) -> Interval:
    """Return the 95 % interval of a share of `num` independent cases (Wilson 1927).

    Ends are in [0, 1]; nothing counted, or a share that is not known, gives nan.
    """
    if num < 1 or not math.isfinite(share):
        return Interval(share, math.nan, math.nan)
    z = NORMAL975
    centre = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    half = z / (1 + z**2 / num) * math.sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))
