"""The parts of a step's time: views, arithmetic, exchange between ranks.

Time is cut at marks, and what passed between two of them belongs to the part that the second names.
On a CPU a mark is the host's clock. On a GPU it is an event in the device's queue, for which nobody
waits: the parts of a step are read when the device has passed them, a step or two later.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

PARTS = ("views", "compute", "exchange")
"""Parts that a step itself is cut into; `compute` is forward, backward and optimizer."""


class StepParts:
    """Marks of one step on one rank; made where the step begins.

    Exchange is what a rank waits for the others: the backward pass hides the rest of it. On a GPU
    it is that of gradients alone.

    Args:
        device: where the step runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.end("")

    def end(self, part: str) -> None:
        """End a part, which began where the one before ended."""
        self._marks.append((part, _event() if self._is_cuda else time.perf_counter()))

    @property
    def is_here(self) -> bool:
        """Whether `read` may be called."""
        last = self._marks[-1][1]
        return isinstance(last, float) or bool(last.query())  # type: ignore[no-untyped-call]

    def read(self) -> dict[str, float]:
        """Return seconds by part; 0 for one that the step did not have."""
        found = dict.fromkeys(PARTS, 0.0)
        for (_, begin), (part, end) in zip(self._marks, self._marks[1:], strict=False):
            found[part] += _between(begin, end)
        return found


class _Current:
    """The step that is being made in this process."""

    parts: StepParts | None = None


def begin(device: torch.device) -> StepParts:
    """Return the parts of a step that begins now, for `end` as well."""
    _Current.parts = StepParts(device)
    return _Current.parts


def end(part: str) -> None:
    """End a part of the step that is being made; nothing happens outside a step."""
    if _Current.parts is not None:
        _Current.parts.end(part)


def close() -> None:
    """End the step: exchanges from here on are not its own."""
    _Current.parts = None


def gradient_is_here(_: Tensor) -> None:
    """End the arithmetic: hook of the weight with the last gradient of a backward pass."""
    end("compute")


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, float) or isinstance(end, float):
        return float(end) - float(begin)  # type: ignore[arg-type]
    return float(begin.elapsed_time(end)) / 1000
