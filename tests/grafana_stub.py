"""A Grafana that answers its documented health call and gives every panel an empty page."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class GrafanaStub:
    """Listen on 127.0.0.1 for the length of a `with` block.

    `GET /api/health` answers as Grafana's HTTP API describes it; `database` is what it says of its
    database, and `asked` are the paths of all requests.
    """

    def __init__(self) -> None:
        self.database, self.asked = "ok", list[str]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                is_health = self.path == "/api/health"
                health = {"commit": "0000000", "database": outer.database, "version": "13.2.2"}
                body = json.dumps(health).encode() if is_health else b"<!doctype html><p>a panel"
                self.send_response(200)
                kind = "application/json" if is_health else "text/html"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
