"""Refusals of a dry run: of what the run would refuse at once on this machine. No Ray is started.

What a cluster at RAY_ADDRESS has is not known: of it, only the address is checked.
"""

from __future__ import annotations

from pipeline.cli.session import marks_of_stage
from pipeline.cluster import auto, startup
from pipeline.cluster.connect import check_workers, cluster_here, joined_address
from pipeline.cluster.marked_nodes import check_placement
from pipeline.cluster.preflight import look, refuse_unusable
from pipeline.config import Config
from pipeline.dataset.manifest import Manifest

_WITHOUT_RAY = ("export", "report")


def check_start(config: Config, stage: str) -> None:
    """Refuse, what the start of Ray here or the look at its nodes would refuse.

    Raises:
        ClusterError: as `Session.cluster`.
    """
    if stage in _WITHOUT_RAY:
        return
    address = joined_address()
    startup.check_settings(address, makes_folder=False)
    # Ray labels a machine by its GPU: what it has then is known once it runs.
    if address is None and not auto.gpus_here():
        check_placement(frozenset(), *marks_of_stage(config, stage))


def check_workers_here(config: Config, manifest: Manifest) -> None:
    """Refuse training workers for which this machine has no CPU, no GPU or too little memory.

    Raises:
        PipelineError: as when the training starts.
    """
    if joined_address() is not None:
        return
    from pipeline.train.checks import check_memory, uses_gpu  # and with it Ray

    cluster = cluster_here(auto.gpus_here())
    on_gpu = uses_gpu(config, cluster)
    gpus = [look()] if on_gpu and cluster.num_gpus else []
    refuse_unusable(gpus)
    check_workers(cluster, config.train.worker_counts[0], use_gpu=on_gpu)
    check_memory(config, manifest, gpus)
