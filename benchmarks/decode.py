"""Photographs that one core checks, decodes and fits to the canvas in a second.

    SDCLR_PHOTOS=FOLDER python -m benchmarks.decode

The photographs of the folder of folders are first made 500 x 375 px and about 69 kB, as those of
large collections are. Then a core hashes and decodes them, as the feed does on each node: as they
are, and as `ingest.resize_short_px=256` stores them. The constants of docs/scale.md come from here.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.streamed import CANVAS_PX
from benchmarks.table import Row, main
from benchmarks.timing import in_turns, ratios
from pipeline.dataset.image import ImageLimits, decode_canvas, decode_rgb, resized_jpeg

NUM_PHOTOS, REPEATS, SIZE_PX, ABOUT_BYTES = 64, 5, (500, 375), 69_000
ALONE = "decode alone"
FITTED = f"decode and fit to a canvas of {CANVAS_PX} px"
STORED = f"the same, stored with a short side of {CANVAS_PX} px"


def rows() -> list[Row]:
    """Measure images a second of CPU time of one thread, hash included."""
    place = os.environ.get("SDCLR_PHOTOS")
    files = sorted(Path(place).glob("*/*.jp*g")) if place else []
    if len(files) < NUM_PHOTOS:
        note = f"SDCLR_PHOTOS names no folder of {NUM_PHOTOS} photos or more"
        return [Row(name=FITTED, values=(), unit="images/s", note=note)]
    limits = ImageLimits()
    photos = [_of_size(file) for file in files[:: len(files) // NUM_PHOTOS][:NUM_PHOTOS]]
    small = [resized_jpeg(decode_rgb(photo, limits), CANVAS_PX) or photo for photo in photos]
    work: dict[str, Callable[[], object]] = {
        ALONE: lambda: [(_digest(photo), decode_rgb(photo, limits)) for photo in photos],
        FITTED: lambda: [(_digest(p), decode_canvas(p, limits, CANVAS_PX)) for p in photos],
        STORED: lambda: [(_digest(p), decode_canvas(p, limits, CANVAS_PX)) for p in small],
    }
    spent = in_turns(work, repeats=REPEATS, clock=time.process_time)
    sizes = {name: sum(map(len, found)) / len(found) for name, found in
             ((ALONE, photos), (FITTED, photos), (STORED, small))}  # fmt: skip
    found = [
        Row(name=name, values=[len(photos) / s for s in seconds], unit="images/s",
            note=f"{sizes[name] / 1000:.0f} kB an image")
        for name, seconds in spent.items()
    ]  # fmt: skip
    times = ratios(spent[FITTED], spent[STORED])
    return [*found, Row(name="resized once, at ingest", values=times, unit="x", versus=FITTED)]


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _of_size(file: Path) -> bytes:
    """Return the photograph as a JPEG of the size and, nearly, the bytes that are wanted."""
    with Image.open(file) as image:
        photo = image.convert("RGB").resize(SIZE_PX, Image.Resampling.LANCZOS)
    best = b""
    for quality in range(60, 100):
        out = io.BytesIO()
        photo.save(out, "JPEG", quality=quality)
        if abs(out.tell() - ABOUT_BYTES) < abs(len(best) - ABOUT_BYTES):
            best = out.getvalue()
    return best


if __name__ == "__main__":
    main(rows)
