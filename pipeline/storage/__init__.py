"""Bytes at a URI: the only module through which the pipeline reads and writes storage.

A URI is a local path, `file:///path`, or `s3://bucket/key`. Both kinds keep the same promises:

- `write_bytes` publishes the whole object or nothing; an object that was there stays intact until
  the new one is complete, also when the writer is killed;
- a failure is a StorageError that names the URI and what to do next;
- waiting is bounded: S3 answers 500, 503 and timeouts are retried until a deadline, 403 and 404
  never.

Credentials and endpoint of S3 come from the environment only: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL (or any other source
that botocore knows, such as an instance role).
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import posixpath
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self
from urllib.parse import quote

from pipeline.errors import DataError, StorageError
from pipeline.storage import causes, place
from pipeline.storage.local import LocalAppender, LocalStore
from pipeline.storage.retries import RETRIES
from pipeline.storage.scan import ScanPage, ScanPart

_MISSING = {"E-STORAGE-370", causes.NO_OBJECT.id}


class Store(Protocol):
    """Operations of one kind of storage; every method takes a whole URI."""

    def read(self, uri: str, max_bytes: int | None = None) -> bytes: ...  # noqa: D102
    def read_range(self, uri: str, start: int, stop: int) -> bytes: ...  # noqa: D102
    def write(self, uri: str, data: bytes) -> None: ...  # noqa: D102
    def exists(self, uri: str) -> bool: ...  # noqa: D102
    def children(self, uri: str) -> dict[str, int | None]: ...  # noqa: D102
    def tree(self, uri: str) -> dict[str, int]: ...  # noqa: D102
    def scan(self, uri: str, part: ScanPart, max_names: int) -> ScanPage: ...  # noqa: D102
    def delete_tree(self, uri: str) -> None: ...  # noqa: D102
    def remove_empty(self, uri: str) -> None: ...  # noqa: D102
    def check_writable(self, uri: str) -> None: ...  # noqa: D102
    def size(self, uri: str) -> int: ...  # noqa: D102
    def open(self, uri: str) -> BinaryIO: ...  # noqa: D102


def _local_path(uri: str) -> Path | None:
    """Return the path of a local place, None for S3; refuse what is neither."""
    try:
        return place.local_path(uri) if place.parse(uri).kind == "local" else None
    except place.FormError as error:
        todo = f"write {place.KNOWN}"
        raise StorageError("E-STORAGE-001", str(error), where=uri, todo=todo) from None


def _store(uri: str) -> Store:
    if _local_path(uri) is not None:
        return LocalStore()
    from pipeline.storage.s3 import ObjectStore  # s3fs is slow to import and often unneeded

    return ObjectStore()


def join(root: str, *parts: str) -> str:
    """Append `parts` to `root`, one slash between; an empty part is skipped.

    Parts are plain names: below file:// they are quoted, so that `a%20b` stays what it is.
    """
    kept = [part.strip("/") for part in parts if part.strip("/")]
    if not kept:
        return root
    if root.startswith("file://"):
        kept = [quote(part) for part in kept]
    return "/".join([root.rstrip("/"), *kept])


def absolute(uri: str) -> str:
    """Make a local path or file:// URI absolute; leave other URIs as they are."""
    path = _local_path(uri)
    if path is None:
        return uri
    try:
        return str(path.resolve())
    except RuntimeError:  # links that lead round in a circle, which the first use reports
        return str(path.absolute())


def read_bytes(uri: str, *, max_bytes: int | None = None) -> bytes:
    """Read the whole object. Missing, unreadable or unreachable raises StorageError.

    With `max_bytes` no more than one byte beyond it is fetched: a longer answer says that the
    object is too large, at a bounded price.
    """
    return _store(uri).read(uri, max_bytes)


def read_range(uri: str, start: int, stop: int) -> bytes:
    """Read bytes start..stop-1 of an object, fewer at its end; 0 <= start < stop."""
    return _store(uri).read_range(uri, start, stop)


def is_missing(error: StorageError) -> bool:
    """Return whether a call failed because there is no such file or object, in a bucket that is."""
    return error.id in _MISSING


def num_retries() -> int:
    """Count the storage calls that this process tried again since it started."""
    return sum(RETRIES.values())


def write_bytes(uri: str, data: bytes) -> None:
    """Publish `data` at `uri`, whole or not at all; parent folders are made as needed.

    Local: temporary file in the same folder, fsync, rename, fsync of the folder. S3: one put.
    """
    _store(uri).write(uri, data)


def exists(uri: str) -> bool:
    """Return whether an object or a non-empty folder is at `uri`; unreachable storage raises."""
    return _store(uri).exists(uri)


def list_names(uri: str) -> list[str]:
    """List the names of a folder's immediate children, sorted; empty without a folder.

    Temporary files that a killed writer left behind are not listed.
    """
    return sorted(_store(uri).children(uri))


