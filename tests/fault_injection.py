"""Several Ray nodes on this machine, a run on them, and things to kill while it trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.model import checkpoint
from pipeline.record.metrics import newest_rows, read_rows
from pipeline.record.rows import StepRow
from sdclr import TrainState
from tests.conftest import REPO
from tests.running import wait_for

# Read by the head when it starts: a dead node is noticed after 3 s instead of 15. A loaded network
# needs more patience.
QUICK_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class Nodes:
    """A head and workers' nodes, each with a raylet of its own and one CPU."""

    def __init__(self, num_nodes: int) -> None:
        from ray.cluster_utils import Cluster

        tmp = os.environ.get("RAY_TMPDIR", "/tmp")
        Path(tmp, "ray").mkdir(parents=True, exist_ok=True)
        self._args: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
        self._cluster = Cluster(initialize_head=True, head_node_args=self._args)
        self.address = self._cluster.address
        self._nodes = [self._cluster.add_node(**self._args) for _ in range(num_nodes)]

    def raylets(self) -> list[int]:
        """Process ids of all raylets but the head's."""
        return [_raylet(node) for node in self._nodes]

    def train_workers(self) -> list[int]:
        """Process ids of the Ray Train workers on any node."""
        return _train_workers({*self.raylets(), _raylet(self._cluster.head_node)})

    def has_train_worker(self, raylet: int) -> bool:
        """Whether a Ray Train worker runs on the node of a raylet."""
        return bool(_train_workers({raylet}))

    def raylets_with_trials(self) -> list[int]:
        """Process ids of the raylets but the head's that have a trial of Ray Tune."""
        parents = {parent for _, parent, title in _processes() if "ray::ImplicitFunc" in title}
        return [raylet for raylet in self.raylets() if raylet in parents]

    def kill_raylet(self, pid: int, *, replaced: bool = True) -> None:
        """Kill the raylet of a node, and start another node in its place."""
        (node,) = (n for n in self._nodes if _raylet(n) == pid)
        os.kill(pid, signal.SIGKILL)
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        if replaced:
            self.add()

    def add(self) -> None:
        """Start another node."""
        self._nodes.append(self._cluster.add_node(**self._args))

    def silence_raylet(self, pid: int) -> None:
        """Stop the raylet of a node and all below it: nothing ends, nothing answers."""
        for victim in (pid, *(child for child, parent, _ in _processes() if parent == pid)):
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGSTOP)

    def kill_everything(self) -> None:
        """Kill the head and all nodes with whatever runs on them, at once."""
        nodes = [self._cluster.head_node, *self._nodes]
        raylets = {_raylet(node) for node in nodes}
        victims = [pid for pid, parent, _ in _processes() if parent in raylets]
        for node in nodes:
            victims += [info.process.pid for kind in node.all_processes.values() for info in kind]
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def give_notice(self, pid: int, *, deadline_s: float) -> None:
        """Tell Ray that the node of a raylet will be taken away, as a cloud tells of a spot one."""
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        (node,) = (n for n in self._nodes if _raylet(n) == pid)
        GcsClient(address=self.address).drain_node(
            node.node_id,
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "spot",
            int((time.time() + deadline_s) * 1000),
        )

    def close(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()


@contextmanager
def nodes(num_nodes: int, **environment: str) -> Iterator[Nodes]:
    """Nodes that are stopped at the end; `environment` is set while they start."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    cluster = Nodes(num_nodes)
    try:
        yield cluster
    finally:
        cluster.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _train_workers(raylets: set[int]) -> list[int]:
    return [pid for pid, parent, title in _processes()
            if parent in raylets and "RayTrainWorker" in title]  # fmt: skip


def _processes() -> Iterator[tuple[int, int, str]]:
    """(process id, parent's, title) of every process."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, UnicodeDecodeError):  # it has just ended
                continue
            yield int(folder.name), parent, title


class Driver:
    """`python pipeline/run.py WORDS` in a folder, on the nodes at `address`."""

    program = REPO / "pipeline" / "run.py"

    def __init__(self, folder: Path, address: str, *words: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._output = open(folder / "driver.log", "ab")
        self.process = subprocess.Popen(
            [sys.executable, str(self.program), *words],
            cwd=folder,
            env={**os.environ, "RAY_ADDRESS": address},
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        self._log = folder / "driver.log"

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def wait(self, timeout_s: float = 600) -> int:
        """Its exit code."""
        code = self.process.wait(timeout_s)
        self._output.close()
        return code

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = 300) -> None:
        """Wait for something that happens while it runs."""
        wait_for(condition, self.process, deadline_s=timeout_s, log=self._log)


def only_run(root: str) -> str:
    """The one run below a folder; empty before there is one."""
    names = storage.list_names(root)
    assert len(names) <= 1, names
    return storage.join(root, names[0]) if names else ""


def has_reached(root: str, step: int) -> Callable[[], bool]:
    """Whether the run below `root` has a metrics line of `step` or later."""

    def look() -> bool:
        run = only_run(root)
        newest = newest_rows(run).step if run else None
        return newest is not None and newest.step >= step

    return look


def losses(run: str) -> list[tuple[str, int, float]]:
    """Method, step and loss of every metrics line."""
    rows = read_rows(run, StepRow)
    return [(row.method, row.step, row.loss) for row in rows]


def scores(run: str) -> dict[str, Any]:
    """The run's evaluation, without the seconds that it took."""
    found: dict[str, Any] = json.loads(storage.read_bytes(storage.join(run, "evaluation.json")))
    del found["timings_s"]
    return found


def final_state(run: str, method: str) -> TrainState:
    """The state of the last checkpoint: weights, momentum, both BatchNorm sets, masks, step."""
    folder = checkpoint.checkpoints_uri(run, method)
    step = max(int(name.removeprefix("step-")) for name in storage.list_names(folder))
    uri = checkpoint.checkpoint_uri(folder, step)
    record = json.loads(storage.read_bytes(storage.join(uri, "commit.json")))
    return checkpoint.load(uri, config_hash=record["config_hash"])
