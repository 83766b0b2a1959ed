"""Raw images streamed beside the loop that only reads and decodes them, by the number of shards.

    python -m benchmarks.raw_feed

Two sets of images of 32 px. One has a million, 3 GB in shards of 64 MiB, and is streamed by the
default configuration. The other has a quarter of it in 40 shards, for 32 streams. A cut between two
streams goes through a shard, which then is read twice, so the fewer shards a stream has the more is
read. images/s are of CPU time of all processes, Ray's own included: those of one core.
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

SIDE_PX, REPEATS = 32, 5
SETS = ((2**20, 48), (2**18, 40))  # images, shards


def rows_of(num_images: int, num_shards: int) -> list[Row]:
    """Measure the loop and the feed on one set."""
    with tempfile.TemporaryDirectory() as folder, one_cpu():
        generator = np.random.default_rng(0)
        images = [generator.bytes(3 * SIDE_PX**2) for _ in range(num_images)]
        per_shard = -(-num_images // num_shards)
        manifest = write_set(folder, ImageInfo("raw", SIDE_PX, SIDE_PX), images, per_shard)
        del images
        decoder = feed.decoder(config_of(), folder, manifest)

        def loop() -> None:
            for shard in manifest.sets["pretrain"].shards:
                decoder.pixels(read_table(folder, shard))

        streamed, clock = Streamed(folder, manifest, config_of()), CpuClock()
        spent = in_turns({"loop": loop}, repeats=REPEATS, clock=clock)
        spent |= in_turns({"feed": streamed}, repeats=REPEATS, clock=clock)
        streamed.feed.close()
        what = f"{num_images} raw images, {num_shards} shards, {streamed.plan.num_streams} streams"
        found = [
            Row(
                name=f"{what}: {name}",
                values=[num_images / s for s in values],
                unit="images/s core",
            )
            for name, values in spent.items()
        ]
        ratio = ratios(spent["loop"], spent["feed"])
        return [
            *found,
            Row(name=f"{what}: feed", values=ratio, unit="x", versus="loop", target=0.5),
        ]


def rows() -> list[Row]:
    """Measure both sets, on one Ray CPU."""
    torch.set_num_threads(1)
    return [row for num_images, num_shards in SETS for row in rows_of(num_images, num_shards)]


if __name__ == "__main__":
    main(rows)
