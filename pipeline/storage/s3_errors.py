"""Errors of S3 and its client: which are worth a retry, and all of them in words."""

from __future__ import annotations

from typing import Any, cast

import aiohttp
import botocore.exceptions as boto

from pipeline.errors import StorageError

_PASSING_CODES = {
    "SlowDown", "RequestTimeout", "Throttling", "TooManyRequests", "429", "BadDigest",
    "IncompleteBody",
}  # fmt: skip
_KEYS_TODO = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary keys) "
    "in the environment of every node, or use an instance role"
)


def _response(error: BaseException) -> dict[str, Any]:
    for candidate in (error, error.__cause__):
        if isinstance(candidate, boto.ClientError):
            return cast(dict[str, Any], candidate.response)
    return {}


def error_code(error: BaseException) -> str:
    """Return S3's code in an error, such as NoSuchBucket; empty without one."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def http_status(error: BaseException) -> int:
    """Return the HTTP status behind an error, 0 when there was no answer."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_missing(error: StorageError) -> bool:
    """Return whether the object is missing while its bucket exists."""
    cause = error.__cause__
    return isinstance(cause, FileNotFoundError) and error_code(cause) != "NoSuchBucket"


def is_passing(error: Exception) -> bool:
    """Return whether the same call may succeed soon."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    if _response(error):
        status = http_status(error)
        return status >= 500 or status == 429 or error_code(error) in _PASSING_CODES
    passing = (
        boto.HTTPClientError,
        boto.ConnectionError,
        ConnectionError,
        TimeoutError,
        aiohttp.ClientError,
    )
    return isinstance(error, passing)


def words(error: Exception, uri: str, num_tries: int, waited_s: float) -> tuple[str, str]:
    """Return what happened and what to do, for people."""
    bucket = uri.removeprefix("s3://").partition("/")[0]
    tries = f"{num_tries} {'try' if num_tries == 1 else 'tries'} in {waited_s:.0f} s"
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError)):
        return "there are no S3 credentials", _KEYS_TODO
    if isinstance(error, PermissionError):
        return "S3 denied access", f"check the keys and the policy of bucket {bucket}: {_KEYS_TODO}"
    if isinstance(error, FileNotFoundError):
        if error_code(error) == "NoSuchBucket":
            return f"there is no bucket {bucket}", "create the bucket, or check AWS_ENDPOINT_URL"
        todo = "check the URI and AWS_ENDPOINT_URL, or run the stage that makes the object"
        return f"there is no such object in bucket {bucket}", todo
    if http_status(error) == 412:
        return "the object changed while it was read", "run the command again when it is at rest"
    if isinstance(error, (boto.EndpointConnectionError, boto.ConnectTimeoutError)):
        return (
            f"the S3 endpoint does not answer ({tries})",
            "check the network and AWS_ENDPOINT_URL",
        )
    if is_passing(error):
        return (
            f"S3 kept failing ({tries}): {error}",
            "check the state of the object store, then run the command again",
        )
    return f"S3 refused: {error}", "check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and the bucket"
