"""One shard: a Parquet file of images; every byte and every row is checked on reading.

The bytes of a shard depend on its rows only, see `pipeline.dataset.parquet`. Columns, exactly:
id string, image binary, label int32 (null = unlabelled), sha256 string (hex, of `image`).
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset.manifest import ShardInfo
from pipeline.dataset.parquet import footer, plain_bytes
from pipeline.errors import DataError

UNLABELLED = -1

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)
COLUMNS = tuple(_SCHEMA.names)
_AGAIN = "restore the file, or delete the data set's folder and run the ingest stage again"


@dataclass(frozen=True)
class ShardRows:
    """N rows of a shard: ids, images as stored, labels int64 (N,) with -1 for unlabelled."""

    ids: tuple[str, ...]
    images: tuple[bytes, ...]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of rows N."""
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> ShardRows:
        """Return some of the rows, in the order given."""
        return ShardRows(
            ids=tuple(self.ids[row] for row in rows),
            images=tuple(self.images[row] for row in rows),
            labels=self.labels[np.array(rows, np.int64)],
        )

    def raw_pixels(self, height_px: int, width_px: int) -> npt.NDArray[np.uint8]:
        """Return images of the encoding "raw" as (N, H, W, 3); another size is a DataError."""
        return raw_pixels(
            pa.array(self.ids), pa.array(self.images, pa.binary()), height_px, width_px
        )


def write_shard(
    data_uri: str,
    name: str,
    *,
    ids: Sequence[str],
    images: Sequence[bytes],
    labels: Sequence[int | None],
) -> ShardInfo:
    """Write one shard, whole or not at all, and return what the manifest says of it.

    Args:
        data_uri: root of the data set.
        name: name relative to it, such as "shards/pretrain-00000.parquet".
        ids: names of the samples, one a row, at least one row.
        images: bytes as stored, one a row.
        labels: class index or None (unlabelled), one a row.
    """
    hashes = [hashlib.sha256(image).hexdigest() for image in images]
    table = pa.table([list(ids), list(images), list(labels), hashes], schema=_SCHEMA)
    data = plain_bytes(table)
    storage.write_bytes(storage.join(data_uri, storage.safe_name(name)), data)
    digest = hashlib.sha256(data).hexdigest()
    return ShardInfo(name=name, rows=len(ids), bytes=len(data), sha256=digest)


def read_shard(data_uri: str, info: ShardInfo) -> ShardRows:
    """Return the rows of `read_table`."""
    table = read_table(data_uri, info)
    return ShardRows(
        ids=tuple(table["id"].to_pylist()),
        images=tuple(table["image"].to_pylist()),
        labels=labels(table),
    )


