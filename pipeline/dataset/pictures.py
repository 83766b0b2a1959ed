"""The stored images of a few rows of a set: as files that any program opens, and for pages."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from io import BytesIO

import numpy as np
from PIL import Image

from pipeline.dataset.image import ImageLimits, decode_canvas, png_bytes
from pipeline.dataset.manifest import Manifest, SetName
from pipeline.dataset.sets import parts_of
from pipeline.dataset.shards import raw_pixels, read_table, whole_column

THUMB_PX, LARGE_PX = 144, 640
_THUMB_QUALITY, _LARGE_QUALITY = 80, 85


def stored_images(
    data_uri: str, manifest: Manifest, set_name: SetName, rows: Iterable[int]
) -> dict[int, bytes]:
    """Return row -> the stored file; an image that is stored as pixels becomes a PNG.

    Args:
        data_uri: root of the data set.
        manifest: of it.
        set_name: whose images.
        rows: places in the set.

    Raises:
        DataError: a shard is broken.
    """
    wanted = np.unique(np.fromiter(rows, np.int64))
    found: dict[int, bytes] = {}
    for part in parts_of(data_uri, manifest, set_name):
        here = np.flatnonzero(np.isin(part.places_n, wanted))
        if not len(here):
            continue
        table = part.taken(read_table(data_uri, part.shard)).take(here)
        files = table["image"].to_pylist()
        if manifest.image.encoding == "raw":
            height_px, width_px = manifest.image.height_px, manifest.image.width_px
            assert height_px is not None and width_px is not None
            ids, images = (whole_column(table, name) for name in ("id", "image"))
            files = [png_bytes(rgb) for rgb in raw_pixels(ids, images, height_px, width_px)]
        found |= dict(zip(part.places_n[here].tolist(), files, strict=True))
    return found


def originals(
    data_uri: str,
    manifest: Manifest,
    set_name: SetName,
    rows: Iterable[int],
    *,
    large: set[int],
) -> dict[int, tuple[str, str | None]]:
    """Return row -> (small, larger picture) in base64, from the stored images.

    The larger one is None for rows outside `large`, and where the small one is the whole original.
    """
    files = stored_images(data_uri, manifest, set_name, rows)
    if manifest.image.encoding == "raw":
        return {row: (_encoded(data), None) for row, data in files.items()}
    return {row: _pair(data, with_large=row in large) for row, data in files.items()}


def _pair(data: bytes, *, with_large: bool) -> tuple[str, str | None]:
    canvas, (height_px, width_px) = decode_canvas(data, ImageLimits(), LARGE_PX)
    image = Image.fromarray(
        np.ascontiguousarray(canvas[:, :height_px, :width_px].transpose(1, 2, 0))
    )
    small = image.copy()
    small.thumbnail((THUMB_PX, THUMB_PX), Image.Resampling.BICUBIC)
    thumb = _jpeg(small, _THUMB_QUALITY)
    if not with_large or small.size == image.size:
        return thumb, None
    return thumb, _jpeg(image, _LARGE_QUALITY)


def _jpeg(image: Image.Image, quality: int) -> str:
    sink = BytesIO()
    image.save(sink, format="JPEG", quality=quality)
    return _encoded(sink.getvalue())


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
