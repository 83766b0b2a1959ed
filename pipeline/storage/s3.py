"""S3 and its look-alikes behind pipeline.storage: exact keys, whole puts, bounded retries, causes.

One loop here decides what is tried again (5xx, throttling, timeouts, lost connections, bodies cut
short), how long (a deadline), and what never is (403, 404, missing credentials). Tries after the
first are counted: `RETRIES`.

Shards are read this way as well. pyarrow's S3 client was measured beside it (`python -m
benchmarks.s3_reads`, 64 MiB objects, Ceph 16 on the same two busy cores, n = 5), when the same
client was still called by way of s3fs: 227 MB/s (172-239) at 0.82 CPU s/GB, pyarrow 191 MB/s
(177-233) at 1.13; with four threads 153 and 160. It is no faster, its number of tries cannot be set
once it was pickled, and it has no total deadline.

Integrity: a put carries Content-MD5, so bytes altered on the way are refused by the store. The
newer CRC checksums are sent only where S3 demands them: stores of before 2025 (Ceph, MinIO) do not
know them. Objects are deleted one by one: the call for many demands such a checksum, and reports
failures as a success.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO, TypeVar, cast

import botocore.exceptions as boto

from pipeline.storage import s3_client
from pipeline.storage.place import parse
from pipeline.storage.ranged_file import RangedFile
from pipeline.storage.retries import RETRIES
from pipeline.storage.s3_client import Client
from pipeline.storage.s3_errors import http_status, is_missing, is_passing, storage_error
from pipeline.storage.s3_requests import (
    FAILURES,
    Entry,
    delete_key,
    get,
    list_page,
    list_pages,
    object_of,
    put_parts,
    with_reason,
)  # fmt: skip
from pipeline.storage.scan import ScanPage, ScanPart

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_READ_TIMEOUT_S = 30.0
_TRY_S = 1800.0  # a server that sends a byte now and then never trips the read timeout
_ONE_PUT_BYTES = 5 * 2**30  # what S3 takes at once
_PART_BYTES = 512 * 2**20
_DELETES_AT_ONCE = 16
_BUFFER_BYTES = 2**20
_AFTER_ALL = "\U0010ffff"  # no later character exists: the end of all keys with a prefix
_CHECK_NAME = ".sdclr-write-check"

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
        """Return the whole object in one request: ranges side by side could mix two versions."""
        limit = {} if max_bytes is None else {"Range": f"bytes=0-{max_bytes}"}

        async def whole(client: Client) -> bytes:
            try:
                return await get(client, uri, **limit)
            except boto.ClientError as error:
                if limit and http_status(error) == 416:  # an empty object has no first byte
                    return b""
                raise

        return self._call(uri, "read", whole)

    def read_range(self, uri: str, start: int, stop: int, etag: str | None = None) -> bytes:
        """Return bytes start..stop-1; with `etag`, of that version of the object only."""
        options = {
            "Range": f"bytes={start}-{stop - 1}",
            **({} if etag is None else {"IfMatch": etag}),
        }
        return self._call(uri, "read", lambda client: get(client, uri, **options))

    def write(self, uri: str, data: bytes) -> None:
        """Put the whole object at once; parts, which a killed process leaves, only above 5 GB."""

        async def put(client: Client) -> None:
            if len(data) >= _ONE_PUT_BYTES:
                await put_parts(client, uri, data, _PART_BYTES)
                return
            digest = hashlib.md5(data, usedforsecurity=False).digest()
            content_md5 = base64.b64encode(digest).decode()
            await client.put_object(**object_of(uri), Body=data, ContentMD5=content_md5)

        self._call(uri, "write", put)

    def exists(self, uri: str) -> bool:
        """Return whether an object, or a prefix with something below, is there."""
        prefix = parse(uri).folder_key

        async def look(client: Client) -> bool:
            if parse(uri).key:
                try:
                    await client.head_object(**object_of(uri))
                    return True
                except boto.ClientError as error:
                    if http_status(error) != 404:  # the listing knows whether the bucket is missing
                        raise await with_reason(client, uri, error) from error
            # Some stores keep an empty object for the folder itself; it is nothing below it.
            page = await list_page(client, uri, Prefix=prefix, MaxKeys=2)
            return any(entry.key != prefix for entry in page.objects)

        return self._call(uri, "look up", look)

    def children(self, uri: str) -> dict[str, int | None]:
        """Return the immediate children: size in bytes of objects, None for prefixes."""
        prefix = parse(uri).folder_key

        async def list_them(client: Client) -> dict[str, int | None]:
            found: dict[str, int | None] = {}
            async for page in list_pages(client, uri, Prefix=prefix, Delimiter="/"):
                found |= {folder.removeprefix(prefix)[:-1]: None for folder in page.folders}
                found |= {entry.key.removeprefix(prefix): entry.size for entry in page.objects}
            found.pop("", None)
            return found

        return self._call(uri, "list", list_them)

    def tree(self, uri: str) -> dict[str, int]:
        """Return all objects below the prefix."""
        prefix = parse(uri).folder_key

        async def list_all(client: Client) -> dict[str, int]:
            return {
                entry.key.removeprefix(prefix): entry.size
                async for page in list_pages(client, uri, Prefix=prefix)
                for entry in page.objects
                if not entry.key.endswith("/")
            }

        return self._call(uri, "list", list_all)

    def scan(self, uri: str, part: ScanPart, max_names: int) -> ScanPage:
        """List keys below the prefix in order; the rest is cut by the next character of the key."""
        root = parse(uri).folder_key
        names: list[str] = []
        sizes: list[int] = []
        prefix, after = root + part.prefix, root + part.after if part.after else ""
        while len(names) < max_names:
            found = self._list(uri, Prefix=prefix, StartAfter=after)
            if not found:
                return ScanPage(names, sizes, [])
            after = found[-1].key
            objects = [entry for entry in found if not entry.key.endswith("/")]
            names += [entry.key.removeprefix(root) for entry in objects]
            sizes += [entry.size for entry in objects]
        return ScanPage(names, sizes, self._rest(uri, root, part.prefix, after.removeprefix(root)))

    def _rest(self, uri: str, root: str, prefix: str, after: str) -> list[ScanPart]:
        """Return the keys beyond `after` as parts, one for each character after the prefix."""
        if after == prefix:
            return [ScanPart(prefix, after)]
        parts = [ScanPart(after[: len(prefix) + 1], after)]
        while True:
            beyond = root + parts[-1].prefix + _AFTER_ALL
            found = self._list(uri, Prefix=root + prefix, StartAfter=beyond, MaxKeys=1)
            if not found:
                return parts
            name = found[0].key.removeprefix(root)
            parts.append(ScanPart(name[: len(prefix) + 1], ""))

    def delete_tree(self, uri: str) -> None:
        """Delete the object and all below the prefix: the keys that begin with it, no others."""
        bucket, key, prefix = parse(uri).bucket, parse(uri).key.rstrip("/"), parse(uri).folder_key
        if not key:
            raise ValueError("a whole bucket is never emptied")

        async def delete(client: Client) -> None:
            await delete_key(client, bucket, key)
            async for page in list_pages(client, uri, Prefix=prefix):
                keys = [entry.key for entry in page.objects]
                for start in range(0, len(keys), _DELETES_AT_ONCE):
                    some = keys[start : start + _DELETES_AT_ONCE]
                    await asyncio.gather(*(delete_key(client, bucket, each) for each in some))

        self._call(uri, "delete", delete)

    def remove_empty(self, uri: str) -> None:
        """Do nothing: an object store has no folders."""

    def check_writable(self, uri: str) -> None:
        """Refuse a prefix below which no object may be made; none is made.

        An upload in parts is begun and taken back, which shows nothing to anybody. A store that
        does not know such uploads is believed.
        """
        bucket, key = parse(uri).bucket, parse(uri).folder_key + _CHECK_NAME

        async def begin(client: Client) -> None:
            try:
                begun = await client.create_multipart_upload(Bucket=bucket, Key=key)
            except boto.ClientError as error:
                if is_missing(error) or http_status(error) in (405, 501):
                    return
                raise
            await client.abort_multipart_upload(
                Bucket=bucket, Key=key, UploadId=begun.get("UploadId", "")
            )

        self._call(uri, "write", begin)

    def size(self, uri: str) -> int:
        """Return the size of the object in bytes."""
        return self._size_and_etag(uri)[0]

    def open(self, uri: str) -> BinaryIO:
        """Return the object as a seekable file that fetches ranges of the one version it found."""
        size, etag = self._size_and_etag(uri)

        def read(start: int, stop: int) -> bytes:
            return self.read_range(uri, start, stop, etag)

        return cast(BinaryIO, io.BufferedReader(RangedFile(read, size), _BUFFER_BYTES))

    def _size_and_etag(self, uri: str) -> tuple[int, str]:
        async def head(client: Client) -> tuple[int, str]:
            try:
                found = await client.head_object(**object_of(uri))
            except boto.ClientError as error:
                raise await with_reason(client, uri, error) from error
            return int(found["ContentLength"]), str(found["ETag"])

        return self._call(uri, "look up", head)

    def _list(self, uri: str, **options: Any) -> list[Entry]:
        """Return the objects of one page."""

        async def page(client: Client) -> list[Entry]:
            return (await list_page(client, uri, **options)).objects

        return self._call(uri, "list", page)

    def _call(self, uri: str, action: str, call: Callable[[Client], Awaitable[T]]) -> T:
        """Run `call`, again after passing failures until the deadline; raise lasting ones."""
        began_s, pause_s, num_tries = time.monotonic(), _FIRST_PAUSE_S, 0
        while True:
            num_tries += 1
            try:
                return s3_client.run(call, read_timeout_s=self._read_timeout_s, try_s=self._try_s)
            except FAILURES as error:
                waited_s = time.monotonic() - began_s
                if not is_passing(error) or waited_s + pause_s > self._deadline_s:
                    raise storage_error(error, uri, action, num_tries, waited_s) from error
            with _retries_lock:
                RETRIES[action] += 1
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
