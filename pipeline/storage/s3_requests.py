"""Single requests to S3: each takes the bucket and the key of a URI as they are."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
import botocore.exceptions as boto

from pipeline.storage.place import parse
from pipeline.storage.s3_client import Client
from pipeline.storage.s3_errors import SettingsError, has_no_reason, http_status, is_missing

FAILURES = (OSError, SettingsError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError)
"""What a call may raise when S3 refuses or does not answer."""


@dataclass(frozen=True)
class Entry:
    """An object: its whole key, and its size in bytes."""

    key: str
    size: int


@dataclass(frozen=True)
class Page:
    """Part of a listing: objects, prefixes up to the delimiter, and what asks for the next page."""

    objects: list[Entry]
    folders: list[str]
    next_token: str | None


def object_of(uri: str) -> dict[str, str]:
    """Return the bucket and the key of a URI, as requests take them."""
    place = parse(uri)
    return {"Bucket": place.bucket, "Key": place.key}


async def get(client: Client, uri: str, **options: Any) -> bytes:
    """Return the bytes of an object, or of the range in the options."""
    response = await client.get_object(**object_of(uri), **options)
    async with response["Body"] as body:
        return cast(bytes, await body.read())


async def with_reason(client: Client, uri: str, error: Exception) -> Exception:
    """Return the refusal of a HEAD request with its reason.

    The answer to HEAD has no body, and so no reason: a read of the first byte asks for it. An
    answer of another status is of another cause: a fault that has passed meanwhile stays a fault.
    """
    if has_no_reason(error):
        try:
            await get(client, uri, Range="bytes=0-0")
        except boto.ClientError as answer:
            is_same = isinstance(error, boto.ClientError) and http_status(error) == http_status(
                answer
            )
            return cast(Exception, answer if is_same else error)
        except FAILURES:
            pass
    return error


async def delete_key(client: Client, bucket: str, key: str) -> None:
    """Delete one key; a missing one is no error."""
    try:
        await client.delete_object(Bucket=bucket, Key=key)
    except boto.ClientError as error:
        if not is_missing(error):  # most stores say nothing of it
            raise


async def list_page(client: Client, uri: str, **options: Any) -> Page:
    """Return one page of keys, in the order of the keys."""
    found = await client.list_objects_v2(Bucket=parse(uri).bucket, **options)
    return Page(
        [Entry(str(e["Key"]), int(e["Size"])) for e in found.get("Contents", [])],
        [str(e["Prefix"]) for e in found.get("CommonPrefixes", [])],
        found.get("NextContinuationToken") if found.get("IsTruncated") else None,
    )


async def list_pages(client: Client, uri: str, **options: Any) -> AsyncIterator[Page]:
    """Yield all pages of a listing."""
    page = await list_page(client, uri, **options)
    yield page
    while page.next_token:
        page = await list_page(client, uri, ContinuationToken=page.next_token, **options)
        yield page


async def put_parts(client: Client, uri: str, data: bytes, part_bytes: int) -> None:
    """Upload in parts; the object appears when all are there, and what failed is taken back."""
    upload = {**object_of(uri), "UploadId": ""}
    upload["UploadId"] = (await client.create_multipart_upload(**object_of(uri)))["UploadId"]
    try:
        parts = []
        for number, start in enumerate(range(0, len(data), part_bytes), start=1):
            part = memoryview(data)[start : start + part_bytes].tobytes()
            digest = base64.b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()
            done = await client.upload_part(
                **upload, PartNumber=number, Body=part, ContentMD5=digest
            )
            parts.append({"PartNumber": number, "ETag": done["ETag"]})
        await client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    except BaseException:
        with suppress(*FAILURES):
            await client.abort_multipart_upload(**upload)
        raise
