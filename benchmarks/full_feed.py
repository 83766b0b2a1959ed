"""A streamed feed that waits for training: what it costs the step, and the machine.

    python -m benchmarks.full_feed

The start of a later epoch comes first: a step of 20 ms takes longer than its images. When training
is the bottleneck the feed is full almost always. Then it has nothing to do, and must do nothing: no
core burnt, no lock held that a short step would wait for. A step here is a product of two matrices,
half a millisecond of Python and PyTorch on one thread, in the process of the feed. Images are raw,
64 px.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.feed_memory import stored_set, stream_of
from benchmarks.streamed import CpuClock, one_cpu
from benchmarks.table import Row, main
from benchmarks.timing import ratios
from pipeline import feed
from pipeline.feed.tasks import StreamedSet
from sdclr import EpochPlan

SET_BYTES, BOUND_BYTES, SIDE_PX, PER_SHARD = 320 * 2**20, 64 * 2**20, 64, 64
STEPS, SIZE, REPEATS, IDLE_S, FILL_S = 5000, 320, 7, 5.0, 4.0
EPOCH_STEP_S = 0.02


def step_times() -> list[float]:
    """Return the seconds of each of many small steps."""
    a_nn, times = torch.rand(SIZE, SIZE), []
    for _ in range(STEPS):
        start_s = time.perf_counter()
        (a_nn @ a_nn).sum().item()
        times.append(time.perf_counter() - start_s)
    return times


def cores(clock: Callable[[], float]) -> float:
    """Return how many cores all our processes burn while nothing is asked of them."""
    start, start_s = clock(), time.perf_counter()
    time.sleep(IDLE_S)
    return (clock() - start) / (time.perf_counter() - start_s)


def epoch_starts(stream: StreamedSet, plan: EpochPlan) -> list[float]:
    """Return the seconds that each epoch but the first waits for its first batch."""
    source = feed.StreamSource(replace(stream, epochs=REPEATS + 1), device=torch.device("cpu"))
    batches, waits = source.feed(plan, seed=stream.seed, rank=0), []
    for epoch in range(REPEATS + 1):
        start_s = time.perf_counter()
        for number, _ in enumerate(batches.batches(epoch)):
            if number == 0:
                waits.append(time.perf_counter() - start_s)
            time.sleep(EPOCH_STEP_S)
    batches.close()
    return waits[1:]


def rows() -> list[Row]:
    """Measure steps and idle cores, without a feed and beside a full one, in turns."""
    torch.set_num_threads(1)
    steps: dict[str, list[float]] = {"alone": [], "beside a full feed": []}
    slowest: dict[str, list[float]] = {name: [] for name in steps}
    burnt: dict[str, list[float]] = {name: [] for name in steps}
    clock = CpuClock()

    def measure(name: str) -> None:
        times = sorted(step_times())
        steps[name].append(1e3 * times[len(times) // 2])
        slowest[name].append(1e3 * times[int(0.99 * len(times))])
        burnt[name].append(cores(clock))

    with one_cpu(), stored_set(SET_BYTES, side_px=SIDE_PX, per_shard=PER_SHARD) as (uri, manifest):
        starts = epoch_starts(*stream_of(uri, manifest, BOUND_BYTES))
        step_times()  # Ray's processes have started by its end
        for _ in range(REPEATS):
            measure("alone")
            stream, plan = stream_of(uri, manifest, BOUND_BYTES)
            source = feed.StreamSource(stream, device=torch.device("cpu"))
            batches = source.feed(plan, seed=stream.seed, rank=0)
            next(batches.batches(0))
            time.sleep(FILL_S)  # until it is full
            measure("beside a full feed")
            batches.close()
    found = [
        Row(
            name="first batch of a later epoch, when training is the bottleneck",
            values=[1e3 * wait_s for wait_s in starts],
            unit="ms",
            target=300,
            at_most=True,
        )
    ]
    found += [Row(name=f"small step, {name}", values=ms, unit="ms") for name, ms in steps.items()]
    found += [
        Row(name=f"small step, 99th percentile, {name}", values=ms, unit="ms")
        for name, ms in slowest.items()
    ]
    found.append(
        Row(
            name="small step beside a full feed",
            values=ratios(steps["beside a full feed"], steps["alone"]),
            unit="x",
            versus="alone",
            target=1.1,
            at_most=True,
        )
    )
    extra = [full - none for full, none in zip(*reversed(burnt.values()), strict=True)]
    found.append(
        Row(
            name="a full feed that nobody takes from",
            values=extra,
            unit="cores",
            versus="the same cluster without a feed",
            target=0.3,
            at_most=True,
        )
    )
    return found


if __name__ == "__main__":
    main(rows)
