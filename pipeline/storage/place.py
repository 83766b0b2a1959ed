"""Places: a path of this machine, `file:///path`, or `s3://bucket/key`.

Checked by form alone, so a typing error is found before anything is read. Everything that begins
like a URI and is none of the known ones is refused: `s3:/bucket/x` would be a folder named `s3:`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

S3, FILE = "s3://", "file://"
KNOWN = "a local path, file:///path or s3://bucket/path"
# As of RFC 3986; `C:\photos` has the form of a scheme as well.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# The common slips: `s3//bucket`, `s3;//bucket`, `s3\\bucket`.
_SLIP = re.compile(r"(s3|file)\W?[/\\]{2}", re.IGNORECASE)
# What botocore takes. Amazon is stricter (3 to 63, lower case); older and other stores are not.
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
_MAX_KEY_BYTES, _MAX_NAME_BYTES = 1024, 255


@dataclass(frozen=True)
class Place:
    """A place of known form.

    Args:
        kind: where it is stored.
        path: of a local place, `~` not expanded; empty for S3.
        bucket: of S3.
        key: of S3, as typed, without the first slash.
    """

    kind: Literal["local", "s3"]
    path: str = ""
    bucket: str = ""
    key: str = ""

    @property
    def folder_key(self) -> str:
        """The prefix of all keys below an S3 place; empty for a whole bucket."""
        key = self.key.rstrip("/")
        return key + "/" if key else ""


class FormError(ValueError):
    """A text that is no place; its message says what is wrong and what to write instead."""


def parse(text: str) -> Place:
    """Return the place that a text names.

    Raises:
        FormError: it names none.
    """
    if "\0" in text:
        raise FormError("a place holds no zero characters")
    if text.startswith(S3):
        bucket, _, key = text.removeprefix(S3).partition("/")
        return _s3_place(bucket, key)
    if text.startswith(FILE):
        return _file_place(text)
    stripped = text.strip()
    if not stripped:
        raise FormError(f"expected {KNOWN}, got nothing")
    scheme = _SCHEME.match(stripped)
    if scheme is not None or _SLIP.match(stripped) or "://" in stripped:
        raise FormError(_advice(text, stripped, scheme.group() if scheme else ""))
    return Place("local", path=text)


def local_path(text: str) -> Path:
    """Return the path of a local place, `~` expanded where such a user is known.

    Raises:
        FormError: the text names none.
    """
    path = Path(parse(text).path)
    if text.startswith(FILE):
        return path
    try:
        return path.expanduser()
    except RuntimeError:
        raise FormError(f"the home folder of {path.parts[0]} is not known") from None


def check(text: str) -> str:
    """Return the text itself if it names a place that people can type.

    Raises:
        FormError: it names none, or holds control characters; a `ValueError`, for validators.
    """
    place = parse(text)
    decoded = place.path + place.key
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in decoded):
        raise FormError("a place holds no control characters")
    if place.kind == "local":
        local_path(text)
        if any(len(part.encode()) > _MAX_NAME_BYTES for part in place.path.split("/")):
            raise FormError(f"a name in a path has at most {_MAX_NAME_BYTES} bytes")
    return text


def _s3_place(bucket: str, key: str) -> Place:
    if not _BUCKET.fullmatch(bucket) or not any(char.isalnum() for char in bucket):
        problem = f"{bucket[:80]!r} is no name of a bucket" if bucket else "there is no bucket"
        raise FormError(f"{problem}; write s3://bucket/path, a bucket is made of a-z 0-9 . _ -")
    try:
        num_bytes = len(key.encode())
    except UnicodeEncodeError:
        raise FormError("a key of S3 is UTF-8 text") from None
    if num_bytes > _MAX_KEY_BYTES:
        raise FormError(f"a key of S3 has at most {_MAX_KEY_BYTES} bytes")
    if {".", ".."} & set(key.split("/")):
        # HTTP clients and servers disagree on them, so such a key may be another one elsewhere.
        raise FormError("a key of S3 holds no part that is . or ..")
    return Place("s3", bucket=bucket, key=key)


def _file_place(text: str) -> Place:
    host, slash, rest = text.removeprefix(FILE).partition("/")
    if host not in ("", "localhost") or not slash:
        raise FormError("write file:///path, with three slashes, or a plain path")
    try:
        path = unquote("/" + rest, errors="strict")
    except UnicodeDecodeError:
        raise FormError("its % signs do not stand for UTF-8 text; write a plain path") from None
    if "\0" in path:
        raise FormError("a place holds no zero characters")
    return Place("local", path=path)


def _advice(text: str, stripped: str, scheme: str) -> str:
    """Say what is wrong with a text that looks like a URI, and what to write."""
    if stripped != text and stripped.startswith((S3, FILE)):
        return "it has blanks around it"
    if re.match(r"s3\b", stripped, re.IGNORECASE):
        return "write s3://bucket/path, in lower case and with two slashes"
    if re.match(r"file\b", stripped, re.IGNORECASE):
        return "write file:///path, in lower case and with three slashes, or a plain path"
    if scheme and not stripped.startswith(f"{scheme}//"):
        return f"{scheme} is no known storage; write ./{stripped[:80]} for a file of that name"
    if not scheme:
        return f"it holds :// in the middle; expected {KNOWN}"
    return f"storage of the kind {scheme}// is not supported; expected {KNOWN}"
