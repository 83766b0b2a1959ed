"""Shards to pixels, as a Ray Data task: every byte checked, every image on the same canvas.

No torch here: Ray Data starts many processes that import this module.

Shapes: n rows of one shard, 3 channels, H x W pixels of the canvas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.damage import read_or_name_sample
from pipeline.dataset.formats import RejectedImage
from pipeline.dataset.image import ImageLimits, decode_canvas
from pipeline.dataset.manifest import ImageInfo, Manifest, ShardInfo
from pipeline.dataset.sets import parts_of
from pipeline.dataset.shards import image_bytes, labels, raw_pixels, whole_column
from pipeline.errors import DataError

Columns = dict[str, NDArray[Any]]
"""Columns of n values by name; each name has a dtype of its own."""
Readers = list[tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Of each reader of a shard, its rows in the set and those within the shard."""


@dataclass(frozen=True)
class ShardDecoder:
    """Reader of the shards of one data set.

    Args:
        data_uri: the data set.
        image: how its images are stored.
        limits: what a stored original may cost to decode.
        canvas_px: side of the square that originals are reduced to; raw images keep their size.
        with_sha256: give the recorded hash of each image as well.
    """

    data_uri: str
    image: ImageInfo
    limits: ImageLimits
    canvas_px: int | None
    with_sha256: bool = False

    def __call__(self, batch: Columns) -> Columns:
        """Read the rows of one item of `shard_items`.

        Returns:
            set (n,), row (n,) int64: the place in the set, id (n,), label (n,) int64 with -1 for
            none, pixels (n, 3, H, W) uint8, size (n, 2) int64: height and width on the canvas in
            px; and, where asked for, sha256 (n,): in hex, of the stored bytes.
        """
        (name,), (set_name,) = batch["name"], batch["set"]
        (taken,), (places,), (first,) = batch["taken"], batch["places"], batch["first_row"]
        (rows,), (num_bytes,), (sha256,) = batch["rows"], batch["bytes"], batch["sha256"]
        info = ShardInfo(str(name), int(rows), int(num_bytes), str(sha256))
        shard = read_or_name_sample(self.data_uri, info)
        row = np.arange(len(shard), dtype=np.int64) + int(first)
        if taken:
            shard = shard.take(pa.array(_numbers(str(taken))))
            row = _numbers(str(places))
        pixels, sizes = self.pixels(shard)
        more = {"sha256": np.array(shard["sha256"].to_pylist())} if self.with_sha256 else {}
        return more | {
            "set": np.array([str(set_name)] * len(pixels)),
            "row": row,
            "id": np.array(shard["id"].to_pylist()),
            "label": labels(shard),
            "pixels": pixels,
            "size": sizes,
        }

    @property
    def is_raw(self) -> bool:
        """Whether the images are stored as pixels."""
        return self.image.encoding == "raw"

    def pixels(self, shard: pa.Table) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Decode a shard into canvases (n, 3, H, W) uint8 and the image sizes (n, 2) on them.

        Raises:
            DataError: naming the sample.
        """
        if self.is_raw:
            return self.raw_pixels(shard, np.arange(len(shard)))
        height_px, width_px = self._canvas_size()
        pixels_nCHW = np.empty((len(shard), 3, height_px, width_px), np.uint8)
        sizes_n2 = np.empty((len(shard), 2), np.int64)
        ids, images = (whole_column(shard, name) for name in ("id", "image"))
        for row, data in enumerate(image_bytes(images)):
            try:
                _, sizes_n2[row] = decode_canvas(
                    bytes(data), self.limits, width_px, pixels_nCHW[row]
                )
            except RejectedImage as error:
                raise DataError(
                    "E-DATA-005",
                    f"the image of sample {ids[row]} passed ingest and cannot be decoded now: "
                    f"{error.reason}, {error.detail}",
                    where=self.data_uri,
                    todo="ingest the data set again with the limits of this configuration",
                ) from error
        return pixels_nCHW, sizes_n2

    def raw_pixels(
        self, shard: pa.Table, rows_n: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return some rows of a shard of raw images as `pixels` returns all of them.

        Raises:
            DataError: an image has another size; naming the sample.
        """
        height_px, width_px = self._canvas_size()
        ids, images = (whole_column(shard, name) for name in ("id", "image"))
        pixels_NHWC = raw_pixels(ids, images, height_px, width_px)
        pixels_nCHW = np.empty((len(rows_n), 3, height_px, width_px), np.uint8)
        pixels_nCHW[:] = pixels_NHWC[rows_n].transpose(0, 3, 1, 2)
        sizes_n2 = np.empty((len(rows_n), 2), np.int64)
        sizes_n2[:] = height_px, width_px
        return pixels_nCHW, sizes_n2

    def _canvas_size(self) -> tuple[int, int]:
        if self.image.height_px is not None and self.image.width_px is not None:
            return self.image.height_px, self.image.width_px
        if self.canvas_px is not None:
            return self.canvas_px, self.canvas_px
        raise DataError(
            "E-DATA-004",
            "images of different sizes need a canvas",
            where=self.data_uri,
            todo="set augment.crop_px, for example augment.crop_px=224",
        )


