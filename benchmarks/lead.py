"""Cost of handing out a streamed set: CPU time of rank 0 for each decode task.

    python -m benchmarks.lead

Ranks, images a rank and shards are as in docs/scale.md at 64 GPUs; images are of 4 px, so that the
tasks themselves take little. One process hands out all parts, so its time bounds the parts that a
run of any size can have in a second.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace

import numpy as np

from benchmarks.feed import write_set
from benchmarks.table import Row, main
from pipeline import feed
from pipeline.config.file import load_config
from pipeline.dataset.manifest import ImageInfo, Manifest
from pipeline.feed.tasks import TaskStream

NUM_RANKS, IMAGES_PER_RANK, ROWS_PER_SHARD, NUM_SHARDS, SIDE_PX = 64, 64, 609, 48, 4
WINDOWS = (8, 4, 2, 1)


def rows() -> list[Row]:
    """Measure CPU milliseconds of the submitting process for each decoding task."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with tempfile.TemporaryDirectory() as folder:
            generator = np.random.default_rng(0)
            images = [generator.bytes(3 * SIDE_PX**2) for _ in range(NUM_SHARDS * ROWS_PER_SHARD)]
            info = ImageInfo("raw", SIDE_PX, SIDE_PX)
            manifest = write_set(folder, info, images, ROWS_PER_SHARD)
            _ms_per_part(folder, manifest, WINDOWS[0])  # processes start
            return [
                Row(
                    name=f"rank 0, {NUM_RANKS} ranks, feed.window_shards={window}",
                    values=[_ms_per_part(folder, manifest, window) for _ in range(3)],
                    unit="ms/part",
                )
                for window in WINDOWS
            ]
    finally:
        ray.shutdown()


def _ms_per_part(data_uri: str, manifest: Manifest, window_shards: int) -> float:
    config = load_config(
        None,
        (
            "feed.cache=none", "train.epochs=1", f"train.workers={NUM_RANKS}",
            f"train.global_batch={NUM_RANKS * IMAGES_PER_RANK}",
            f"feed.window_shards={window_shards}",
        ),
    )  # fmt: skip
    stream = feed.streamed_set(config, manifest, data_uri)
    # A piece is one step and a part its images of a rank, as with photos of 256 px.
    one = replace(stream.budget, piece_steps=1, part_rows=IMAGES_PER_RANK, pieces_ahead=3)
    stream = replace(stream, budget=one)
    plan = feed.epoch_plan(config, manifest)
    num_parts, start_s = 0, time.process_time()
    for parts in TaskStream(stream, plan, 0, 0).pieces():
        num_parts += sum(len(of_rank) for of_rank in parts)
    return 1e3 * (time.process_time() - start_s) / num_parts


if __name__ == "__main__":
    main(rows)