def list_sizes(uri: str) -> dict[str, int]:
    """Return sizes in bytes of the objects immediately in a folder, sorted by name."""
    children = _store(uri).children(uri)
    return {name: size for name, size in sorted(children.items()) if size is not None}


def list_tree(uri: str) -> dict[str, int]:
    """Return sizes in bytes of all objects below a folder by relative name, sorted."""
    return dict(sorted(_store(uri).tree(uri).items()))


def scan(uri: str, part: ScanPart | None = None, *, max_names: int = 20_000) -> ScanPage:
    """List one part of the objects below a folder; about `max_names` of them, the rest as parts.

    Unlike `list_tree` this can be shared out: parts are disjoint and complete, in arbitrary order.
    """
    return _store(uri).scan(uri, part or ScanPart(), max_names)


def delete_tree(uri: str) -> None:
    """Delete an object or a folder with all below it; nothing there is no error."""
    _store(uri).delete_tree(uri)


def remove_empty(uri: str) -> None:
    """Remove a folder, and those below it, as far as they are empty; files stay where they are."""
    _store(uri).remove_empty(uri)


def check_writable(uri: str) -> None:
    """Refuse a folder in which this process may make nothing; nothing is made there.

    Raises:
        StorageError: with the cause that a write would have met, as far as it can be known.
    """
    _store(uri).check_writable(uri)


def size_bytes(uri: str) -> int:
    """Return the size of one object in bytes; a missing object raises StorageError."""
    return _store(uri).size(uri)


def open_readable(uri: str) -> BinaryIO:
    """Open a seekable binary file; close it. A missing object raises StorageError."""
    return _store(uri).open(uri)


def safe_name(name: str) -> str:
    """Return `name` if it is relative, normalised and stays below its root, else raise DataError.

    Names in manifests come from storage that others may write to: `..`, absolute paths,
    backslashes, schemes and control characters are refused.
    """
    broken = (
        not name
        or len(name) > 1024
        or posixpath.isabs(name)
        or posixpath.normpath(name) != name
        or name in (".", "..")
        or name.startswith(("../", "~"))
        or any(char in "\\:" or ord(char) < 32 or ord(char) == 127 for char in name)
    )
    if broken:
        raise DataError(
            "E-DATA-089",
            "a name leads outside its folder or is not in plain form",
            where=repr(name[:200]),
            todo="do not use this data set; make it again with the ingest stage",
        )
    return name


def to_json(value: object, *, indent: int | None = None) -> bytes:
    """Return a value as JSON text with a final line break.

    NaN and infinities, which JSON lacks, become null. Characters that UTF-8 lacks are escaped.
    """
    text = json.dumps(_finite(value), allow_nan=False, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def to_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Return a table as CSV with a line of names; None is an empty cell."""
    stream = io.StringIO()
    plain = csv.writer(stream, lineterminator="\n")
    # Before Python 3.13 a carriage return alone is not quoted, and ends the line for readers.
    quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in itertools.chain([header], rows):
        has_return = any("\r" in cell for cell in row if isinstance(cell, str))
        (quoted if has_return else plain).writerow(row)
    return stream.getvalue().encode()


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


class LineLog:
    """Log of JSON objects, one a line, at `uri`; use as a context manager.

    Lines already there are kept; a torn last line (a killed writer) is cut off on opening.
    Local files get every line at once. An object store cannot append, so there the whole object
    is put again, at most every `interval_s` seconds and on close: a killed process loses at most
    the lines of one interval. One thread appends; others may flush.

    Args:
        uri: where the record is.
        interval_s: seconds between two puts to an object store.
    """

    def __init__(self, uri: str, *, interval_s: float = 10.0) -> None:
        self._uri, self._interval_s = uri, interval_s
        self._local = None if _local_path(uri) is None else LocalAppender(uri)
        self._content = bytearray()
        self._dirty, self._putting = False, threading.Lock()
        if self._local is None and exists(uri):
            old = read_bytes(uri)
            self._content += old[: old.rfind(b"\n") + 1]
        self._put_at_s = time.monotonic()

    def append(self, record: Mapping[str, object]) -> None:
        """Add one line. NaN and infinities, which JSON lacks, are written as null."""
        line = to_json(record)
        if self._local is not None:
            self._local.append(line)
            return
        self._content += line
        self._dirty = True
        if time.monotonic() - self._put_at_s >= self._interval_s:
            self._put()

    def flush(self) -> None:
        """Publish what is pending now."""
        if self._local is None:
            self._put()

    def close(self) -> None:
        """Write what is pending; further calls do nothing."""
        if self._local is not None:
            self._local.close()
        else:
            self._put()

    def _put(self) -> None:
        with self._putting:  # an older state must not be put after a newer one
            if not self._dirty:
                return
            self._dirty = False  # before the copy: a line that comes now is put next time
            try:
                write_bytes(self._uri, bytes(self._content))
            except BaseException:
                self._dirty = True
                raise
            self._put_at_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
