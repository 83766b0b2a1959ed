"""Raw images streamed beside the loop that only reads and decodes them, by the number of shards.

    python -m benchmarks.raw_feed

262,144 images of 32 px, 0.8 GB on disk. A cut between two streams goes through a shard, which then
is read twice, so the fewer shards a stream has the more is read. images/s are of CPU time of all
processes, Ray's own included: those of one core.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch

from benchmarks.streamed import CpuClock, Streamed, config_of, one_cpu, write_set
from benchmarks.table import Row, main
from benchmarks.timing import in_turns, ratios
from pipeline import feed
from pipeline.dataset.manifest import ImageInfo
from pipeline.dataset.shards import read_table

NUM_IMAGES, SIDE_PX, REPEATS = 2**18, 32, 5
SHARDS, TARGETED = (40, 160), 160


def rows_of(num_shards: int, images: list[bytes]) -> list[Row]:
    """Measure the loop and the feed on one set."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_set(
            folder, ImageInfo("raw", SIDE_PX, SIDE_PX), images, -(-len(images) // num_shards)
        )
        decoder = feed.decoder(config_of(), folder, manifest)

        def loop() -> None:
            for shard in manifest.sets["pretrain"].shards:
                decoder.pixels(read_table(folder, shard))

        streamed, clock = Streamed(folder, manifest, config_of()), CpuClock()
        spent = in_turns({"loop": loop}, repeats=REPEATS, clock=clock)
        spent |= in_turns({"feed": streamed}, repeats=REPEATS, clock=clock)
        streamed.feed.close()
        what = f"raw 32 px, {num_shards} shards, {streamed.plan.num_streams} streams"
        found = [
            Row(
                name=f"{what}: {name}",
                values=[len(images) / s for s in values],
                unit="images/s core",
            )
            for name, values in spent.items()
        ]
        target = 0.5 if num_shards == TARGETED else None
        ratio = ratios(spent["loop"], spent["feed"])
        return [
            *found,
            Row(name=f"{what}: feed", values=ratio, unit="x", versus="loop", target=target),
        ]


def rows() -> list[Row]:
    """Run everything on one Ray CPU."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    images = [generator.bytes(3 * SIDE_PX**2) for _ in range(NUM_IMAGES)]
    with one_cpu():
        return [row for num_shards in SHARDS for row in rows_of(num_shards, images)]


if __name__ == "__main__":
    main(rows)
