"""The part of S3 that the pipeline uses, in memory on loopback, with faults on demand.

Paths are /bucket/key. `faults` holds HTTP status codes: each is the answer to one coming request,
in order, before any other handling; 0 lets one request pass. `log` holds "METHOD /path" of every
request.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import threading
from collections import deque
from collections.abc import MutableMapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

ACCESS_KEY, SECRET_KEY = "testkey", "testsecret"
_CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that go away, which is what the tests make them do."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class LoopbackS3:
    def __init__(self, port: int = 0) -> None:
        self.empty()
        owner = self

        class Handler(_Handler):
            server_state = owner

        self._server = QuietServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def empty(self) -> None:
        """Be as new: no bucket, no fault, no request so far."""
        self.buckets: dict[str, MutableMapping[str, bytes]] = {}
        self.faults: deque[int] = deque()
        self.log: list[str] = []
        self.page_keys = 1000  # of one answer to a listing
        self.refusals: dict[str, tuple[int, str]] = {}  # bucket -> status and code of all answers
        self.uploads: dict[str, dict[int, bytes]] = {}  # begun in parts: id -> number -> bytes

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_state: LoopbackS3
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str | None = None) -> None:
        code = code or _CODES.get(status, "Error")
        body = f"<Error><Code>{code}</Code><Message>{code} on purpose</Message></Error>".encode()
        if self.command == "HEAD":
            body = b""
        self._answer(status, body, Content_Type="application/xml")

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" not in (self.headers.get("Content-Encoding") or ""):
            return body
        whole, rest = b"", body
        while rest:
            head, rest = rest.split(b"\r\n", 1)
            size = int(head.split(b";")[0], 16)
            if not size:
                break
            whole, rest = whole + rest[:size], rest[size + 2 :]
        return whole

    def _handle(self) -> None:
        state = self.server_state
        parts = urlsplit(self.path)
        bucket_name, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = parse_qs(parts.query, keep_blank_values=True)
        body = self._body()
        state.log.append(f"{self.command} {unquote(parts.path)}")
        if state.faults and (status := state.faults.popleft()):
            return self._error(status)
        if f"Credential={ACCESS_KEY}/" not in (self.headers.get("Authorization") or ""):
            return self._error(403)
        bucket = state.buckets.get(bucket_name)
        if bucket is None:
            return self._error(*state.refusals.get(bucket_name, (404, "NoSuchBucket")))
        if self.command == "POST" and "delete" in query:
            for element in ElementTree.fromstring(body).iter():
                if element.tag.endswith("Key"):
                    bucket.pop(element.text or "", None)
            return self._answer(200, b"<DeleteResult/>")
        if "uploads" in query or "uploadId" in query:
            return self._parts(bucket, key, query, body)
        if self.command == "PUT":
            digest = base64.b64encode(hashlib.md5(body).digest()).decode()
            if self.headers.get("Content-MD5", digest) != digest:
                return self._error(400, "BadDigest")
            bucket[key] = body
            return self._answer(200, ETag='"0"')
        if self.command == "DELETE":
            bucket.pop(key, None)
            return self._answer(204)
        if key:
            return self._object(bucket, key)
        return self._listing(bucket_name, bucket, query)

    def _parts(
        self,
        bucket: MutableMapping[str, bytes],
        key: str,
        query: dict[str, list[str]],
        body: bytes,
    ) -> None:
        uploads = self.server_state.uploads
        if "uploads" in query:
            name = f"upload-{len(uploads)}"
            uploads[name] = {}
            told = f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId>"
            return self._answer(200, f"{told}</InitiateMultipartUploadResult>".encode())
        name = query["uploadId"][0]
        if self.command == "PUT":
            uploads[name][int(query["partNumber"][0])] = body
            return self._answer(200, ETag='"0"')
        parts = uploads.pop(name)
        if self.command == "POST":
            bucket[key] = b"".join(part for _, part in sorted(parts.items()))
            return self._answer(200, b"<CompleteMultipartUploadResult/>")
        self._answer(204)

    def _object(self, bucket: MutableMapping[str, bytes], key: str) -> None:
        if key not in bucket:
            return self._error(404)
        data, status, headers = bucket[key], 200, {}
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        if asked := self.headers.get("Range"):
            if not data:
                return self._error(416, "InvalidRange")
            first, _, last = asked.removeprefix("bytes=").partition("-")
            stop = min(int(last or len(data)) + 1, len(data))
            headers["Content_Range"] = f"bytes {first}-{stop - 1}/{len(data)}"
            data, status = data[int(first) : stop], 206
        if self.headers.get("If-Match", etag) != etag:
            return self._error(412, "PreconditionFailed")
        headers["Content_Length"] = str(len(data))
        headers["Last_Modified"] = "Thu, 01 Jan 2026 00:00:00 GMT"
        self._answer(status, data, ETag=etag, **headers)

    def _listing(
        self, name: str, bucket: MutableMapping[str, bytes], query: dict[str, list[str]]
    ) -> None:
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        contents, folders = [], set()
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        page_keys = min(int(query.get("max-keys", ["1000"])[0]), self.server_state.page_keys)
        # Code points sort like UTF-8 bytes, which is the order of S3.
        matching = sorted(key for key in bucket if key.startswith(prefix) and key > after)
        page, cut = matching[:page_keys], len(matching) > page_keys
        for key in page:
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                contents.append(key)
        rows = [
            f"<Contents><Key>{escape(key)}</Key><Size>{len(bucket[key])}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>0</ETag></Contents>"
            for key in contents
        ]
        rows += [
            f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            for folder in sorted(folders)
        ]
        count = len(contents) + len(folders)
        body = (
            f"<ListBucketResult><Name>{name}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{count}</KeyCount><IsTruncated>{str(cut).lower()}</IsTruncated>"
            + (f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if cut else "")
            + "".join(rows)
            + "</ListBucketResult>"
        )
        self._answer(200, body.encode(), Content_Type="application/xml")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle
