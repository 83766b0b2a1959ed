"""The one use of s3fs: it keeps a client of S3 and the thread in which its calls run.

Only documented calls of s3fs and fsspec are used: `S3FileSystem.set_session`, whose result is the
client of aiobotocore, and `fsspec.asyn.sync`. Read from s3fs 2026.9.0 and fsspec 2026.9.0;
tests/test_s3_keys.py holds both. The file calls of s3fs are not used: they take `*`, `?` and `[`
in a name for a pattern, so that deleting `data[12]` would delete `data1` and `data2`. A call here
takes the bucket and the key as they are.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar, cast

import botocore.exceptions as boto
import s3fs
from fsspec.asyn import sync

from pipeline.storage.s3_errors import SettingsError, check_environment

T = TypeVar("T")
Client: TypeAlias = Any
"""A client of aiobotocore, which has no types."""

CONNECT_TIMEOUT_S = 10.0


def run(call: Callable[[Client], Awaitable[T]], *, read_timeout_s: float, try_s: float) -> T:
    """Return the result of `call`, which is given the client, within `try_s` seconds.

    Neither s3fs nor botocore tries again: `pipeline.storage.s3` decides that.

    Raises:
        StorageError: a variable of the environment does not have its form.
        SettingsError: the client cannot be made of its environment and files.
        Exception: what the call raises.
    """
    check_environment()
    try:
        fs = _session(read_timeout_s)
    except (ValueError, TypeError, OSError, boto.BotoCoreError) as error:
        raise SettingsError(str(error)) from error

    async def bounded() -> T:
        try:
            client = await fs.set_session()
        except (ValueError, TypeError, OSError, boto.BotoCoreError) as error:
            raise SettingsError(str(error)) from error
        client.meta.events.register("before-call.s3.HeadBucket", _stay, unique_id="sdclr-stay")
        return await asyncio.wait_for(call(client), try_s)

    return cast(T, sync(fs.loop, bounded))


def _stay(params: dict[str, Any], **_: Any) -> None:
    """Keep the question for the region of a bucket from being redirected itself, without end.

    botocore asks it by HeadBucket when an answer is a redirect. A store that names no region
    redirects that as well.
    """
    params["context"].setdefault("s3_redirect", {})["redirected"] = True


def _session(read_timeout_s: float) -> Any:
    """Return the file system of s3fs for the endpoint; equal arguments give the same one."""
    return s3fs.S3FileSystem(
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        use_listings_cache=False,
        config_kwargs={
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": read_timeout_s,
            "request_checksum_calculation": "when_required",
            "max_pool_connections": 32,
        },
    )
