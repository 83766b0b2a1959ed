"""The streamed feed under a bound: 20 times as much passes through at a level below it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from benchmarks.feed_memory import Levels, object_store_bytes, stored_set
from pipeline import feed
from pipeline.config.file import load_config
from pipeline.dataset.manifest import Manifest
from tests.running import wait_for

pytestmark = pytest.mark.ray
BOUND_BYTES, FACTOR, SIDE_PX, BATCH = 4 * 2**20, 20, 96, 12
BATCH_BYTES = BATCH * 3 * SIDE_PX**2


@pytest.fixture(scope="module")
def stored(ray_cluster: None) -> Iterator[tuple[str, Manifest]]:
    with stored_set(FACTOR * BOUND_BYTES, side_px=SIDE_PX, per_shard=BATCH) as found:
        yield found


def feed_of(stored: tuple[str, Manifest], bound_bytes: int) -> feed.StreamFeed:
    uri, manifest = stored
    words = ["feed.cache=none", f"train.global_batch={BATCH}",
             f"feed.max_memory_bytes={bound_bytes}", "train.workers=1"]  # fmt: skip
    config = load_config(None, words)
    stream = replace(feed.streamed_set(config, manifest, uri), epochs=1)
    assert stream.budget.bytes <= bound_bytes
    plan = feed.epoch_plan(config, manifest)
    return feed.StreamSource(stream, device=torch.device("cpu")).feed(plan, seed=0, rank=0)


@pytest.mark.promise("R37")
def test_a_set_of_twenty_times_the_bound_passes_below_it(stored: tuple[str, Manifest]) -> None:
    streamed, before = feed_of(stored, BOUND_BYTES), object_store_bytes()
    num_batches = 0
    with Levels(object_store_bytes, 0.005) as levels:
        for _ in streamed.batches(0):
            num_batches += 1
    used = [value - before for value in levels.values]
    assert num_batches * BATCH_BYTES > 0.9 * FACTOR * BOUND_BYTES
    assert max(used) > BATCH_BYTES  # it was looked at while it worked
    # What is in the store, and the batches beside it; two more may wait for Ray to delete them.
    assert max(used) <= BOUND_BYTES
    assert max(used) + 3 * BATCH_BYTES <= BOUND_BYTES + 2 * BATCH_BYTES
    # Flat: once images come, no higher in the second half than in the first.
    begun = next(look for look, value in enumerate(used) if value > BATCH_BYTES)
    half = (len(used) - begun) // 2
    assert max(used[-half:]) < 1.5 * max(used[begun:][:half])


@pytest.mark.promise("R37", control=True)
def test_control_with_another_bound_the_level_exceeds_it(stored: tuple[str, Manifest]) -> None:
    """A consumer that stops is waited for at the bound; ten times the bound is far above it."""
    narrow, before = feed_of(stored, BOUND_BYTES), object_store_bytes()
    batches = narrow.batches(0)  # kept: a generator that is dropped ends its walk
    next(batches)
    levels: list[int] = []

    def is_waiting() -> bool:
        """Whether something has come and the level was the same for the last hundred looks."""
        levels.append(object_store_bytes() - before)
        return levels[-1] > 0 and levels[-100:] == [levels[-1]] * 100

    wait_for(is_waiting, every_s=0.01, deadline_s=120)
    narrow.close()
    assert max(levels) <= BOUND_BYTES
    wide, start = feed_of(stored, 10 * BOUND_BYTES), object_store_bytes()
    batches = wide.batches(0)
    next(batches)
    wait_for(lambda: object_store_bytes() - start > BOUND_BYTES, deadline_s=120)
    wide.close()
