"""S3 and its look-alikes behind pipeline.storage: whole-object puts, bounded retries, words.

s3fs is used for its calls only: its own retries and botocore's are off, so that one loop here
decides what is tried again (5xx, throttling, timeouts, lost connections, bodies cut short), how
long (a deadline), and what never is (403, 404, missing credentials). Tries after the first are
counted: `RETRIES`.

Shards are read by s3fs as well. pyarrow's S3 client was measured beside it (`python -m
benchmarks.s3_reads`, 64 MiB objects, Ceph 16 on the same two busy cores, n = 5): s3fs 227 MB/s
(172-239) at 0.82 CPU s/GB, pyarrow 191 MB/s (177-233) at 1.13; with four threads 153 and 160. It is
no faster, its number of tries cannot be set once it was pickled, and it has no total deadline.

Integrity: a put carries Content-MD5, so bytes altered on the way are refused by the store. The
newer CRC checksums are sent only where S3 demands them: stores of before 2025 (Ceph, MinIO) do not
know them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO, TypeVar, cast

import aiohttp
import botocore.exceptions as boto
import s3fs
from fsspec.asyn import sync

from pipeline.errors import StorageError
from pipeline.storage.ranged_file import RangedFile
from pipeline.storage.retries import RETRIES
from pipeline.storage.s3_errors import error_code, http_status, is_passing, words
from pipeline.storage.scan import ScanPage, ScanPart

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10.0, 30.0
_TRY_S = 1800.0  # a server that sends a byte now and then never trips the read timeout
_ONE_PUT_BYTES = 5 * 2**30  # what S3 takes at once
_BUFFER_BYTES = 2**20
_AFTER_ALL = "\U0010ffff"  # no later character exists: the end of all keys with a prefix

_retries_lock = threading.Lock()


class ObjectStore:
    """pipeline.storage.Store on S3.

    Args:
        deadline_s: no call is started again once this many seconds have passed since its first
            try.
        read_timeout_s: one try ends after this many seconds without a byte.
        try_s: one try ends after this many seconds in all.
    """

    def __init__(
        self,
        *,
        deadline_s: float = 60.0,
        read_timeout_s: float = _READ_TIMEOUT_S,
        try_s: float = _TRY_S,
    ) -> None:
        self._deadline_s, self._read_timeout_s, self._try_s = deadline_s, read_timeout_s, try_s

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        """Read the whole object in one request: ranges side by side could mix two versions."""
        limit = {} if max_bytes is None else {"Range": f"bytes=0-{max_bytes}"}

        async def get(fs: Any) -> bytes:
            try:
                return await _get(fs, uri, **limit)
            except (OSError, boto.ClientError) as error:
                if limit and http_status(error) == 416:  # an empty object has no first byte
                    return b""
                raise

        return self._call(uri, "read", get)

    def read_range(self, uri: str, start: int, stop: int, etag: str | None = None) -> bytes:
        """Read bytes start..stop-1; with `etag`, of that version of the object only."""
        options = {
            "Range": f"bytes={start}-{stop - 1}",
            **({} if etag is None else {"IfMatch": etag}),
        }
        return self._call(uri, "read", lambda fs: _get(fs, uri, **options))

    def write(self, uri: str, data: bytes) -> None:
        """Write by one put, whole or not at all; above 5 GB in parts, which a kill leaves."""

        async def put(fs: Any) -> None:
            if len(data) >= _ONE_PUT_BYTES:
                await fs._pipe_file(uri, data, chunksize=_ONE_PUT_BYTES // 10)
                return
            digest = hashlib.md5(data, usedforsecurity=False).digest()
            content_md5 = base64.b64encode(digest).decode()
            await _s3(fs, "put_object", uri, Body=data, ContentMD5=content_md5)

        self._call(uri, "write", put)

    def exists(self, uri: str) -> bool:
        """Return whether an object, or a prefix with something below, is there."""

        async def look(fs: Any) -> bool:
            if _key(uri):
                try:
                    await _s3(fs, "head_object", uri)
                    return True
                except FileNotFoundError:
                    pass
            return bool(await _list_keys(fs, uri, prefix=_folder_key(uri), MaxKeys=1))

        return self._call(uri, "look up", look)

    def children(self, uri: str) -> dict[str, int | None]:
        """Return immediate children: size in bytes of objects, None for prefixes."""
        found: dict[str, int | None] = {}

        async def list_them(fs: Any) -> list[Any]:
            return cast(list[Any], await fs._ls(uri, detail=True, refresh=True))

        for entry in self._listing(uri, list_them):
            is_folder = entry["type"] == "directory"
            found[entry["name"].rstrip("/").rsplit("/", 1)[-1]] = (
                None if is_folder else int(entry["size"])
            )
        return found

    def tree(self, uri: str) -> dict[str, int]:
        """List all objects below the prefix."""
        prefix = _path(uri).rstrip("/") + "/"

        async def find(fs: Any) -> list[Any]:
            return list((await fs._find(uri, detail=True, refresh=True)).values())

        return {
            entry["name"].removeprefix(prefix): int(entry["size"])
            for entry in self._listing(uri, find)
            if entry["name"].startswith(prefix) and not entry["name"].endswith("/")
        }

    def scan(self, uri: str, part: ScanPart, max_names: int) -> ScanPage:
        """List keys below the prefix in order; cut the rest by the next character of the key."""
        root = _folder_key(uri)
        names: list[str] = []
        sizes: list[int] = []
        prefix, after = root + part.prefix, root + part.after if part.after else ""

        async def page(fs: Any, after: str) -> list[tuple[str, int]]:
            return await _list_keys(fs, uri, prefix=prefix, StartAfter=after)

        while len(names) < max_names:
            found = self._call(uri, "list", lambda fs: page(fs, after))  # noqa: B023
            if not found:
                return ScanPage(names, sizes, [])
            after = found[-1][0]
            objects = [(key, size) for key, size in found if not key.endswith("/")]
            names += [key.removeprefix(root) for key, _ in objects]
            sizes += [size for _, size in objects]
        return ScanPage(names, sizes, self._rest(uri, root, part.prefix, after.removeprefix(root)))

    def _rest(self, uri: str, root: str, prefix: str, after: str) -> list[ScanPart]:
        """Return the keys beyond `after` as parts, one for each character after the prefix."""
        if after == prefix:
            return [ScanPart(prefix, after)]
        parts = [ScanPart(after[: len(prefix) + 1], after)]
        while True:
            beyond = root + parts[-1].prefix + _AFTER_ALL

            async def first(fs: Any, beyond: str = beyond) -> list[tuple[str, int]]:
                return await _list_keys(fs, uri, prefix=root + prefix, StartAfter=beyond, MaxKeys=1)

            found = self._call(uri, "list", first)
            if not found:
                return parts
            name = found[0][0].removeprefix(root)
            parts.append(ScanPart(name[: len(prefix) + 1], ""))

    def delete_tree(self, uri: str) -> None:
        """Delete the object and all below the prefix."""

        async def delete(fs: Any) -> None:
            try:
                await fs._rm(uri, recursive=True)
            except FileNotFoundError as error:
                if error_code(error) == "NoSuchBucket":
                    raise

        self._call(uri, "delete", delete)

    def size(self, uri: str) -> int:
        """Return the size of the object in bytes."""
        return self._head(uri)[0]

    def open(self, uri: str) -> BinaryIO:
        """Open the object as a seekable file that fetches ranges of one version."""
        size, etag = self._head(uri)

        def read(start: int, stop: int) -> bytes:
            return self.read_range(uri, start, stop, etag)

        return cast(BinaryIO, io.BufferedReader(RangedFile(read, size), _BUFFER_BYTES))

    def _head(self, uri: str) -> tuple[int, str]:
        async def head(fs: Any) -> tuple[int, str]:
            found = await _s3(fs, "head_object", uri)
            return int(found["ContentLength"]), str(found["ETag"])

        return self._call(uri, "look up", head)

    def _listing(
        self, uri: str, list_it: Callable[[Any], Awaitable[list[Any]]]
    ) -> list[dict[str, Any]]:
        try:
            entries = self._call(uri, "list", list_it)
        except StorageError as error:
            cause = error.__cause__
            if isinstance(cause, FileNotFoundError) and error_code(cause) != "NoSuchBucket":
                return []
            raise
        # Some stores keep an empty object for the folder itself; it is not one of its children.
        itself = _path(uri).rstrip("/")
        return [entry for entry in entries if entry["name"].rstrip("/") != itself]

    def _call(self, uri: str, action: str, call: Callable[[Any], Awaitable[T]]) -> T:
        """Run `call`, again after passing failures until the deadline, and tell lasting ones."""
        began_s, pause_s, num_tries = time.monotonic(), _FIRST_PAUSE_S, 0
        while True:
            num_tries += 1
            try:
                fs = _filesystem(self._read_timeout_s)
                return cast(T, sync(fs.loop, _bounded, call, fs, self._try_s))
            except (OSError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError) as error:
                waited_s = time.monotonic() - began_s
                if not is_passing(error) or waited_s + pause_s > self._deadline_s:
                    what, todo = words(error, uri, num_tries, waited_s)
                    raise StorageError(
                        "E-STORAGE-003", f"could not {action}: {what}", where=uri, todo=todo
                    ) from error
            with _retries_lock:
                RETRIES[action] += 1
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


async def _bounded(call: Callable[[Any], Awaitable[T]], fs: Any, try_s: float) -> T:
    return await asyncio.wait_for(call(fs), try_s)


async def _s3(fs: Any, method: str, uri: str, **options: Any) -> dict[str, Any]:
    bucket = _path(uri).partition("/")[0]
    found = await fs._call_s3(method, Bucket=bucket, Key=_key(uri), **options)
    return cast(dict[str, Any], found)


async def _get(fs: Any, uri: str, **options: Any) -> bytes:
    response = await _s3(fs, "get_object", uri, **options)
    async with response["Body"] as body:
        return cast(bytes, await body.read())


async def _list_keys(fs: Any, uri: str, *, prefix: str, **options: Any) -> list[tuple[str, int]]:
    """List one page of keys with their sizes, in key order."""
    bucket = _path(uri).partition("/")[0]
    page = await fs._call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **options)
    return [(str(entry["Key"]), int(entry["Size"])) for entry in page.get("Contents", [])]


def _filesystem(read_timeout_s: float) -> Any:
    fs = s3fs.S3FileSystem(
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        use_listings_cache=False,
        config_kwargs={
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": read_timeout_s,
            "request_checksum_calculation": "when_required",
            "max_pool_connections": 32,
        },
    )
    fs.retries = 1
    return fs


def _path(uri: str) -> str:
    return uri.removeprefix("s3://")


def _key(uri: str) -> str:
    return _path(uri).partition("/")[2]


def _folder_key(uri: str) -> str:
    key = _key(uri).rstrip("/")
    return key + "/" if key else ""
