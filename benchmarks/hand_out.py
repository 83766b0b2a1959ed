"""Cost of handing out a streamed set: CPU time of each rank for each decode task.

    python -m benchmarks.hand_out

Images are of 4 px, so that the tasks themselves take little. Ranks are processes that stay, each
hands out its own parts of an epoch, and all begin together. The first epoch, in which processes
start, is left out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.streamed import config_of, write_set
from benchmarks.table import Row, main
from pipeline import feed
from pipeline.dataset.manifest import ImageInfo, Manifest
from pipeline.feed.schedule import RankSchedule
from pipeline.feed.tasks import RankTasks, StreamedSet
from sdclr import EpochPlan

IMAGES_PER_RANK, PER_SHARD, NUM_SHARDS, SIDE_PX, PART_ROWS = 64, 609, 48, 4, 64
RANKS, REPEATS = (1, 2, 4, 8), 3


def rows() -> list[Row]:
    """Measure CPU milliseconds of each rank for each part, and parts a second of all."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with tempfile.TemporaryDirectory() as folder:
            generator = np.random.default_rng(0)
            images = [generator.bytes(3 * SIDE_PX**2) for _ in range(NUM_SHARDS * PER_SHARD)]
            info = ImageInfo("raw", SIDE_PX, SIDE_PX)
            manifest = write_set(folder, info, images, PER_SHARD)
            found = []
            for num_ranks in RANKS:
                runs = list(_measured(folder, manifest, num_ranks))[1:]
                of = f"{num_ranks} ranks"
                ms, speed = zip(*runs, strict=True)
                found.append(Row(name=f"CPU time of a rank, {of}", values=ms, unit="ms/part"))
                found.append(Row(name=f"all together, {of}", values=speed, unit="parts/s"))
            return found
    finally:
        ray.shutdown()


def _measured(data_uri: str, manifest: Manifest, num_ranks: int) -> Iterator[tuple[float, float]]:
    """Yield milliseconds of CPU for a part, and parts a second of all ranks, of each epoch."""
    import ray

    config = config_of(
        "train.epochs=1",
        f"train.workers={num_ranks}",
        f"train.global_batch={num_ranks * IMAGES_PER_RANK}",
    )
    stream = feed.streamed_set(config, manifest, data_uri)
    budget = replace(stream.budget, part_rows=PART_ROWS)
    stream, plan = replace(stream, budget=budget), feed.epoch_plan(config, manifest)
    actor: Any = ray.remote(_Rank).options(num_cpus=0)
    ranks = [actor.remote(stream, plan, rank) for rank in range(num_ranks)]
    for _ in range(REPEATS + 1):
        ray.get([rank.ready.remote() for rank in ranks])
        start_s = time.perf_counter()
        found = ray.get([rank.hand_out.remote() for rank in ranks])
        wall_s = time.perf_counter() - start_s
        parts = sum(number for number, _ in found)
        yield 1e3 * sum(seconds for _, seconds in found) / parts, parts / wall_s


class _Rank:
    """A rank that takes all parts of its first epoch, and nothing else."""

    def __init__(self, stream: StreamedSet, plan: EpochPlan, rank: int) -> None:
        self.stream, self.plan, self.rank = stream, plan, rank

    def ready(self) -> None:
        """Answer once the process is there."""

    def hand_out(self) -> tuple[int, float]:
        """Take all parts of an epoch; how many, and the CPU time of this process for them."""
        part_rows = self.stream.budget.part_rows
        schedule = RankSchedule(self.plan, self.stream.shard_rows, 0, self.rank, part_rows)
        start_s = time.process_time()
        tasks, num_parts = RankTasks(self.stream, schedule, 0, 0), 0
        for need in sorted(part.need for unit in schedule.units(0, 0) for part in unit.parts):
            tasks.release(tasks.take(need.stream))
            num_parts += 1
        return num_parts, time.process_time() - start_s


if __name__ == "__main__":
    main(rows)
