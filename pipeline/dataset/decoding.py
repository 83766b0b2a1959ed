"""Shards to pixels, as a Ray Data task: every byte checked, every image on the same canvas.

No torch here: Ray Data starts many processes that import this module.

Shapes: n rows of one shard, 3 channels, H x W pixels of the canvas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.image import ImageLimits, RejectedImage, decode_canvas
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
        shard = read_shard(self.data_uri, info, name_sample=True)
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
                canvas, size = decode_canvas(data, self.limits, self.canvas_px)
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


def read_parts(
    data_uri: str, shard: ShardInfo, parts: list[NDArray[np.int64]]
) -> ShardRows | list[ShardRows]:
    """Rows of one shard for several readers, as stored and checked; alone if for one reader.

    Args:
        data_uri: the data set.
        shard: what the manifest says of it.
        parts: for each reader, the rows within the shard.
    """
    rows = read_shard(data_uri, shard, name_sample=True)
    found = [rows.take(part.tolist()) for part in parts]
    return found[0] if len(found) == 1 else found


def decode_part(
    decoder: ShardDecoder,
    rows_n: NDArray[np.int64],
    places: list[NDArray[np.int64]],
    *stored: ShardRows,
) -> tuple[dict[str, NDArray[Any]], None]:
    """Decode what several shards hold of one part of the order.

    Args:
        decoder: of the data set.
        rows_n: the row in the set of each image, in order.
        places: for each of `stored`, where in the order its images belong.
        stored: images of each shard.

    Returns:
        pixels (n, 3, H, W) uint8, size (n, 2) int64, row (n,); and None, by which a process that
        needs none of these sees that all went well.
    """
    out: dict[str, NDArray[Any]] = {"row": rows_n, "size": np.empty((len(rows_n), 2), np.int64)}
    for place, images in zip(places, stored, strict=True):
        pixels, out["size"][place] = decoder.pixels(images)
        if "pixels" not in out:
            out["pixels"] = np.empty((len(rows_n), *pixels.shape[1:]), np.uint8)
        out["pixels"][place] = pixels
    return out, None


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
