"""A device, a clock with a deadline, and rows that are written as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.table import Row

ROWS = "rows.jsonl"


class Bench:
    """Clock, device and rows of one part.

    Args:
        device: where.
        small: sizes for a CPU, and two calls instead of many.
        out: folder with the rows of all parts so far.
        budget_s: of this part; loops end before it is over.
    """

    def __init__(self, device: str, *, small: bool, out: Path, budget_s: float) -> None:
        self.device, self.small, self.out = torch.device(device), small, out
        self.is_cuda = self.device.type == "cuda"
        self.end_s = time.monotonic() + budget_s

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self.end_s - time.monotonic()

    def goal(self, value: float | None) -> float | None:
        """Return a target of speed, which small sizes do not have."""
        return None if self.small else value

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object], *, budget_s: float = 6.0) -> list[float]:
        """Time calls in rounds of several, after three that do not count; means of each round.

        A round is waited for at its end only: a step that does not wait may run ahead.
        """
        for _ in range(1 if self.small else 3):
            call()
        size, means = (1 if self.small else 8), list[float]()
        end_s = time.monotonic() + (0.0 if self.small else min(budget_s, self.left_s))
        while len(means) < 2 or time.monotonic() < end_s:
            self.wait()
            start = time.perf_counter()
            for _ in range(size):
                call()
            self.wait()
            means.append((time.perf_counter() - start) / size)
        return means

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """Return the peak of allocated GPU memory during a call; 0 on a CPU."""
        if not self.is_cuda:
            call()
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device)

    def add(
        self,
        name: str,
        values: list[float],
        unit: str,
        target: float | None = None,
        *,
        at_most: bool = False,
        versus: str = "",
        note: str = "",
    ) -> None:
        """Write a row."""
        self.keep(
            Row(
                name=name, values=values, unit=unit, target=target, at_most=at_most,
                versus=versus, note=note,
            )
        )  # fmt: skip

    def failed(self, name: str, error: BaseException) -> None:
        """Write what failed, in its first line."""
        lines = str(error).splitlines() or [""]
        note = f"failed: {type(error).__name__}: {lines[0][:80]}"
        self.keep(Row(name=name, values=(), unit="x", note=note))

    def keep(self, row: Row) -> None:
        """Write a row at once: a call that is ended from outside has said something."""
        with (self.out / ROWS).open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print("  ".join(filter(None, row.cells())), flush=True)

    def value(self, name: str) -> float | None:
        """Return the median of a row of any part so far; None when there is none."""
        found = [row.value for row in read_rows(self.out) if row.name == name]
        return found[-1] if found else None


def read_rows(out: Path) -> list[Row]:
    """Return the rows of a folder."""
    file = out / ROWS
    lines = file.read_text().splitlines() if file.exists() else []
    return [Row(**json.loads(line)) for line in lines]
