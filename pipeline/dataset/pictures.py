"""The stored images of a few rows of a set, as files that any program opens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.dataset.image import png_bytes
from pipeline.dataset.manifest import Manifest, SetName
from pipeline.dataset.sets import parts_of
from pipeline.dataset.shards import raw_pixels, read_table


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
            ids, images = (table[name].combine_chunks() for name in ("id", "image"))
            files = [png_bytes(rgb) for rgb in raw_pixels(ids, images, height_px, width_px)]
        found |= dict(zip(part.places_n[here].tolist(), files, strict=True))
    return found
