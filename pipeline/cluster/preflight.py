"""Preflight: a look at one GPU of each kind of node, in a few seconds, before any work.

Ray counts GPUs by their driver. Whether torch can compute on them is known only there: a driver
that is too old for the CUDA of torch shows after minutes otherwise, as a failed worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cluster.auto import uses_gpu
from pipeline.cluster.connect import Cluster
from pipeline.cluster.marked_nodes import marks_of, on_nodes
from pipeline.config import Config
from pipeline.errors import ClusterError

DEADLINE_S = 300.0
"""A node whose GPU does not answer for so long is an error, as it is to Ray Train."""
_DRIVER = Path("/proc/driver/nvidia/version")
_SIDE = 256  # of the matrices whose product is checked


@dataclass(frozen=True)
class GpuReport:
    """Answer of a GPU.

    Args:
        node: address of its node.
        name: of the GPU; empty when torch sees none.
        driver: its version, as the node says it.
        cuda: version of CUDA that torch was built for.
        free_bytes, total_bytes: of its memory.
        problem: why torch cannot compute there; empty when it can.
        slow_views: why Triton cannot make the views there; empty when it can.
    """

    node: str
    name: str = ""
    driver: str = "unknown"
    cuda: str = "none"
    free_bytes: int = 0
    total_bytes: int = 0
    problem: str = ""
    slow_views: str = ""

    @property
    def memory(self) -> str:
        """Free and total memory in words."""
        return f"{self.free_bytes / 2**30:.1f} GiB free of {self.total_bytes / 2**30:.1f}"


def look(node: str = "this machine") -> GpuReport:
    """Compute a bfloat16 product and some views on the first GPU of this process, and report."""
    import torch

    from sdclr.rendering import SLOW_VIEWS, problem_on

    report = GpuReport(node, driver=driver_version(), cuda=torch.version.cuda or "none")
    if not torch.cuda.is_available():
        return replace(report, problem="torch sees no GPU")
    try:
        name = torch.cuda.get_device_name(0)
        ones = torch.ones(_SIDE, _SIDE, dtype=torch.bfloat16, device="cuda:0")
        product = float((ones @ ones).float().mean())
        slow = problem_on(torch.device("cuda", 0))
        free_bytes, total_bytes = torch.cuda.mem_get_info(0)
    except RuntimeError as error:  # of CUDA, which has no class of its own for most of them
        first = (str(error).splitlines() or [""])[0]
        return replace(report, problem=f"{type(error).__name__}: {first}")
    wrong = "" if product == _SIDE else f"a bfloat16 product gave {product:g}, not {_SIDE}"
    return replace(
        report,
        name=name,
        free_bytes=free_bytes,
        total_bytes=total_bytes,
        problem=wrong,
        slow_views=f"{SLOW_VIEWS}: {slow}" if slow else "",
    )


def driver_version(file: Path = _DRIVER) -> str:
    """Return the version of NVIDIA's driver on this machine."""
    try:
        words = file.read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return "unknown"
    return next((w for w in words if w[0].isdigit() and "." in w), "unknown")


def kinds_of(nodes: Sequence[Mapping[str, Any]], mark: str | None) -> list[Mapping[str, Any]]:
    """Return one node of each kind that has GPUs: of each type and number of them.

    Args:
        nodes: of `ray.nodes()`.
        mark: of the nodes that train; None = any.
    """
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for node in nodes:
        has = node["Resources"]
        if node["Alive"] and has.get("GPU", 0) >= 1 and (mark is None or mark in marks_of(node)):
            types = sorted(name for name in has if name.startswith("accelerator_type:"))
            found.setdefault((*types, has["GPU"]), node)
    return list(found.values())


def look_at_nodes(
    cluster: Cluster,
    config: Config,
    *,
    looks: Callable[[str], GpuReport] = look,
    deadline_s: float = DEADLINE_S,
) -> list[GpuReport]:
    """Return a report of one GPU of each kind of node; none where training uses CPUs.

    Raises:
        ClusterError: torch cannot compute on a GPU that Ray counts, or it does not answer.
    """
    if not uses_gpu(config, cluster.num_gpus) or cluster.num_gpus < 1:
        return []
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = config.placement.train_nodes
    waiting = {}
    for node in kinds_of(ray.nodes(), mark):  # type: ignore[no-untyped-call]
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        # Given here, GPUs make Ray end the process with its task, which frees their memory.
        task = ray.remote(num_cpus=0, num_gpus=1, **on_nodes(mark))(looks)
        name = str(node["NodeManagerAddress"])
        waiting[task.options(scheduling_strategy=there).remote(name)] = name
    ready, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=deadline_s)
    for reference in late:
        ray.cancel(reference)
        raise ClusterError(
            "E-CLUSTER-871",
            f"no GPU of node {waiting[reference]} answered for {deadline_s:g} s",
            where=waiting[reference],
            todo="wait for other jobs that use its GPUs, or look at the node",
        )
    reports: list[GpuReport] = ray.get(ready)
    refuse_unusable(reports)
    return reports


def refuse_unusable(reports: Sequence[GpuReport]) -> None:
    """Raise ClusterError for a GPU on which torch cannot compute, with driver and CUDA."""
    for report in reports:
        if report.problem:
            raise ClusterError(
                "E-CLUSTER-870",
                f"Ray counts a GPU that torch cannot use: {report.problem}; the driver is "
                f"{report.driver}, torch is built for CUDA {report.cuda}",
                where=f"node {report.node}",
                todo="install a driver that is new enough for this CUDA (R580 for CUDA 13), or "
                "train without GPUs: train.device=cpu",
            )
