"""Image bytes of some rows of an index, from files, tables, archives or memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np

from pipeline import storage
from pipeline.dataset.formats import RejectedImage
from pipeline.errors import DataError, StorageError
from pipeline.ingest.sources import names as plain
from pipeline.ingest.sources.index import Containers, ImageIndex
from pipeline.ingest.sources.splits import Indices

Content: TypeAlias = bytes | RejectedImage

# An object store answers after a while, but many at once; so many images are held in memory.
_NUM_FETCHED = 16


def read_images(
    index: ImageIndex, rows: Indices, *, max_bytes: int
) -> Iterator[tuple[int, Content]]:
    """Yield position in `rows` and the stored content in arbitrary order, each once.

    Args:
        index: says where the images are; its root is absolute.
        rows: rows of the index.
        max_bytes: larger images are rejected, and no more than that is read of a file.

    Raises:
        StorageError: an image cannot be read.
        DataError: a table or an archive is broken.
    """
    if index.pixels is not None:
        for position, row in enumerate(rows):
            yield position, index.pixels[row].tobytes()
    elif index.containers is None:
        yield from _from_files(index, rows, max_bytes)
    else:
        yield from _from_containers(index, index.containers, rows, max_bytes)


def _from_files(index: ImageIndex, rows: Indices, max_bytes: int) -> Iterator[tuple[int, Content]]:
    assert index.root is not None
    root, known = index.root, not index.may_be_missing

    def read(name: str, num_bytes: int) -> Content:
        if known and num_bytes > max_bytes:  # known from the listing: do not even fetch it
            return _too_large(num_bytes, max_bytes)
        try:
            data = storage.read_bytes(plain.address(root, name), max_bytes=max_bytes)
        except StorageError as error:
            if index.may_be_missing and storage.is_missing(error):
                return RejectedImage("missing", "there is no such file")
            raise
        return _too_large(len(data), max_bytes) if len(data) > max_bytes else data

    names, sizes = index.ids_of(rows), index.num_bytes_N[rows].tolist()
    with ThreadPoolExecutor(_NUM_FETCHED) as pool:
        for start in range(0, len(names), _NUM_FETCHED):
            part = slice(start, start + _NUM_FETCHED)
            yield from enumerate(pool.map(read, names[part], sizes[part]), start)


def _from_containers(
    index: ImageIndex, containers: Containers, rows: Indices, max_bytes: int
) -> Iterator[tuple[int, Content]]:
    from pipeline.ingest.sources import parquet

    assert index.root is not None
    for number in np.unique(containers.file_N[rows]):
        uri = plain.address(index.root, containers.names[number])
        positions = np.flatnonzero(containers.file_N[rows] == number)
        if containers.kind == "tar":
            yield from _from_tar(index, containers, uri, rows, positions, max_bytes)
            continue
        places = containers.place_N[rows[positions]]
        for position, data in parquet.read_rows(uri, containers.image_column, places):
            too_large = len(data) > max_bytes
            yield int(positions[position]), _too_large(len(data), max_bytes) if too_large else data


def _from_tar(
    index: ImageIndex,
    containers: Containers,
    uri: str,
    rows: Indices,
    positions: Indices,
    max_bytes: int,
) -> Iterator[tuple[int, Content]]:
    """Read each block of neighbours at once, which is one request to an object store."""
    blocks = containers.block_N[rows[positions]]
    for block in np.unique(blocks):
        fetched = []
        for position in positions[blocks == block].tolist():
            num_bytes = int(index.num_bytes_N[rows[position]])
            if num_bytes > max_bytes:
                yield position, _too_large(num_bytes, max_bytes)
            elif num_bytes == 0:
                yield position, b""
            else:
                fetched.append((position, int(containers.place_N[rows[position]]), num_bytes))
        if not fetched:
            continue
        first = min(start for _, start, _ in fetched)
        stop = max(start + num_bytes for _, start, num_bytes in fetched)
        data = storage.read_range(uri, first, stop)
        if len(data) < stop - first:
            what, todo = "the archive became shorter while it was read", "restore it, then repeat"
            raise DataError("E-DATA-067", what, where=uri, todo=todo)
        for position, start, num_bytes in fetched:
            yield position, data[start - first : start - first + num_bytes]


def _too_large(num_bytes: int, max_bytes: int) -> RejectedImage:
    shown = f"{num_bytes} bytes" if num_bytes != max_bytes + 1 else "more bytes than allowed"
    return RejectedImage("too_many_bytes", f"{shown}, limit {max_bytes}")