def _numbers(text: str) -> NDArray[np.int64]:
    return np.frombuffer(bytes.fromhex(text), np.int64).copy()


def read_parts(
    decoder: ShardDecoder, shard: ShardInfo, parts: Readers
) -> pa.Table | list[pa.Table]:
    """Return checked rows of one shard for several readers; a single item for one reader.

    Tables, not lists of bytes: another process reads them where they lie.

    Args:
        decoder: of the data set.
        shard: what the manifest says of it.
        parts: for each reader, the rows in the set and those within the shard.
    """
    table = read_or_name_sample(decoder.data_uri, shard).select(["id", "image"])
    found = [table.take(pa.array(local_rows)).combine_chunks() for _, local_rows in parts]
    return found[0] if len(found) == 1 else found


def decode_part(
    decoder: ShardDecoder, rows_n: NDArray[np.int64], shard: pa.Table
) -> tuple[Columns, None]:
    """Decode one reader's rows of a shard.

    Args:
        decoder: of the data set.
        rows_n: the row in the set of each image, in order.
        shard: their ids and images.

    Returns:
        pixels (n, 3, H, W) uint8, size (n, 2) int64, row (n,); and None, by which a process that
        needs none of these sees that all went well.
    """
    pixels, sizes = decoder.pixels(shard)
    return {"row": rows_n, "size": sizes, "pixels": pixels}, None


def read_raw_parts(
    decoder: ShardDecoder, shard: ShardInfo, parts: Readers
) -> Columns | list[Columns]:
    """Return checked raw images of one shard for several readers; a single item for one reader.

    There is nothing to decode, so one task does the work of `read_parts` and `decode_part`.

    Args:
        decoder: of the data set.
        shard: what the manifest says of it.
        parts: for each reader, the rows in the set and those within the shard.

    Returns:
        for each reader the columns of `decode_part`.
    """
    table = read_or_name_sample(decoder.data_uri, shard).select(["id", "image"])
    found: list[Columns] = []
    for rows_n, local_rows in parts:
        pixels, sizes = decoder.raw_pixels(table, local_rows)
        found.append({"row": rows_n, "size": sizes, "pixels": pixels})
    return found[0] if len(found) == 1 else found


def shard_items(
    data_uri: str, manifest: Manifest, set_names: tuple[str, ...]
) -> list[dict[str, str | int]]:
    """Return one item for each shard that holds images of a named set, and each such set."""
    return [
        {
            "set": set_name,
            "name": part.shard.name,
            "rows": part.shard.rows,
            "bytes": part.shard.bytes,
            "sha256": part.shard.sha256,
            "first_row": int(part.places_n[0]),
            # As text: Ray Data has no columns of arrays of different lengths.
            "taken": "" if part.rows_n is None else part.rows_n.tobytes().hex(),
            "places": "" if part.rows_n is None else part.places_n.tobytes().hex(),
        }
        for set_name in manifest.sets
        if set_name in set_names
        for part in parts_of(data_uri, manifest, set_name)
    ]
