"""One Parquet file of vectors: as plain as a shard of images, checked as strictly on reading.

Columns: row int64 (place in the set), id string, vector list of float32 or float16, sha256 string
(hex, of the image as stored), label int32 (null = unlabelled).

Shapes: n images of one file, F numbers a vector.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset.parquet import plain_bytes
from pipeline.dataset.shards import UNLABELLED, labels, parse_plain
from pipeline.errors import DataError
from pipeline.record.embedding import DType, VectorShard

_ARROW = {"float32": pa.float32(), "float16": pa.float16()}
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Vectors:
    """Vectors of n images.

    Args:
        rows: int64 (n,), places in the set.
        ids: names of the samples.
        values_nF: float32.
        hashes: hex SHA-256 of the stored images.
        labels_n: int64, -1 for unlabelled.
    """

    rows: NDArray[np.int64]
    ids: list[str]
    values_nF: NDArray[np.float32]
    hashes: list[str]
    labels_n: NDArray[np.int64]


def schema(dtype: DType) -> pa.Schema:
    """Return the columns of a file."""
    element = pa.field("element", _ARROW[dtype], nullable=False)
    return pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("id", pa.string(), nullable=False),
            pa.field("vector", pa.list_(element), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("label", pa.int32()),
        ]
    )


def name_of(first_row: int) -> str:
    """Return the name of the file whose first image has this place in the set."""
    return f"vectors-{first_row:09d}.parquet"


def write_vectors(folder: str, vectors: Vectors, dtype: DType) -> VectorShard:
    """Write one file, whole or not at all, and return what the manifest says of it.

    Raises:
        DataError: a number is not finite, or too large for float16.
    """
    values = vectors.values_nF
    limit = _LARGEST if dtype == "float16" else np.inf
    good = np.isfinite(values).all(axis=1) & (np.abs(values) <= limit).all(axis=1)
    if not good.all():
        raise DataError(
            "E-DATA-660",
            f"{int((~good).sum())} vectors hold numbers that {dtype} cannot, first that of "
            f"{vectors.ids[int(np.argmin(good))]}",
            where=folder,
            todo="use --dtype float32, and weights of a training that did not diverge",
        )
    ends = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    numbers = pa.array(values.astype(dtype).ravel())
    kinds = schema(dtype)
    table = pa.table(
        [
            pa.array(vectors.rows, pa.int64()),
            pa.array(vectors.ids, pa.string()),
            pa.ListArray.from_arrays(pa.array(ends), numbers, type=kinds.field("vector").type),
            pa.array(vectors.hashes, pa.string()),
            pa.array(vectors.labels_n, pa.int32(), mask=vectors.labels_n == UNLABELLED),
        ],
        schema=kinds,
    )
    data, first_row = plain_bytes(table), int(vectors.rows[0])
    storage.write_bytes(storage.join(folder, name_of(first_row)), data)
    return _described(data, first_row, *values.shape)


def read_vectors(folder: str, shard: VectorShard, dtype: DType) -> Vectors:
    """Read one file of a finished embedding: its hash, its form and every number are checked.

    Raises:
        DataError: it is not what the manifest says it is.
        StorageError: it is missing or the storage does not answer.
    """
    uri = storage.join(folder, storage.safe_name(shard.name))
    data = storage.read_bytes(uri, max_bytes=shard.bytes)
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise _unusable(uri, "its hash differs from the manifest's")
    found = _parsed(data, uri, dtype)
    if found.values_nF.shape != (shard.rows, shard.dim) or found.rows[0] != shard.first_row:
        raise _unusable(uri, f"it holds other vectors than {shard.rows} of {shard.dim} numbers")
    return found


def kept_shard(folder: str, first_row: int, rows: NDArray[np.int64], dtype: DType) -> VectorShard:
    """Return what the manifest will say of a file that an interrupted stage left.

    Raises:
        DataError: it is broken, or of other images.
        StorageError: it is missing or the storage does not answer.
    """
    uri = storage.join(folder, name_of(first_row))
    data = storage.read_bytes(uri)
    found = _parsed(data, uri, dtype)
    if not np.array_equal(found.rows, rows):
        raise _unusable(uri, "it holds other images")
    return _described(data, first_row, *found.values_nF.shape)


def _described(data: bytes, first_row: int, num_rows: int, dim: int) -> VectorShard:
    return VectorShard(
        name=name_of(first_row),
        first_row=first_row,
        rows=num_rows,
        dim=dim,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _parsed(data: bytes, uri: str, dtype: DType) -> Vectors:
    try:
        table = parse_plain(data, uri, schema(dtype))
    except DataError as error:
        raise _unusable(uri, error.what) from error
    column = table["vector"].combine_chunks()
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(table) == 0 or len(lengths) != 1 or lengths[0] < 1:
        raise _unusable(uri, "its vectors have no common length")
    numbers = column.flatten().to_numpy(zero_copy_only=False)
    values = numbers.reshape(len(table), -1).astype(np.float32)
    if not np.isfinite(values).all():
        raise _unusable(uri, "a number is not finite")
    return Vectors(
        rows=table["row"].to_numpy(),
        ids=table["id"].to_pylist(),
        values_nF=values,
        hashes=table["sha256"].to_pylist(),
        labels_n=labels(table),
    )


def _unusable(uri: str, what: str) -> DataError:
    return DataError(
        "E-DATA-661",
        f"a file of vectors cannot be used: {what}",
        where=uri,
        todo="delete its folder and run the embed stage again",
    )
