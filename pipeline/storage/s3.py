"""S3 and its look-alikes behind pipeline.storage: whole-object puts, bounded retries, words.

s3fs is used for its calls only: its own retries and botocore's are off, so that one loop here
decides what is tried again (5xx, throttling, timeouts, lost connections), how long (a deadline),
and what never is (403, 404, missing credentials).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, cast

import botocore.exceptions as boto
import s3fs

from pipeline.errors import StorageError
from pipeline.storage.retries import RETRIES

T = TypeVar("T")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10, 30
_ONE_PUT_BYTES = 5 * 2**30  # what S3 takes at once
_PASSING_CODES = {"SlowDown", "RequestTimeout", "Throttling", "TooManyRequests", "429"}
_KEYS_TODO = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary keys) "
    "in the environment of every node, or use an instance role"
)


class ObjectStore:
    """pipeline.storage.Store on S3.

    Args:
        deadline_s: no call is started again once this many seconds have passed since its first
            try; one try itself ends after 30 s without a byte.
    """

    def __init__(self, *, deadline_s: float = 60.0) -> None:
        self._deadline_s = deadline_s

    def read(self, uri: str) -> bytes:
        """The whole object, in one request: ranges fetched side by side could mix two versions."""
        return self._call(uri, "read", lambda fs: cast(bytes, fs.cat_file(uri, max_concurrency=1)))

    def write(self, uri: str, data: bytes) -> None:
        """One put, whole or not at all; parts, which a killed process leaves, only above 5 GB."""
        self._call(uri, "write", lambda fs: fs.pipe_file(uri, data, chunksize=_ONE_PUT_BYTES))

    def exists(self, uri: str) -> bool:
        """Whether an object, or a prefix with something below, is there."""
        try:
            return self._call(uri, "look up", lambda fs: bool(fs.info(uri)))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return False
            raise

    def children(self, uri: str) -> dict[str, int | None]:
        """Immediate children: size in bytes of objects, None for prefixes."""
        found: dict[str, int | None] = {}
        for entry in self._listing(uri, lambda fs: fs.ls(uri, detail=True, refresh=True)):
            is_folder = entry["type"] == "directory"
            found[entry["name"].rstrip("/").rsplit("/", 1)[-1]] = (
                None if is_folder else int(entry["size"])
            )
        return found

    def tree(self, uri: str) -> dict[str, int]:
        """All objects below the prefix."""
        prefix = _key(uri).rstrip("/") + "/"
        entries = self._listing(
            uri, lambda fs: list(fs.find(uri, detail=True, refresh=True).values())
        )
        return {
            entry["name"].removeprefix(prefix): int(entry["size"])
            for entry in entries
            if entry["name"].startswith(prefix) and not entry["name"].endswith("/")
        }

    def delete_tree(self, uri: str) -> None:
        """Delete the object and all below the prefix."""

        def delete(fs: Any) -> None:
            try:
                fs.rm(uri, recursive=True)
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise

        self._call(uri, "delete", delete)

    def size(self, uri: str) -> int:
        """Size of the object in bytes."""

        def look(fs: Any) -> int:
            info = fs.info(uri)
            if info["type"] == "directory":
                raise FileNotFoundError(uri)
            return int(info["size"])

        return self._call(uri, "look up", look)

    def open(self, uri: str) -> BinaryIO:
        """The object as a seekable file that fetches ranges; its later reads are not retried."""
        return self._call(uri, "open", lambda fs: cast(BinaryIO, fs.open(uri, "rb")))

    def _listing(self, uri: str, list_it: Callable[[Any], list[Any]]) -> list[dict[str, Any]]:
        try:
            entries = self._call(uri, "list", list_it)
        except StorageError as error:
            cause = error.__cause__
            if isinstance(cause, FileNotFoundError) and _code(cause) != "NoSuchBucket":
                return []
            raise
        # Some stores keep an empty object for the folder itself; it is not one of its children.
        itself = _key(uri).rstrip("/")
        return [entry for entry in entries if entry["name"].rstrip("/") != itself]

    def _call(self, uri: str, action: str, call: Callable[[Any], T]) -> T:
        """Run `call`, again after passing failures until the deadline, and tell lasting ones."""
        began_s, pause_s, num_tries = time.monotonic(), _FIRST_PAUSE_S, 0
        while True:
            num_tries += 1
            try:
                return call(_filesystem())
            except (OSError, boto.BotoCoreError, boto.ClientError) as error:
                waited_s = time.monotonic() - began_s
                if not _is_passing(error) or waited_s + pause_s > self._deadline_s:
                    what, todo = _words(error, uri, num_tries, waited_s)
                    raise StorageError(
                        f"could not {action}: {what}", where=uri, todo=todo
                    ) from error
            RETRIES[action] += 1
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _filesystem() -> Any:
    fs = s3fs.S3FileSystem(
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        use_listings_cache=False,
        config_kwargs={
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": _READ_TIMEOUT_S,
        },
    )
    fs.retries = 1
    return fs


def _key(uri: str) -> str:
    return uri.removeprefix("s3://")


def _response(error: BaseException) -> dict[str, Any]:
    for candidate in (error, error.__cause__):
        if isinstance(candidate, boto.ClientError):
            return cast(dict[str, Any], candidate.response)
    return {}


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _is_passing(error: Exception) -> bool:
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    if response := _response(error):
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return status >= 500 or status == 429 or _code(error) in _PASSING_CODES
    return isinstance(
        error, (boto.HTTPClientError, boto.ConnectionError, ConnectionError, TimeoutError)
    )


def _words(error: Exception, uri: str, num_tries: int, waited_s: float) -> tuple[str, str]:
    bucket = _key(uri).split("/", 1)[0]
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        return "there are no S3 credentials", _KEYS_TODO
    if isinstance(error, PermissionError):
        return "S3 denied access", f"check the keys and the policy of bucket {bucket}: {_KEYS_TODO}"
    if isinstance(error, FileNotFoundError):
        if _code(error) == "NoSuchBucket":
            return f"there is no bucket {bucket}", "create the bucket, or check AWS_ENDPOINT_URL"
        return "there is no such object", "check the URI, or run the stage that makes it"
    if isinstance(error, (boto.EndpointConnectionError, boto.ConnectTimeoutError)):
        return (
            f"the S3 endpoint does not answer ({num_tries} tries in {waited_s:.0f} s)",
            "check the network and AWS_ENDPOINT_URL",
        )
    if _is_passing(error):
        return (
            f"S3 kept failing ({num_tries} tries in {waited_s:.0f} s): {error}",
            "check the state of the object store, then run the command again",
        )
    return f"S3 refused: {error}", "check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the bucket"
