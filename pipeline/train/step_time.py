"""The parts of the time between two lines of a training, on one rank."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.record.rows import PARTS
from sdclr import StepReport
from sdclr.parts import StepParts

_OF_HOST = ("wait", "checkpoint", "health")


@dataclass(frozen=True)
class Span:
    """The steps since the last line.

    Attributes:
        num_images: of these steps, of all ranks.
        images_per_s: of all ranks.
        wait_frac: share of the time without a batch, 0 to 1.
        parts_s: mean of a step, see `StepRow`; empty while no step has reached its end.
    """

    num_images: int
    images_per_s: float
    wait_frac: float
    parts_s: dict[str, float]

    @property
    def work_s(self) -> float | None:
        """Seconds of a step that this rank worked itself; None where none has reached its end."""
        return self.parts_s["views"] + self.parts_s["compute"] if self.parts_s else None


class StepTime:
    """Sums of the time since the last line."""

    def __init__(self) -> None:
        # Steps of a GPU that has not passed their end, in order.
        self._ahead: deque[StepParts] = deque()
        self._begin()

    def _begin(self) -> None:
        self._since_s = time.monotonic()
        self._num_images, self._num_steps, self._num_read = 0, 0, 0
        self._spent_s = defaultdict[str, float](float)
        self._on_device_s = defaultdict[str, float](float)

    @property
    def age_s(self) -> float:
        """Seconds since the last line."""
        return time.monotonic() - self._since_s

    def see(self, report: StepReport) -> None:
        """Count a step, and those before it whose end the device has passed since."""
        self._num_images += report.num_images
        self._num_steps += 1
        self.spend("wait", report.wait_s)
        if report.parts is not None:
            self._ahead.append(report.parts)
        while self._ahead and self._ahead[0].is_here:
            for part, seconds in self._ahead.popleft().read().items():
                self._on_device_s[part] += seconds
            self._num_read += 1

    def spend(self, part: str, seconds: float) -> None:
        """Count time of the host."""
        self._spent_s[part] += seconds

    @contextmanager
    def spent_on(self, part: str) -> Iterator[None]:
        """Count the time of a block, however it ends."""
        begun_s = time.perf_counter()
        try:
            yield
        finally:
            self.spend(part, time.perf_counter() - begun_s)

    def span(self) -> Span:
        """Return where the time since the last line went, and begin anew."""
        elapsed_s = max(self.age_s, 1e-9)
        parts_s = {}
        if self._num_read and self._num_steps:
            parts_s = {part: self._spent_s[part] / self._num_steps for part in _OF_HOST}
            parts_s |= {part: s / self._num_read for part, s in self._on_device_s.items()}
            parts_s["rest"] = max(0.0, elapsed_s / self._num_steps - sum(parts_s.values()))
            parts_s = {part: parts_s[part] for part in PARTS}
        found = Span(
            self._num_images,
            self._num_images / elapsed_s,
            min(1.0, self._spent_s["wait"] / elapsed_s),
            parts_s,
        )
        self._begin()
        return found
