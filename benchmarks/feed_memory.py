"""The memory of the streamed feed while a set of 20 times its bound passes through: the curve.

    python -m benchmarks.feed_memory

A thread looks at Ray's object store, and at the memory of all processes, while the batches of an
epoch are taken, more slowly than they could come. Each row is one fifth of the epoch. As a control
the same set is streamed without a bound. Images are raw, 64 px.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.streamed import config_of, one_cpu, processes, write_set
from benchmarks.table import Row, main
from pipeline import feed
from pipeline.dataset.manifest import ImageInfo, Manifest
from pipeline.feed.tasks import StreamedSet
from sdclr import EpochPlan

BOUND_BYTES, FACTOR, SIDE_PX, PER_SHARD, FIFTHS = 16 * 2**20, 20, 64, 64, 5
STEP_S, MIB = 0.02, 2**20


class Levels:
    """Values of `look`, taken every `interval_s` seconds since the start."""

    def __init__(self, look: Callable[[], int], interval_s: float) -> None:
        self.times_s: list[float] = []
        self.values: list[int] = []
        self._look, self._interval_s = look, interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._done.wait(self._interval_s):
            self.times_s.append(time.monotonic())
            self.values.append(self._look())

    def __enter__(self) -> Levels:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def between(self, start_s: float, stop_s: float) -> list[int]:
        """Return the values from one time to another."""
        pairs = zip(self.times_s, self.values, strict=True)
        return [value for at_s, value in pairs if start_s <= at_s <= stop_s]


def object_store_bytes() -> int:
    """Return the bytes in Ray's object store on this node."""
    import ray
    from ray._private.internal_api import node_stats

    (node,) = (node for node in ray.nodes() if node["Alive"])
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)
    return int(stats.store_stats.object_store_bytes_used)


def resident_bytes() -> int:
    """Return the memory of this process and Ray's workers; shared memory is divided."""
    total = 0
    for pid in processes():
        try:
            is_ours = pid == os.getpid() or b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text() if is_ours else ""
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:")
    return total * 1024


@contextmanager
def stored_set(num_bytes: int, *, side_px: int, per_shard: int) -> Iterator[tuple[str, Manifest]]:
    """Write a set of raw images of about that size to disk."""
    num_images = num_bytes // (3 * side_px**2) // per_shard * per_shard
    generator = np.random.default_rng(0)
    images = [generator.bytes(3 * side_px**2) for _ in range(num_images)]
    with tempfile.TemporaryDirectory() as uri:
        yield uri, write_set(uri, ImageInfo("raw", side_px, side_px), images, per_shard)


def stream_of(uri: str, manifest: Manifest, bound_bytes: int) -> tuple[StreamedSet, EpochPlan]:
    """Measure one epoch of a set under a bound."""
    config = config_of(f"feed.max_memory_bytes={bound_bytes}")
    stream = feed.streamed_set(config, manifest, uri)
    return replace(stream, epochs=1), feed.epoch_plan(config, manifest)


def epoch_ends(stream: StreamedSet, plan: EpochPlan) -> list[float]:
    """Take all batches of an epoch with pauses; their times, by `time.monotonic`, start first."""
    ends = [time.monotonic()]
    batches = feed.StreamSource(stream, device=torch.device("cpu")).feed(
        plan, seed=stream.seed, rank=0
    )
    for _ in batches.batches(0):
        ends.append(time.monotonic())
        time.sleep(STEP_S)
    batches.close()
    return ends


def rows() -> list[Row]:
    """Measure the curve under the bound, and the highest level without it."""
    found = []
    with (
        one_cpu(),
        stored_set(FACTOR * BOUND_BYTES, side_px=SIDE_PX, per_shard=PER_SHARD) as (uri, manifest),
    ):
        for bound_bytes in (BOUND_BYTES, 2**40):
            stream, plan = stream_of(uri, manifest, bound_bytes)
            with Levels(object_store_bytes, 0.01) as store, Levels(resident_bytes, 0.2) as resident:
                ends = epoch_ends(stream, plan)
            found += curve(ends, store, resident) if bound_bytes == BOUND_BYTES else control(store)
    return found


def curve(ends: list[float], store: Levels, resident: Levels) -> list[Row]:
    """Return a row for each fifth of the epoch and kind of memory."""
    found = []
    marks = [ends[round(part * (len(ends) - 1) / FIFTHS)] for part in range(FIFTHS + 1)]
    set_size = f"set of {FACTOR} x feed.max_memory_bytes ({BOUND_BYTES // MIB} MiB)"
    for kind, levels in (("object store", store), ("all processes", resident)):
        for part in range(FIFTHS):
            values = levels.between(marks[part], marks[part + 1])
            found.append(
                Row(
                    name=f"{set_size}, fifth {part + 1} of an epoch: {kind}",
                    values=[value / MIB for value in values],
                    unit="MiB",
                )
            )
    most = max(store.values) / MIB
    found.append(
        Row(
            name=f"{set_size}: object store at most",
            values=[most],
            unit="MiB",
            target=BOUND_BYTES / MIB,
            at_most=True,
        )
    )
    return found


def control(store: Levels) -> list[Row]:
    """Measure the highest level without a bound."""
    most = max(store.values) / MIB
    return [
        Row(name="the same set without a bound: object store at most", values=[most], unit="MiB")
    ]


if __name__ == "__main__":
    main(rows)