def labels(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return the class index of each row, -1 for unlabelled."""
    return np.asarray(table["label"].fill_null(UNLABELLED).to_numpy(), np.int64)


def read_table(data_uri: str, info: ShardInfo) -> pa.Table:
    """Read one shard and check it: hash of the file, schema, rows, hash of every image.

    Args:
        data_uri: root of the data set.
        info: what the manifest says of the shard.

    Raises:
        DataError: naming the shard, and the sample whose hash differs.
        StorageError: the shard is missing or the storage does not answer.
    """
    uri = storage.join(data_uri, storage.safe_name(info.name))
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != info.sha256:
        what = f"the shard's hash differs from the manifest's ({len(data)} of {info.bytes} bytes)"
        raise DataError("E-DATA-016", what, where=uri, todo=_AGAIN)
    table = parse_plain(data, uri)
    if table.num_rows != info.rows:
        what = f"the shard has {table.num_rows} rows, the manifest says {info.rows}"
        raise DataError("E-DATA-017", what, where=uri, todo=_AGAIN)
    sample = _wrong_sample(table)
    if sample is not None:
        what = f"the image of sample {sample} does not have its recorded hash"
        raise DataError("E-DATA-018", what, where=uri, todo=_AGAIN)
    return table


def read_hashes(data_uri: str, info: ShardInfo) -> tuple[list[str], list[str]]:
    """Read the ids and recorded SHA-256 of a shard's images, without the images.

    `read_table`, by which all images are read, checks that the hashes are the images' own.

    Raises:
        DataError: not a shard as written here, or of another number of rows.
        StorageError: the shard is missing or the storage does not answer.
    """
    uri = storage.join(data_uri, storage.safe_name(info.name))
    with storage.open_readable(uri) as file:
        _check_footer(file, uri)
        try:
            parquet = pq.ParquetFile(file)
            _check_plain(parquet.metadata, uri)
            table = parquet.read(columns=["id", "sha256"], use_threads=False)
            ids, digests = table["id"].to_pylist(), table["sha256"].to_pylist()
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            what = f"the shard cannot be parsed: {error!s:.200}"
            raise DataError("E-DATA-021", what, where=uri, todo=_AGAIN) from error
    if len(ids) != info.rows:
        what = f"the shard has {len(ids)} rows, the manifest says {info.rows}"
        raise DataError("E-DATA-022", what, where=uri, todo=_AGAIN)
    return ids, digests


def raw_pixels(
    ids: pa.Array, images: pa.Array, height_px: int, width_px: int
) -> npt.NDArray[np.uint8]:
    """Return images of the encoding "raw" as one array (N, H, W, 3), without a copy.

    Raises:
        DataError: an image of another size.
    """
    num_bytes = height_px * width_px * 3
    _, ends, data = images.buffers()
    stops = np.frombuffer(ends, np.int32)[images.offset : images.offset + len(images) + 1]
    wrong = np.flatnonzero(np.diff(stops) != num_bytes)
    if len(wrong):
        found = int(stops[wrong[0] + 1] - stops[wrong[0]])
        what = f"the image has {found} bytes, {height_px} x {width_px} x 3 expected"
        raise DataError("E-DATA-023", what, where=f"sample {ids[wrong[0]]}", todo=_AGAIN)
    flat = np.frombuffer(data, np.uint8, int(stops[-1] - stops[0]), int(stops[0]))
    return flat.reshape(len(images), height_px, width_px, 3)


def whole_column(table: pa.Table, name: str) -> pa.Array:
    """Return a column as one array; a copy only where it has several chunks."""
    column = table[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def image_bytes(images: pa.Array) -> Iterator[memoryview]:
    """Yield the bytes of each image of a column, without a copy."""
    _, ends, data = images.buffers()
    stops = np.frombuffer(ends, np.int32)[images.offset : images.offset + len(images) + 1].tolist()
    view = memoryview(data if data is not None else b"")
    for start, stop in itertools.pairwise(stops):
        yield view[start:stop]


def _wrong_sample(table: pa.Table) -> str | None:
    """Return the first sample whose image does not have its hash."""
    images = image_bytes(whole_column(table, "image"))
    for row, (image, expected) in enumerate(zip(images, table["sha256"].to_pylist(), strict=True)):
        if hashlib.sha256(image).hexdigest() != expected:
            return str(table["id"][row])
    return None


def changed_sample(data: bytes) -> str | None:
    """Return the sample whose image changed in a damaged shard, if it can be found.

    Arrow may crash on such a file: see `pipeline.dataset.damage`.
    """
    try:
        return _wrong_sample(parse_plain(data, ""))
    except DataError:
        return None


def parse_plain(data: bytes, uri: str, schema: pa.Schema = _SCHEMA) -> pa.Table:
    """Return the table of a Parquet file if it looks as written here, else DataError."""
    if data[:4] != b"PAR1":
        raise _no_parquet(uri)
    _check_footer(io.BytesIO(data), uri)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        if not file.schema_arrow.equals(schema):
            raise DataError(
                "E-DATA-024", "the shard has unexpected columns", where=uri, todo=_AGAIN
            )
        _check_plain(file.metadata, uri)
        return file.read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        what = f"the shard cannot be parsed: {error!s:.200}"
        raise DataError("E-DATA-025", what, where=uri, todo=_AGAIN) from error


def _check_footer(source: BinaryIO, uri: str) -> None:
    try:
        found = footer(source)
    except ValueError:
        raise _no_parquet(uri) from None
    if b"ARROW:" in found:
        raise DataError("E-DATA-020", "the shard embeds an Arrow schema", where=uri, todo=_AGAIN)


def _no_parquet(uri: str) -> DataError:
    return DataError("E-DATA-019", "the shard is not a Parquet file", where=uri, todo=_AGAIN)


def _check_plain(metadata: pq.FileMetaData, uri: str) -> None:
    # Compressed or dictionary-coded columns could claim far more memory than the file has.
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            is_plain = set(column.encodings) <= {"PLAIN", "RLE"}
            if column.compression != "UNCOMPRESSED" or not is_plain:
                what = "the shard is compressed or dictionary-coded"
                raise DataError("E-DATA-026", what, where=uri, todo=_AGAIN)
