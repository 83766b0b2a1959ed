"""Shards to pixels, as a Ray Data task: every byte checked, every image on the same canvas.

No torch here: Ray Data starts many processes that import this module.

Shapes: n rows of one shard, 3 channels, H x W pixels of the canvas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.image import ImageLimits, RejectedImage, decode_rgb, fit_canvas
from pipeline.dataset.manifest import ImageInfo, Manifest, ShardInfo
from pipeline.dataset.shards import ShardRows, read_shard
from pipeline.errors import DataError


@dataclass(frozen=True)
class ShardDecoder:
    """Reads the shards of one data set.

    Args:
        data_uri: the data set.
        image: how its images are stored.
        limits: what a stored original may cost to decode.
        canvas_px: side of the square that originals are reduced to; raw images keep their size.
    """

    data_uri: str
    image: ImageInfo
    limits: ImageLimits
    canvas_px: int | None

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """One item of `shard_items` to its rows.

        Returns:
            set (n,), row (n,) int64: the place in the set, id (n,), label (n,) int64 with -1 for
            none, pixels (n, 3, H, W) uint8, size (n, 2) int64: height and width on the canvas in
            px.
        """
        (name,), (set_name,), (first,) = batch["name"], batch["set"], batch["first_row"]
        (rows,), (num_bytes,), (sha256,) = batch["rows"], batch["bytes"], batch["sha256"]
        info = ShardInfo(str(name), int(rows), int(num_bytes), str(sha256))
        shard = read_shard(self.data_uri, info)
        pixels, sizes = self.pixels(shard)
        return {
            "set": np.array([str(set_name)] * len(shard)),
            "row": np.arange(len(shard), dtype=np.int64) + int(first),
            "id": np.array(shard.ids),
            "label": shard.labels,
            "pixels": pixels,
            "size": sizes,
        }

    def pixels(self, shard: ShardRows) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Canvases (n, 3, H, W) uint8 of a shard, and the sizes (n, 2) of the images on them."""
        if self.image.height_px is not None and self.image.width_px is not None:
            size = (self.image.height_px, self.image.width_px)
            pixels_nHWC = shard.raw_pixels(*size)
            pixels_nCHW = np.ascontiguousarray(pixels_nHWC.transpose(0, 3, 1, 2))
            return pixels_nCHW, np.tile(np.array(size, np.int64), (len(shard), 1))
        if self.canvas_px is None:
            raise DataError(
                "images of different sizes need a canvas",
                where=self.data_uri,
                todo="set feed.canvas_px, for example feed.canvas_px=256",
            )
        canvases, sizes = [], []
        for sample_id, data in zip(shard.ids, shard.images, strict=True):
            try:
                canvas, size = fit_canvas(decode_rgb(data, self.limits), self.canvas_px)
            except RejectedImage as error:
                raise DataError(
                    f"the image of sample {sample_id} passed ingest and cannot be decoded now: "
                    f"{error.reason}, {error.detail}",
                    where=self.data_uri,
                    todo="ingest the data set again with the limits of this configuration",
                ) from error
            canvases.append(canvas)
            sizes.append(size)
        return np.stack(canvases), np.array(sizes, np.int64)


def shard_items(manifest: Manifest, set_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """One item for each shard of the named sets, with the row number of its first image."""
    items = []
    for set_name, info in manifest.sets.items():
        if set_name not in set_names:
            continue
        first_row = 0
        for shard in info.shards:
            items.append(
                {
                    "set": set_name,
                    "name": shard.name,
                    "rows": shard.rows,
                    "bytes": shard.bytes,
                    "sha256": shard.sha256,
                    "first_row": first_row,
                }
            )
            first_row += shard.rows
    return items
