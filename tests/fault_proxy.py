"""An HTTP proxy on loopback that spoils chosen exchanges between a client and a server.

Everything is passed on as it is, Host included, so signatures stay valid. `faults` holds what is
done to the coming requests, one each, in order:

- an HTTP status: the answer, without asking the server;
- "truncate": the answer ends in the middle of its body, the connection with it;
- "stall": the answer stops in the middle of its body and nothing more comes;
- "flip": one byte of the body of the answer is another;
- "flip-request": one byte of the body of the request is another;
- "reset": the connection ends before the answer;
- a function: called when half of the longer body, request or answer, has passed.
"""

from __future__ import annotations

import http.client
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Self, TypeAlias
from urllib.parse import urlsplit

from tests.loopback_s3 import QuietServer

Fault: TypeAlias = int | str | Callable[[], object]
_PIECE_BYTES = 64 * 1024
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
_CODES = {500: "InternalError", 503: "SlowDown", 403: "AccessDenied"}


class FaultProxy:
    """Args: upstream is the server's URL; only requests of `method` (all if None) meet faults."""

    def __init__(self, upstream: str, method: str | None = None) -> None:
        self.faults: deque[Fault] = deque()
        self.method = method
        self.requests: list[str] = []  # such as "GET /bucket/key"
        self.closing = threading.Event()
        parts = urlsplit(upstream)
        assert parts.hostname == "127.0.0.1" and parts.port is not None
        self.server_address = (parts.hostname, parts.port)
        owner = self

        class Handler(_Handler):
            proxy = owner

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fault_for(self, method: str) -> Fault | None:
        if self.faults and self.method in (None, method):
            return self.faults.popleft()
        return None


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def _handle(self) -> None:
        self.proxy.requests.append(f"{self.command} {self.path}")
        fault = self.proxy.fault_for(self.command)
        num_bytes = int(self.headers.get("Content-Length") or 0)
        if isinstance(fault, int):
            self.rfile.read(num_bytes)
            code = _CODES.get(fault, "Error")
            body = f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
            self.send_response(fault)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            return
        server = http.client.HTTPConnection(*self.proxy.server_address, timeout=120)
        try:
            self._pass_on(server, fault, num_bytes)
        except (OSError, http.client.HTTPException):  # the server or the client went away
            self.close_connection = True
        finally:
            server.close()

    def _pass_on(
        self, server: http.client.HTTPConnection, fault: Fault | None, num_bytes: int
    ) -> None:
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                server.putheader(name, value)
        server.endheaders()
        at_request = callable(fault) and num_bytes > 0
        for piece, first in _pieces(self.rfile.read, num_bytes):
            if at_request and first + len(piece) > num_bytes // 2:
                at_request = False
                assert callable(fault)
                fault, run = None, fault
                run()
            if fault == "flip-request" and first == 0:
                piece, fault = bytes([piece[0] ^ 1]) + piece[1:], None
            server.send(piece)
        if fault == "reset":
            self.close_connection = True
            return
        answer = server.getresponse()
        length = answer.getheader("Content-Length")
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        has_body = self.command != "HEAD" and answer.status not in (204, 304)
        if has_body and length is None:  # chunked: sent on as one piece
            whole = answer.read()
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole)
            return
        self.end_headers()
        if has_body:
            self._answer_body(answer, fault, int(length or 0))

    def _answer_body(
        self, answer: http.client.HTTPResponse, fault: Fault | None, num_bytes: int
    ) -> None:
        for piece, first in _pieces(answer.read, num_bytes):
            if fault is not None and first + len(piece) > num_bytes // 2:
                middle = max(0, num_bytes // 2 - first)
                if fault in ("truncate", "stall"):
                    self.wfile.write(piece[:middle])
                    self.wfile.flush()
                    if fault == "stall":
                        self.proxy.closing.wait(60)
                    self.close_connection = True
                    return
                if fault == "flip":
                    piece = piece[:middle] + bytes([piece[middle] ^ 1]) + piece[middle + 1 :]
                elif callable(fault):
                    fault()
                fault = None
            self.wfile.write(piece)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle


def _pieces(read: Callable[[int], bytes], num_bytes: int) -> Iterator[tuple[bytes, int]]:
    """A body piece by piece with the position of each; a body that ends early raises."""
    first = 0
    while first < num_bytes:
        piece = read(min(_PIECE_BYTES, num_bytes - first))
        if not piece:
            raise ConnectionError("the body ended early")
        yield piece, first
        first += len(piece)
