"""Memory of an ingest's driver for each image, in a plan for a million names."""

from __future__ import annotations

import resource
import time

import numpy as np
import pyarrow as pa

from benchmarks.table import Row, main
from pipeline.config import Config
from pipeline.ingest.plan import chunks_of, work_of
from pipeline.ingest.sources import splits
from pipeline.ingest.sources.index import ImageIndex

_NUM_IMAGES = 1_000_000


def rows() -> list[Row]:
    """Measure bytes of an image beyond its name, and seconds to plan its shards."""
    start_s, before = time.perf_counter(), _resident_bytes()
    numbers = pa.array(np.arange(_NUM_IMAGES)).cast(pa.large_string())
    names = pa.compute.binary_join_element_wise(
        pa.scalar("photos/2026/", pa.large_string()), numbers, pa.scalar("", pa.large_string())
    )
    labels_N = np.full(_NUM_IMAGES, -1, np.int32)
    index = ImageIndex(
        source={"kind": "folder"},
        ids=names,
        num_bytes_N=np.random.default_rng(0).integers(10_000, 200_000, _NUM_IMAGES),
        labels_N=labels_N,
        sets=splits.ordered({"pretrain": np.arange(_NUM_IMAGES)}, seed=0),
        class_names=None,
        root="/photos",
    )
    config = Config.model_validate({"data": {"source": "folder", "path": "/photos"}})
    chunks = list(chunks_of(work_of(config, index), config.ingest.shard_bytes))
    held = index.ids.nbytes + labels_N.nbytes + index.num_bytes_N.nbytes
    held += sum(rows.nbytes for rows in index.sets.values())
    name = f"plan of {_NUM_IMAGES:,} images in {len(chunks):,} shards"
    peak = _resident_bytes() - before
    return [
        Row(name=name, values=[held / _NUM_IMAGES], unit="bytes/image", note="held, name included"),
        Row(name=name, values=[peak / _NUM_IMAGES], unit="bytes/image", note="peak of the process"),
        Row(name=name, values=[time.perf_counter() - start_s], unit="s"),
    ]


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(rows)
