"""Points of a run's metrics and pictures of its report, as a tracker is given them."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipeline import storage
from pipeline.record.evaluation import Forgotten
from pipeline.record.rows import HealthRow, MaskRow, Row, StepRow

_OF_STEP = ("loss", "lr", "temperature", "grad_norm", "images_per_s", "data_wait_frac", "epoch",
            "flops_per_s", "roofline_frac")  # fmt: skip
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Point:
    """Numbers of one method at one step; (kind, method, step) names it for good.

    Args:
        kind: `train`, `mask` or `health`: the first part of every tag.
        method: whose numbers.
        step: of the optimizer.
        time_s: when they were measured, seconds since 1970.
        values: by name, finite.
    """

    kind: str
    method: str
    step: int
    time_s: float
    values: dict[str, float]


@dataclass(frozen=True)
class Picture:
    """One PNG of the report.

    Args:
        method: whose picture.
        name: its tag.
        step: of the weights that it is of.
        png: the file.
    """

    method: str
    name: str
    step: int
    png: bytes

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height, as the header says."""
        width, height = struct.unpack(">II", self.png[16:24])
        return int(width), int(height)


def points(rows: Iterable[Row]) -> Iterator[Point]:
    """Yield the points of a run's rows, in their order; unknown numbers are left out."""
    for row in rows:
        if isinstance(row, StepRow):
            found = {name: getattr(row, name) for name in _OF_STEP}
            yield _point("train", row, found | {f"{n}_s": s for n, s in row.parts_s.items()})
        elif isinstance(row, HealthRow):
            yield _point("health", row, row.measures)
        elif isinstance(row, MaskRow) and row.kept_frac:
            kept = {"kept_frac_min": min(row.kept_frac.values()), "prune_ratio": row.prune_ratio}
            yield _point("mask", row, kept)


def _point(
    kind: str, row: StepRow | HealthRow | MaskRow, values: Mapping[str, float | None]
) -> Point:
    known = {name: float(value) for name, value in values.items() if value is not None}
    return Point(kind, row.method, row.step, row.time_s, known)


def pictures(run_uri: str, last_step: dict[str, int]) -> Iterator[Picture]:
    """Yield the images that the report shows as most and least forgotten, if they are recorded."""
    record = Forgotten.find(storage.join(run_uri, "forgotten.json"))
    if record is None:
        return
    step = last_step.get(record.method, 0)
    for side, shown in (("most", record.most), ("least", record.least)):
        for number, one in enumerate(shown, 1):
            png = _png(one.png_base64)
            if png is not None:
                yield Picture(record.method, f"forgotten/{side}_{number}", step, png)


def _png(text: str) -> bytes | None:
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return data if data.startswith(_PNG) and len(data) > len(_PNG) + 16 else None
