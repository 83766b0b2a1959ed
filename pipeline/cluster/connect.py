"""The Ray cluster: join the one that is named, or start one here; check that the work fits."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster import startup
from pipeline.cluster.marked_nodes import labels_on, marks_of, resources_on
from pipeline.console import counted
from pipeline.errors import ClusterError, PipelineError

PROJECT_ROOT = Path(__file__).resolve().parents[2]

# Read by Ray when it is imported or started. A value set by the user wins.
RAY_SETTINGS = {
    # Ray deletes what is no longer used once a second; the feed may use its whole bound in less.
    "RAY_free_objects_period_milliseconds": "50",
    # The new reader starts 32 processes for each epoch; shards are read by our own tasks anyway.
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    # Workers that take every CPU would leave Ray Data none: fail in minutes, not in half an hour.
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "300",
    # The default of 2 s is added to the start and the end of each run.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    # Two workers that import torch on two cores need about 30 s; the default of 60 s is tight.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    # `ray.init` waits for the first workers, and for ever when one needs more than the 60 s of the
    # default: seen at a load of 66 on two cores.
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
DATA_CPUS = 1
"""Ray Data needs a CPU beside the workers; a machine that runs everything lends it one on top."""
# Errors of this project and mistakes in it, not of Ray's start.
_BUGS = (PipelineError, AttributeError, NameError, TypeError, AssertionError)
_GCS_PORT = "RAY_GCS_SERVER_PORT"
_GROW_POLL_S = 2.0


@dataclass(frozen=True)
class Cluster:
    """Cluster that this process is connected to."""

    address: str
    is_local: bool
    num_cpus: int
    num_gpus: int
    dashboard_url: str
    largest_node_cpus: int
    marks: frozenset[str] = frozenset()


def joined_address() -> str | None:
    """Return the address of the cluster that work would join; None = one is started here."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address


def cluster_here(num_gpus: int) -> Cluster:
    """Return the cluster that `connected` would start on this machine, with so many GPUs."""
    num_cpus = usable_cpus() + DATA_CPUS
    return Cluster("", True, num_cpus, num_gpus, dashboard_url="", largest_node_cpus=num_cpus)


