"""Parquet files as this program writes them, and a look at a footer before Arrow parses it."""

from __future__ import annotations

import io
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

_MAGIC = b"PAR1"
_MAX_PLAIN_FOOTER_BYTES = 64 * 1024


def plain_bytes(table: pa.Table) -> bytes:
    """Return a table as a Parquet file whose bytes depend on its rows only.

    No compression (images hardly shrink, and no codec version enters), no dictionary, no
    statistics, one row group, no embedded Arrow schema.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=len(table),
        version="2.6",
        data_page_version="1.0",
        compression="NONE",
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def plain_columns(source: BinaryIO) -> tuple[str, ...] | None:
    """Return the names of the columns of a file of `plain_bytes`; None for any other file.

    Only its footer is read. Other programs leave metadata of their own in it.
    """
    try:
        if b"ARROW:" in footer(source, max_bytes=_MAX_PLAIN_FOOTER_BYTES):
            return None
        metadata = pq.read_metadata(source)
    except (pa.ArrowException, OSError, ValueError):
        return None
    schema = metadata.schema
    return None if metadata.metadata else tuple(schema.column(n).path for n in range(len(schema)))


def footer(source: BinaryIO, *, max_bytes: int | None = None) -> bytes:
    """Return the metadata at the end of a file, and seek back to its beginning.

    An Arrow schema in it may name extension types, whose loading can run code: look for one before
    Arrow parses the file.

    Raises:
        ValueError: not a Parquet file, or a footer of more than `max_bytes`.
    """
    size = source.seek(0, io.SEEK_END)
    source.seek(max(0, size - 8))
    tail = source.read(8)
    num_bytes = int.from_bytes(tail[:4], "little")
    most = size - 12 if max_bytes is None else min(size - 12, max_bytes)
    if tail[4:] != _MAGIC or num_bytes > most:
        raise ValueError("it is not a Parquet file")
    source.seek(size - 8 - num_bytes)
    found = source.read(num_bytes)
    source.seek(0)
    return found
