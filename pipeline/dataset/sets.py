"""A set by its name: which rows of which shards are its images, in which order.

An image that two sets share is stored once, in the shards of the first of them in the manifest.
The others have an order file: for each of their images the shard and the row in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset.manifest import Manifest, SetInfo, SetName, ShardInfo
from pipeline.dataset.parquet import plain_bytes
from pipeline.errors import DataError

_SCHEMA = pa.schema(
    [pa.field("shard", pa.int32(), nullable=False), pa.field("row", pa.int32(), nullable=False)]
)
COLUMNS = tuple(_SCHEMA.names)


class Part(NamedTuple):
    """Part of a set in one shard.

    Attributes:
        shard: as in the manifest.
        rows_n: its rows that are in the set, ascending; None = all.
        places_n: their places in the set.
    """

    shard: ShardInfo
    rows_n: NDArray[np.int64] | None
    places_n: NDArray[np.int64]

    def taken(self, table: pa.Table) -> pa.Table:
        """Return the rows of the shard's table that are in the set."""
        return table if self.rows_n is None else table.take(pa.array(self.rows_n))


def parts_of(data_uri: str, manifest: Manifest, set_name: str) -> list[Part]:
    """Return the parts of a set, by shard; together they hold every place once.

    Raises:
        DataError: the order file is not what the manifest says it is.
        StorageError: it is missing or the storage does not answer.
    """
    sets: Mapping[Any, SetInfo] = manifest.sets
    info = sets[set_name]
    if info.order is None:
        starts = np.cumsum([0, *(shard.rows for shard in info.shards)])
        return [
            Part(shard, None, np.arange(start, start + shard.rows))
            for shard, start in zip(info.shards, starts.tolist(), strict=False)
        ]
    shards = list(manifest.shards())
    shard_N, row_N = _read_order(data_uri, info, info.order, shards)
    by_shard = np.lexsort((row_N, shard_N))
    numbers, first = np.unique(shard_N[by_shard], return_index=True)
    parts = []
    for number, places_n in zip(numbers.tolist(), np.split(by_shard, first[1:]), strict=True):
        parts.append(Part(shards[number], row_N[places_n], places_n))
    return parts


def places_in(
    data_uri: str, manifest: Manifest, set_name: str, other: str
) -> NDArray[np.int64] | None:
    """Return for each image of a set its place in another set of the same images, stored once.

    Returns:
        (N,); None where the sets do not hold the same images, or each stores its own.

    Raises:
        DataError, StorageError: as `parts_of`.
    """
    sets: Mapping[Any, SetInfo] = manifest.sets
    if sets[set_name].order is None or sets[other].order is not None:
        return None
    if sets[set_name].rows != sets[other].rows:
        return None
    first = {part.shard.name: part.places_n[0] for part in parts_of(data_uri, manifest, other)}
    places_N = np.full(sets[set_name].rows, -1, np.int64)
    for part in parts_of(data_uri, manifest, set_name):
        if part.rows_n is not None and part.shard.name in first:
            places_N[part.places_n] = first[part.shard.name] + part.rows_n
    is_all = np.array_equal(np.sort(places_N), np.arange(len(places_N)))
    return places_N if is_all else None


def write_order(
    data_uri: str, set_name: SetName, shard_N: NDArray[np.int64], row_N: NDArray[np.int64]
) -> ShardInfo:
    """Write the order file of a set and return what the manifest says of it.

    Args:
        data_uri: root of the data set.
        set_name: the set.
        shard_N: for each image of the set the number of its shard, among all of the manifest.
        row_N: its row there.
    """
    table = pa.table([pa.array(shard_N, pa.int32()), pa.array(row_N, pa.int32())], schema=_SCHEMA)
    data, name = plain_bytes(table), f"shards/{set_name}-order.parquet"
    storage.write_bytes(storage.join(data_uri, name), data)
    return ShardInfo(name, len(table), len(data), hashlib.sha256(data).hexdigest())


def _read_order(
    data_uri: str, info: SetInfo, order: ShardInfo, shards: list[ShardInfo]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    uri = storage.join(data_uri, storage.safe_name(order.name))
    data = storage.read_bytes(uri)
    problem = None
    if hashlib.sha256(data).hexdigest() != order.sha256:
        problem = "its hash differs from the manifest's"
    else:
        # The hash is the manifest's: it is the file that ingest wrote.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        shard_N, row_N = (table[n].to_numpy().astype(np.int64) for n in ("shard", "row"))
        rows = np.array([shard.rows for shard in shards])
        if len(table) != info.rows or shard_N.min() < 0 or shard_N.max() >= len(shards):
            problem = "it does not fit the sets of the manifest"
        elif row_N.min() < 0 or (row_N >= rows[shard_N]).any():
            problem = "it names rows that no shard has"
    if problem is not None:
        raise DataError(
            "E-DATA-305",
            f"the order file of a set cannot be used: {problem}",
            where=uri,
            todo="restore the file, or delete the data set's folder and run the ingest stage again",
        )
    return shard_N, row_N