@contextmanager
def connected() -> Iterator[Cluster]:
    """Join the cluster at RAY_ADDRESS (set inside a Ray job), else start one on this machine.

    A cluster started here is stopped at the end; one that was joined is left. After Ctrl-C or
    SIGTERM the end of the process leaves it: another thread may still wait for Ray, which ends the
    process with a code of its own, or a crash, when it is shut down meanwhile.

    Raises:
        ClusterError: the cluster at RAY_ADDRESS does not answer, or none can be started here.
    """
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    address = joined_address()
    startup.check_settings(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    began_s = time.time()
    try:
        import ray

        already = ray.is_initialized()
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray")
        if not already:
            _join_or_start(address)
    except SystemExit as ended:
        # Of Ray's handler of SIGTERM, which stands in for ours until Ray has started.
        if ended.code == signal.SIGTERM and callable(on_sigterm):
            on_sigterm(signal.SIGTERM, None)
        raise
    except Exception as error:  # a node that was not up in time is one of no type of its own
        if isinstance(error, _BUGS):
            raise
        raise startup.start_error(error, address, since_s=began_s) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in place, with exit code 15
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    is_interrupted = False
    try:
        yield _describe(is_local=not address)
    except (KeyboardInterrupt, SystemExit):
        is_interrupted = True
        raise
    finally:
        if not already and not (is_interrupted and address):
            ray.shutdown()


def _join_or_start(address: str | None) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        _start_here(**quiet)
    else:
        startup.check_answers(address)
        ray.init(address=address, runtime_env=_shipped_code(), **quiet)


def _start_here(**options: Any) -> None:
    """Start a cluster of this process, and give its workers the address.

    What clears up after a dead run of Ray Train looks for the cluster by itself. Next to one that
    `ray start` made it would find that one, miss its run there, and end the living run.
    """
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    env_vars = {"PYTHONPATH": _python_path(), "RAY_ADDRESS": f"127.0.0.1:{port}"}
    os.environ[_GCS_PORT] = str(port)
    try:
        ray.init(
            address="local",
            num_cpus=usable_cpus() + DATA_CPUS,
            runtime_env={"env_vars": env_vars},
            **options,
        )
    finally:
        del os.environ[_GCS_PORT]


def usable_cpus() -> int:
    """Return the CPUs that this process may use; a container may grant fewer than exist."""
    num_cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            num_cpus = min(num_cpus, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no control groups of version 2: only the affinity counts
    return max(1, num_cpus)


def smallest_object_store_bytes() -> int:
    """Return the smallest object store in bytes among the nodes that can run tasks."""
    import ray

    sizes = [
        int(node["Resources"].get("object_store_memory", 0))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and node["Resources"].get("CPU")
    ]
    return min(sizes, default=0)


def check_workers(cluster: Cluster, num_workers: int, *, use_gpu: bool) -> None:
    """Refuse a number of training workers that could never be placed.

    Raises:
        ClusterError: naming what there is and what was asked for.
    """
    if use_gpu and num_workers > cluster.num_gpus:
        raise ClusterError(
            "E-CLUSTER-001",
            f"training takes {counted(num_workers, 'GPU')}, one a worker; the cluster has "
            f"{cluster.num_gpus}",
            where=f"train.workers={num_workers}",
            todo="lower train.workers, add GPU nodes, or set train.device=cpu",
        )
    available = cluster.num_cpus - DATA_CPUS
    if num_workers > available:
        raise ClusterError(
            "E-CLUSTER-002",
            f"training takes {counted(num_workers, 'CPU')}, one a worker; the cluster has "
            f"{available} for it ({DATA_CPUS} more feeds the data)",
            where=f"train.workers={num_workers}",
            todo=f"set train.workers={max(1, available)} or less, or join a larger cluster",
        )


def wait_for_nodes(
    cluster: Cluster,
    num_workers: int,
    *,
    use_gpu: bool,
    worker_mark: str | None,
    marks: Sequence[str],
    wait_s: float,
) -> Cluster:
    """Wait until the cluster can hold the workers, or for `wait_s`; return it.

    An autoscaler, if there is one, is asked for the nodes.

    Args:
        cluster: as it is.
        num_workers: training workers at the same time; 0 where nothing is trained.
        use_gpu: whether each needs a GPU beside its CPU.
        worker_mark: of the nodes of these workers; None = any node.
        marks: all marks that some node must have.
        wait_s: how long to wait.
    """
    from ray.autoscaler.sdk import request_resources

    def fits(found: Cluster) -> bool:
        enough = found.num_cpus > num_workers and (not use_gpu or found.num_gpus >= num_workers)
        return enough and found.marks.issuperset(marks)

    end_s = time.monotonic() + wait_s
    worker = {"CPU": 1, **({"GPU": 1} if use_gpu else {})}
    others = [mark for mark in marks if mark != worker_mark or num_workers == 0]
    wanted = [(worker, worker_mark)] * num_workers + [({"CPU": 1}, mark) for mark in others]
    request_resources(
        bundles=[bundle | resources_on(mark) for bundle, mark in wanted],
        bundle_label_selectors=[labels_on(mark) for _, mark in wanted],
    )
    try:
        while not fits(cluster) and time.monotonic() < end_s:
            time.sleep(min(_GROW_POLL_S, wait_s))
            cluster = _describe(is_local=cluster.is_local)
    finally:
        request_resources(bundles=[])
    return cluster


def refreshed(cluster: Cluster) -> Cluster:
    """Return the same cluster with the nodes that it has by now."""
    return _describe(is_local=cluster.is_local)


def _describe(*, is_local: bool) -> Cluster:
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    context = ray.get_runtime_context()
    dashboard = ray.worker.global_worker.node.address_info.get("webui_url") or ""
    return Cluster(
        address=str(context.gcs_address),
        is_local=is_local,
        num_cpus=int(resources.get("CPU", 0)),
        num_gpus=int(resources.get("GPU", 0)),
        dashboard_url=f"http://{dashboard}" if dashboard else "",
        largest_node_cpus=max(int(n["Resources"].get("CPU", 0)) for n in nodes if n["Alive"]),
        marks=frozenset().union(*(marks_of(n) for n in nodes if n["Alive"])),
    )


def _shipped_code() -> dict[str, Any]:
    """Return what a cluster needs to import us; a job has shipped its working directory."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {}
    return {"py_modules": [str(PROJECT_ROOT / name) for name in ("pipeline", "sdclr")]}


def _python_path() -> str:
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return os.pathsep.join([str(PROJECT_ROOT), *others])
