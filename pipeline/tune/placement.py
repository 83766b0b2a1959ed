"""Placement of trials: how many fit the cluster at once, and what each takes."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.cluster.connect import Cluster, usable_cpus
from pipeline.cluster.marked_nodes import labels_on, resources_on
from pipeline.config import Config
from pipeline.errors import ClusterError, ConfigError

# A machine that runs everything lends Ray Data a CPU on top of those it has; trials leave it free.
_DATA_CPUS = 1
# A trial whose workers are a Ray Train run of their own takes next to nothing itself.
_DRIVER_CPUS = 0.01

CPUS_PER_WORKER = 1
"""Threads of a trial's worker: more trials at once beat more threads for each."""


@dataclass(frozen=True)
class Placement:
    """Resources of a trial.

    Args:
        resources: of the trial's own process, for Ray Tune.
        labels: of the nodes for that process; empty = any node.
        cpus, gpus: of the whole trial, its workers included.
        gpus_per_worker: 0 on CPUs.
        concurrent: trials at the same time, >= 1.
    """

    resources: dict[str, float]
    labels: dict[str, str]
    cpus: float
    gpus: float
    gpus_per_worker: float
    concurrent: int


def place(
    config: Config, *, num_cpus: int, num_gpus: int, node_cpus: float | None = None
) -> Placement:
    """Return the placement of a sweep on so many CPUs (that of Ray Data not counted) and GPUs.

    `node_cpus` are those of the largest node, when there are several: a worker is on one node.

    Raises:
        ClusterError: not even one trial fits.
        ConfigError: the workers of a trial would share a GPU.
    """
    t, device = config.tune, config.train.device
    share = 1.0 if t.gpus_per_worker is None else t.gpus_per_worker
    on_gpu = device == "cuda" or (device == "auto" and num_gpus > 0)
    gpus_per_worker = share if on_gpu else 0.0
    if on_gpu and t.trial_workers > 1 and share < 1:
        raise ConfigError(
            "E-CONFIG-038",
            "workers of one trial cannot share a GPU: NCCL takes one process on each",
            where=f"tune.gpus_per_worker={share:g}, tune.trial_workers={t.trial_workers}",
            todo="set tune.gpus_per_worker=1 or tune.trial_workers=1",
        )
    cpus, gpus = float(t.trial_workers * CPUS_PER_WORKER), t.trial_workers * gpus_per_worker
    fits = int(num_cpus // cpus)
    if node_cpus is not None and node_cpus < CPUS_PER_WORKER:
        fits = 0
    if on_gpu:
        # A GPU is shared by whole workers only.
        fits = min(fits, num_gpus * int(1 / share) // t.trial_workers)
    if fits < 1:
        what = f"{cpus:g} CPU and {gpus:g} GPU" if on_gpu else f"{cpus:g} CPU"
        raise ClusterError(
            "E-CLUSTER-015",
            f"no trial can be placed: each needs {what}, there are {num_cpus} CPU and "
            f"{num_gpus} GPU"
            + ("" if node_cpus is None else f", on one node at most {node_cpus:g} CPU"),
            where="tune.trial_workers, tune.gpus_per_worker, train.device",
            todo="lower them, or join a larger cluster",
        )
    resources = {"CPU": cpus} | ({"GPU": gpus} if on_gpu else {})
    mark = config.placement.train_nodes
    resources |= resources_on(mark)
    labels = labels_on(mark)
    if t.trial_workers > 1:
        resources, labels = {"CPU": _DRIVER_CPUS}, {}
    return Placement(resources, labels, cpus, gpus, gpus_per_worker, concurrent=fits)


def place_on(config: Config, cluster: Cluster) -> Placement:
    """Return the placement on a cluster that this process is connected to."""
    return place(
        config,
        num_cpus=cluster.num_cpus - _DATA_CPUS,
        num_gpus=cluster.num_gpus,
        node_cpus=cluster.largest_node_cpus,
    )


def place_here(config: Config) -> Placement:
    """Return the placement on this machine, without Ray."""
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return place(config, num_cpus=usable_cpus(), num_gpus=num_gpus)
