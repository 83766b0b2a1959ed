"""Ceph's RADOS Gateway as a test's S3 server: start, kill, bring back. See tests/ceph_rgw.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Self

import pytest

SCRIPT = Path(__file__).with_name("ceph_rgw.sh")
PROGRAMS = ("radosgw", "ceph-mon", "ceph-osd", "ceph", "curl")


class CephGateway:
    """A cluster of its own in a temporary folder; CEPH_TEST_DIR keeps one for several sessions."""

    def __init__(self) -> None:
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            pytest.skip(f"no {', '.join(missing)} here: make test-s3 installs Ceph")
        self._kept = os.environ.get("CEPH_TEST_DIR")
        # Unix sockets lie in it, whose paths must be short.
        self._dir = self._kept or tempfile.mkdtemp(prefix="ceph-", dir="/tmp")
        self.port = int(os.environ.get("CEPH_TEST_PORT", "9410"))
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._run("start")

    def kill(self) -> None:
        """Kill -9 of the gateway, as a crash of its machine would."""
        self._run("kill-gateway")

    def kill_and_return_after(self, seconds: float) -> None:
        """The same, and start it again in the background."""
        self.kill()
        self.returning = threading.Timer(seconds, self.start)
        self.returning.start()

    def _run(self, command: str) -> None:
        done = subprocess.run(
            [str(SCRIPT), command, self._dir, str(self.port)], capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._kept is None:
            self._run("stop")
            shutil.rmtree(self._dir)
