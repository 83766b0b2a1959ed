"""Share of a rank's decoded images that another node than its own has made.

    python -m benchmarks.two_nodes

Two nodes are two raylets on this machine, each with its own object store, one rank on each. What a
rank gets from the other node's store would cross the network of a real cluster.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace

import numpy as np

from benchmarks.streamed import config_of, write_set
from benchmarks.table import Row, main
from pipeline import feed
from pipeline.config import Config
from pipeline.dataset.manifest import ImageInfo, Manifest
from pipeline.feed.schedule import RankSchedule
from pipeline.feed.tasks import RankTasks

NUM_RANKS, NODE_CPUS, BATCH, PER_SHARD, NUM_SHARDS, SIDE_PX = 2, 2, 128, 256, 32, 64
REPEATS = 5


def taken(
    config: Config, manifest: Manifest, data_uri: str, rank: int, *, anywhere: bool
) -> tuple[int, int]:
    """Take all parts of an epoch; bytes in all, and of those that were on another node."""
    import ray

    stream, plan = feed.streamed_set(config, manifest, data_uri), feed.epoch_plan(config, manifest)
    stream = replace(stream, node=None) if anywhere else stream
    schedule = RankSchedule(plan, stream.shard_rows, 0, rank, stream.budget.part_rows)
    tasks, here = RankTasks(stream, schedule, 0, 0), ray.get_runtime_context().get_node_id()
    total = elsewhere = 0
    for need in sorted(part.need for unit in schedule.units(0, 0) for part in unit.parts):
        queued = tasks._decoded[need.stream]
        tasks._submit()
        while not tasks._is_done(queued):  # as in `take`
            tasks._submit()
        decoded, _ = queued[0]
        (places,) = ray.experimental.get_object_locations([decoded]).values()
        num_bytes = places["object_size"]
        total += num_bytes
        # Small ones are in no store: they come with the answer of their task.
        elsewhere += num_bytes * (here not in (places["node_ids"] or [here]))
        tasks.release(tasks.take(need.stream))
    return total, elsewhere


def measured(data_uri: str, manifest: Manifest, *, anywhere: bool) -> float:
    """Return the percentage of an epoch's decoded bytes that crossed from node to node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    config = config_of(
        "train.epochs=1", f"train.workers={NUM_RANKS}", f"train.global_batch={BATCH}"
    )
    nodes = [node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU")]
    task = ray.remote(taken)
    found = ray.get(
        [
            task.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(config, manifest, data_uri, rank, anywhere=anywhere)
            for rank, node in enumerate(nodes)
        ]
    )
    return 100 * sum(there for _, there in found) / sum(total for total, _ in found)


def rows() -> list[Row]:
    """Stream one epoch on two nodes, several times."""
    import ray
    from ray.cluster_utils import Cluster

    tmp = tempfile.TemporaryDirectory()
    # Ray writes the address of the newest cluster there. Every program without one would join it.
    os.environ["RAY_TMPDIR"] = tmp.name
    cluster = Cluster()
    try:
        for _ in range(NUM_RANKS):
            cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=2**29)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        with tempfile.TemporaryDirectory() as folder:
            generator = np.random.default_rng(0)
            images = [generator.bytes(3 * SIDE_PX**2) for _ in range(NUM_SHARDS * PER_SHARD)]
            manifest = write_set(folder, ImageInfo("raw", SIDE_PX, SIDE_PX), images, PER_SHARD)
            shares = [
                (
                    measured(folder, manifest, anywhere=False),
                    measured(folder, manifest, anywhere=True),
                )
                for _ in range(REPEATS)
            ]
    finally:
        ray.shutdown()
        cluster.shutdown()
        tmp.cleanup()
    bound, free = zip(*shares, strict=True)
    what = "decoded images of a rank that came from the other node"
    return [
        Row(name=what, values=bound, unit="%", target=0, at_most=True),
        Row(name=f"{what}, tasks placed by Ray", values=free, unit="%"),
    ]


if __name__ == "__main__":
    main(rows)
