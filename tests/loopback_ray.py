"""Ray clusters on loopback, of their own processes and ports, next to whatever else runs here."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.running import end, wait_for

RAY = Path(sys.executable).parent / "ray"
_START_S, _STOP_S = 240, 30
_PORT_OPTIONS = (
    "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port",
    "runtime-env-agent-port", "object-manager-port", "node-manager-port",
)  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


class LoopbackRay:
    """A head, and nodes that are added; every process ends with the `with` block.

    Args:
        num_cpus: of the head.
        token: whether clients need it, as RAY_AUTH_TOKEN.
        environment: what the processes of the cluster see besides this process's own.
        as_current: write the address where every Ray of RAY_TMPDIR looks for a cluster.
    """

    def __init__(
        self,
        num_cpus: int,
        *,
        token: bool = False,
        environment: dict[str, str] | None = None,
        as_current: bool = False,
    ) -> None:
        self.token = secrets.token_hex(32) if token else ""
        self._num_cpus, self._as_current = num_cpus, as_current
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir=os.environ.get("RAY_TMPDIR")))
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._own = environment or {}
        port, dashboard_port, self.client_port = free_ports(3)
        self.address = f"127.0.0.1:{port}"
        self.dashboard_url = f"http://127.0.0.1:{dashboard_port}"
        self.metrics_ports: list[int] = []
        self._head_ports = (port, dashboard_port)

    def environment(self, *, token: str | None = None) -> dict[str, str]:
        """What a client needs, without what the cluster alone may know."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")}
        kept["PATH"] = f"{RAY.parent}{os.pathsep}{kept['PATH']}"
        mine = self.token if token is None else token
        if not self.token:
            return kept | {"RAY_AUTH_MODE": "disabled"}
        kept.pop("RAY_AUTH_TOKEN", None)
        # A folder without .ray/auth_token: the token of the person who runs the tests is not ours.
        kept |= {"RAY_AUTH_MODE": "token", "HOME": str(self.folder)}
        return kept | ({"RAY_AUTH_TOKEN": mine} if mine else {})

    def __enter__(self) -> LoopbackRay:
        port, dashboard_port = self._head_ports
        self._start(
            "--head", f"--port={port}", f"--dashboard-port={dashboard_port}",
            "--dashboard-host=127.0.0.1", f"--ray-client-server-port={self.client_port}",
            f"--num-cpus={self._num_cpus}",
            *(() if self._as_current else (f"--temp-dir={self.folder}",)),
        )  # fmt: skip
        self._wait_for_dashboard()
        return self

    def add_node(self, num_cpus: int, resources: str = "{}", labels: str = "") -> None:
        """Start one more raylet and wait for it; `resources` is JSON, `labels` are KEY=VALUE.

        Raylets that start at once in one folder take the same socket: one never comes up.
        """
        self._start(
            f"--address={self.address}", f"--num-cpus={num_cpus}", f"--resources={resources}",
            *([f"--labels={labels}"] if labels else []),
        )  # fmt: skip
        log = self.folder / f"start-{len(self._nodes) - 1}.log"
        wait_for(
            lambda: "Ray runtime started" in log.read_text(errors="replace"), self._nodes[-1],
            deadline_s=_START_S, log=log, every_s=0.2,
        )  # fmt: skip

    def _start(self, *options: str) -> None:
        ports = dict(zip(_PORT_OPTIONS, free_ports(len(_PORT_OPTIONS)), strict=True))
        self.metrics_ports.append(ports["metrics-export-port"])
        command = [
            str(RAY), "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
            f"--object-store-memory={200 * 2**20}", "--min-worker-port=0", "--max-worker-port=0",
            *(f"--{name}={port}" for name, port in ports.items()), *options,
        ]  # fmt: skip
        with (self.folder / f"start-{len(self._nodes)}.log").open("wb") as log:
            # Else a node that is told to end waits half a minute for work that nobody needs now.
            environment = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
            environment |= self.environment() | self._own
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self._nodes.append(process)

    def _wait_for_dashboard(self) -> None:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        request = urllib.request.Request(f"{self.dashboard_url}/api/version", headers=headers)

        def answers() -> bool:
            with suppress(urllib.error.URLError, OSError):
                with urllib.request.urlopen(request, timeout=5):
                    return True
            return False

        log = self.folder / "start-0.log"
        wait_for(answers, self._nodes[0], deadline_s=_START_S, log=log, every_s=0.5)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The head last: a node that loses it logs for a while. `ray stop` would end every Ray here.
        for process in reversed(self._nodes):
            end(process, grace_s=_STOP_S)
        shutil.rmtree(self.folder, ignore_errors=True)
