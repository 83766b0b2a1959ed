"""The rows that every benchmark returns, as one table for people and as JSON.

A benchmark is a module with

    def rows() -> list[Row]: ...

and `if __name__ == "__main__": main(rows)`. Alone it is `python -m benchmarks.NAME`, in a table
with all others `make bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "ray", "numpy", "pillow")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured line.

    Args:
        name: what was measured, on what: "step, ResNet-18 32 px, bfloat16".
        values: one for each repeat; the median is shown. Empty when it could not be measured, and
            then `note` says why.
        unit: "x" for a ratio, else as it is: "ms", "images/s", "%".
        versus: what it is compared with: the reference of a ratio, the limit of a share.
        target: what it should reach; None when it only informs.
        at_most: the target is an upper limit.
        note: a few words more.
    """

    name: str
    values: Sequence[float]
    unit: str
    versus: str = ""
    target: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def value(self) -> float | None:
        """The median of the repeats; None without any."""
        return statistics.median(self.values) if self.values else None

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None without target or values."""
        if self.target is None or self.value is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target

    def cells(self) -> tuple[str, ...]:
        """Return the row of the printed table, in the order of `HEADER`."""
        target = ""
        if self.target is not None:
            verdict = {True: "met", False: "missed", None: "not measured"}[self.met]
            target = f"{'<=' if self.at_most else '>='} {_digits(self.target)} {verdict}"
        spread = f"{_digits(min(self.values))}..{_digits(max(self.values))}" if self.values else ""
        value = "-" if self.value is None else f"{_digits(self.value)} {self.unit}"
        return self.name, value, spread, str(len(self.values)), target, self.versus, self.note


HEADER = ("Measured", "Median", "Range", "n", "Target", "Against", "Note")


def render(rows: Sequence[Row]) -> str:
    """Format the rows as a table of plain text."""
    table = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADER))]
    table.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    )


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Return hardware, versions and the rows as plain values."""
    listed = [asdict(row) | {"value": row.value, "met": row.met} for row in rows]
    return {"machine": machine(), "versions": versions(), "rows": listed}


def from_json(content: dict[str, Any]) -> list[Row]:
    """Return the rows of `to_json`."""
    derived = ("value", "met")
    return [Row(**{k: v for k, v in row.items() if k not in derived}) for row in content["rows"]]


def machine() -> dict[str, Any]:
    """Describe the processor, its relevant instructions and the cores that we may use."""
    facts: dict[str, Any] = {"cpu": platform.machine(), "flags": []}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            facts["cpu"] = value.strip()
        elif key.strip() == "flags":
            facts["flags"] = [flag for flag in _FLAGS if flag in value.split()]
    facts["cores"] = len(os.sched_getaffinity(0))
    return facts


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the numbers depend on."""
    return {"python": platform.python_version()} | {n: metadata.version(n) for n in PACKAGES}


def heading(content: dict[str, Any]) -> str:
    """Return hardware and versions in one line."""
    facts = content["machine"]
    flags = f" ({', '.join(facts['flags'])})" if facts["flags"] else ""
    packages = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return f"{facts['cpu']}{flags}, {facts['cores']} cores; {packages}"


def main(rows: Callable[[], list[Row]]) -> None:
    """Measure, print the table, and write JSON where `--json FILE` says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    measured = rows()
    content = to_json(measured)
    print(heading(content))
    print(render(measured))
    if args.json is not None:
        args.json.write_text(json.dumps(content, indent=1) + "\n")


def _digits(value: float) -> str:
    """Format with three significant digits and no exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
