"""Errors of S3 and its client: which are worth a retry, and the cause of each."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from typing import Any, cast

import aiohttp
import botocore.exceptions as boto

from pipeline import environment
from pipeline.environment import Variable, is_number, is_token, is_url, is_whole
from pipeline.errors import StorageError
from pipeline.storage import causes
from pipeline.storage.causes import Cause

_PASSING_CODES = {
    "SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests", "429",
    "BadDigest", "IncompleteBody", "OperationAborted", "InternalError", "ServiceUnavailable",
}  # fmt: skip
_LASTING_STATUS = {501, 507}
_LOGIN = (
    boto.CredentialRetrievalError, boto.MetadataRetrievalError, boto.SSOError,
    boto.TokenRetrievalError, boto.RefreshWithMFAUnsupportedError,
)  # fmt: skip
_MODES = ("legacy", "standard", "adaptive")
_CHECKSUMS = ("when_supported", "when_required")
_VARIABLES_OF_CLIENT = r"AWS_.*|BOTO_.*|(?i:(http|https|all)_proxy)|(REQUESTS|SSL|CURL)_.*"
VARIABLES = (
    Variable(r"AWS_ENDPOINT_URL(_S3|_STS)?", "http://HOST:PORT or https://HOST[:PORT]",
             lambda v: is_url(v, "http", "https") and "@" not in v),
    Variable(r"AWS_CA_BUNDLE", "the path of a file of certificates", os.path.exists),
    Variable(r"AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN)",
             "one word of printable characters", is_token),
    Variable(r"AWS_(DEFAULT_)?REGION", "the name of a region, such as us-east-1",
             lambda v: is_token(v) and v.replace("-", "").isalnum()),
    Variable(r"AWS_(MAX_ATTEMPTS|METADATA_SERVICE_NUM_ATTEMPTS)", "a whole number from 1 on",
             lambda v: is_whole(v) and int(v) >= 1),
    Variable(r"AWS_METADATA_SERVICE_TIMEOUT", "a number of seconds", is_number),
    Variable(r"AWS_RETRY_MODE", "one of " + ", ".join(_MODES), lambda v: v.lower() in _MODES),
    Variable(r"AWS_(REQUEST_CHECKSUM_CALCULATION|RESPONSE_CHECKSUM_VALIDATION)",
             " or ".join(_CHECKSUMS), lambda v: v.lower() in _CHECKSUMS),
    Variable(r"AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://HOST[:PORT]/PATH",
             lambda v: is_url(v, "http", "https")),
    Variable(r"(?i:(http|https)_proxy)", "http://HOST:PORT",
             lambda v: is_url(v if "://" in v else f"http://{v}", "http", "https")),
)  # fmt: skip


def check_environment() -> None:
    """Refuse a variable of the S3 client whose value does not have its form.

    Raises:
        StorageError: naming the variable and the form.
    """
    misfit = environment.find_misfit(VARIABLES)
    if misfit is not None:
        raise StorageError("E-STORAGE-413", misfit.what, where=misfit.name, todo=misfit.todo)


class SettingsError(Exception):
    """The client could not be made: a value of its environment or files is refused."""


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from or wraps, from the outside in."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        kwargs = getattr(current, "kwargs", {})  # botocore keeps what it wraps there
        inner = kwargs.get("error") if isinstance(kwargs, dict) else None
        current = inner if isinstance(inner, BaseException) else current.__cause__


def _response(error: BaseException) -> dict[str, Any]:
    for candidate in chain(error):
        if isinstance(candidate, boto.ClientError):
            return cast(dict[str, Any], candidate.response)
    return {}


def error_code(error: BaseException) -> str:
    """Return the code of S3 in an error, such as NoSuchBucket; empty when it has none."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def http_status(error: BaseException) -> int:
    """Return the HTTP status behind an error, 0 when there was no answer."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def has_no_reason(error: BaseException) -> bool:
    """Return whether an answer came without a body: its code is the HTTP status alone."""
    code = error_code(error)
    return bool(_response(error)) and (not code or code.isdigit())


def is_missing(error: BaseException) -> bool:
    """Return whether the object is not there, in a bucket that is."""
    return cause_of(error) is causes.NO_OBJECT


def is_passing(error: BaseException) -> bool:
    """Return whether the same call may succeed in a moment."""
    if isinstance(error, _LOGIN) or _is_certificate(error):
        return False
    if _response(error):
        status = http_status(error)
        if error_code(error) in _PASSING_CODES or status == 429:
            return True
        return status >= 500 and cause_of(error) in (causes.S3_OTHER, causes.KEPT_FAILING)
    passing = (
        boto.HTTPClientError,
        boto.ConnectionError,
        ConnectionError,
        TimeoutError,
        aiohttp.ClientError,
    )
    return isinstance(error, passing)


def _is_certificate(error: BaseException) -> bool:
    return any(
        isinstance(e, ssl.SSLCertVerificationError | aiohttp.ClientConnectorCertificateError)
        for e in chain(error)
    ) or "CERTIFICATE_VERIFY_FAILED" in str(error)


def cause_of(error: BaseException) -> Cause:
    """Return the cause of a failed call, by the code of S3, else by the class of the error."""
    if _response(error):
        return _cause_of_answer(error_code(error), http_status(error))
    if isinstance(error, boto.ParamValidationError) and "ucket name" in str(error):
        return _of_code("InvalidBucketName") or causes.S3_OTHER
    if "unable to parse response" in str(error).lower():
        return causes.NOT_S3
    if _is_certificate(error):
        return causes.CERTIFICATE
    for kinds, cause in (
        ((boto.NoCredentialsError, boto.PartialCredentialsError), causes.NO_CREDENTIALS),
        (_LOGIN, causes.LOGIN),
        ((SettingsError,), causes.SETTINGS),
        ((boto.EndpointConnectionError, boto.ConnectTimeoutError), causes.NO_ANSWER),
    ):
        if isinstance(error, kinds):
            return cause
    return causes.KEPT_FAILING if is_passing(error) else causes.S3_OTHER


def _cause_of_answer(code: str, status: int) -> Cause:
    by_code = _of_code("KMS.DisabledException" if code.startswith("KMS.") else code)
    found = by_code or _of_code(str(status))
    if found is not None:
        return found
    return causes.KEPT_FAILING if status >= 500 or status == 429 else causes.S3_OTHER


def _of_code(code: str) -> Cause | None:
    return next((cause for cause in causes.S3 if code in cause.codes), None)


def storage_error(
    error: BaseException, uri: str, action: str, num_tries: int, waited_s: float
) -> StorageError:
    """Return the error for people: the cause, and S3's own code and text."""
    cause = cause_of(error)
    bucket = uri.removeprefix("s3://").partition("/")[0]
    tries = f"{num_tries} {'try' if num_tries == 1 else 'tries'} in {waited_s:.0f} s"
    blamed = environment.named_in(str(error), _VARIABLES_OF_CLIENT)
    filled = {
        "{bucket}": bucket,
        "{tries}": tries,
        "{variables}": ", ".join(blamed) or "the AWS_* variables of the environment",
    }
    what, todo = cause.what, cause.todo
    for name, value in filled.items():
        what, todo = what.replace(name, value), todo.replace(name, value)
    detail = _detail(error)
    return StorageError(
        cause.id, f"could not {action}: {what}{detail and ': '}{detail}", where=uri, todo=todo
    )


def _detail(error: BaseException) -> str:
    """Return what S3 says, else the text of the client's error, on one short line."""
    answer = _response(error).get("Error", {})
    if answer:
        text = f"S3 says {answer.get('Code', '')} ({answer.get('Message', '')})"
    elif isinstance(error, (boto.NoCredentialsError, boto.EndpointConnectionError)):
        text = ""  # the cause says it all
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())[:300]
