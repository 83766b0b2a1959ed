"""A headless Chromium that looks at pages for the tests, through its debugging pipe."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
# What a reader would notice, asked of the page as it is laid out.
_LOOK = """(() => {
  const box = e => e.getBoundingClientRect();
  const images = [...document.images].filter(i => i.closest("#others, dialog") === null);
  const broken = images.filter(i => !i.complete || !i.naturalWidth || box(i).width < 8
      || box(i).height < 8 || getComputedStyle(i).visibility !== "visible").length;
  const texts = [...document.querySelectorAll("p, td, th, li, dd, dt, figcaption, svg text")]
      .filter(e => e.textContent.trim() && box(e).width);
  const zoom = svg => svg ? box(svg).width / svg.viewBox.baseVal.width : 1;
  const px = e => parseFloat(getComputedStyle(e).fontSize) * zoom(e.closest("svg"));
  const wide = [...document.querySelectorAll("body *")].filter(e =>
      !e.closest(".scroll, pre, .command") && box(e).right > innerWidth + 1).map(e => e.tagName);
  return {images: images.length, broken, width: innerWidth, texts: texts.length,
      page_width: document.documentElement.scrollWidth, smallest_px: Math.min(...texts.map(px)),
      wide: [...new Set(wide)], charts: document.querySelectorAll("svg.chart").length};
})()"""


def find_chromium() -> str | None:
    """The installed browser, if any."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Look:
    """A page at one width: what the browser complained about, and how it is laid out."""

    errors: list[str] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)


class Browser:
    """Use as a context manager; `profile` must be a new, empty folder."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._write_fd = os.pipe()
        self._read_fd, to_write = os.pipe()
        # Away from 3 and 4, which the browser reads and writes.
        inner = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (to_read, to_write)]

        def connect() -> None:
            os.dup2(inner[0], 3)
            os.dup2(inner[1], 4)

        self._process = subprocess.Popen(
            [
                program,
                *FLAGS,
                f"--user-data-dir={profile}",
                "--remote-debugging-pipe",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=connect,
            pass_fds=(3, 4),
        )
        for fd in (*inner, to_read, to_write):
            os.close(fd)
        self._buffer, self._number = b"", 0
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._write_fd)
        os.close(self._read_fd)

    def look(self, page: Path, *, width_px: int, picture: Path | None = None) -> Look:
        """Open a file in a new tab of that width, and say how it is laid out."""
        with self._tab(page, width_px) as session:
            found = self._evaluate(session, _LOOK)
            if picture is not None:
                shot = self._call("Page.captureScreenshot", session, captureBeyondViewport=True)
                picture.write_bytes(base64.b64decode(shot["data"]))
            errors = [text for event in self._events if (text := _complaint(event))]
        return Look(errors, found)

    def ask(
        self, page: Path, expression: str, *, width_px: int, downloads: Path | None = None
    ) -> dict[str, Any]:
        """Return the value of a script's expression on a page; files it saves go to `downloads`."""
        if downloads is not None:
            self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        with self._tab(page, width_px) as session:
            return self._evaluate(session, expression)

    def shoot(
        self, page: Path, picture: Path, *, width_px: int, height_px: int, first: str = "1"
    ) -> None:
        """Take a picture of the upper part of a page, after the expression `first`."""
        with self._tab(page, width_px) as session:
            self._evaluate(session, first)
            clip = {"x": 0, "y": 0, "width": width_px, "height": height_px, "scale": 1}
            shot = self._call(
                "Page.captureScreenshot", session, captureBeyondViewport=True, clip=clip
            )
            picture.write_bytes(base64.b64decode(shot["data"]))

    def wait_for(
        self, address: str, expression: str, *, width_px: int, deadline_s: float, picture: Path
    ) -> Any:
        """Return an expression's value on a served page once it is true, with a picture."""
        with self._tab(address, width_px) as session:
            end_s = time.monotonic() + deadline_s
            while not (found := self._evaluate(session, expression)):
                if time.monotonic() > end_s:
                    raise TimeoutError(f"not so on {address}: {expression}")
                time.sleep(0.5)
            shot = self._call("Page.captureScreenshot", session)
            picture.write_bytes(base64.b64decode(shot["data"]))
            return found

    @contextmanager
    def _tab(self, page: Path | str, width_px: int) -> Iterator[str]:
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        session: str = attached["sessionId"]
        self._events.clear()
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable", session)
        self._call(
            "Emulation.setDeviceMetricsOverride", session, width=width_px, height=844,
            deviceScaleFactor=1, mobile=width_px < 600,
        )  # fmt: skip
        url = page if isinstance(page, str) else page.resolve().as_uri()
        self._call("Page.navigate", session, url=url)
        self._wait_for("Page.loadEventFired")
        yield session
        self._call("Target.closeTarget", targetId=target)

    def _evaluate(self, session: str, expression: str) -> Any:
        found = self._call("Runtime.evaluate", session, expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def _call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def _wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self._events):
            self._events.append(self._receive())

    def _receive(self, deadline_s: float = 120.0) -> dict[str, Any]:
        end_s = time.monotonic() + deadline_s
        while b"\0" not in self._buffer:
            left_s = end_s - time.monotonic()
            if left_s <= 0 or not select.select([self._read_fd], [], [], left_s)[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._read_fd, 1 << 20)
            if not part:
                raise RuntimeError("the browser ended")
            self._buffer += part
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        return message


def _complaint(event: dict[str, Any]) -> str | None:
    params = event.get("params", {})
    if event.get("method") == "Runtime.exceptionThrown":
        return str(params["exceptionDetails"].get("text"))
    if event.get("method") == "Runtime.consoleAPICalled" and params.get("type") == "error":
        return str(params.get("args"))
    if event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        return str(params["entry"]["text"])
    return None
