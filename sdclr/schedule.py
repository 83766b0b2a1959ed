"""Schedules as pure functions of the step: nothing to checkpoint, nothing to drift."""

from __future__ import annotations

import math
from dataclasses import dataclass

MIN_WARMUP_STEPS = 30
"""Warm-up takes so many steps where the run is long enough: an epoch may have one or two."""
MAX_WARMUP_FRAC = 0.1
"""Warm-up never takes more than this fraction of a run, however short the run is."""


def warmup_steps(*, warmup_epochs: float, epochs: int, steps_per_epoch: int) -> int:
    """Return the warm-up in steps: at least 30, yet at most a tenth of the run; 0 for 0 epochs."""
    if warmup_epochs == 0:
        return 0
    asked = max(warmup_epochs * steps_per_epoch, MIN_WARMUP_STEPS)
    return int(min(asked, MAX_WARMUP_FRAC * epochs * steps_per_epoch))


def learning_rate(
    step: int, *, num_steps: int, num_warmup: int, peak: float, final: float
) -> float:
    """Return the learning rate of a step: linear warm-up from 0, then a cosine to `final`.

    The cosine is Loshchilov & Hutter 2017, eq. 5, without restarts.
    lr(0) = 0 if there is a warm-up, lr(num_warmup) = peak, lr(num_steps) = final.

    Args:
        step: global step in [0, num_steps], counted from 0.
        num_steps: length of the run.
        num_warmup: length of the warm-up, in [0, num_steps).
        peak: the highest learning rate.
        final: the learning rate that the cosine ends in.

    Raises:
        ValueError: the step or the warm-up is outside the run.
    """
    if not 0 <= num_warmup < num_steps:
        raise ValueError(f"num_warmup must be in [0, {num_steps}), got {num_warmup}")
    if not 0 <= step <= num_steps:
        raise ValueError(f"step must be in [0, {num_steps}], got {step}")
    if step < num_warmup:
        return peak * step / num_warmup
    progress = (step - num_warmup) / (num_steps - num_warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class TemperatureSchedule:
    """Cosine between two temperatures (Kukleva et al. 2023, section 4).

    Args:
        low, high: 0 < low <= high; published are 0.1 and 1.
        period_epochs: from high to low and back, > 0; published are 400 in a run of 2000.

    Raises:
        ValueError: a value out of its range.
    """

    low: float
    high: float
    period_epochs: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf or not self.period_epochs > 0:
            raise ValueError(f"expected 0 < low <= high and a period above 0, got {self}")

    def at(self, epoch: int) -> float:
        """Return the temperature of an epoch, counted from 0: `high` at the start of a period."""
        swing = 0.5 * (1 + math.cos(2 * math.pi * epoch / self.period_epochs))
        return self.low + (self.high - self.low) * swing
