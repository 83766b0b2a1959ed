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
MOST_BYTES = BOUND_BYTES + 2 * BATCH_BYTES  # two blocks may wait for Ray to delete them


@pytest.fixture(scope="module")
def stored(ray_cluster: None) -> Iterator[tuple[str, Manifest]]:
    with stored_set(FACTOR * BOUND_BYTES, side_px=SIDE_PX, per_shard=BATCH) as found:
        yield found


def level_at_rest() -> int:
    """Return the bytes in the store once it no longer falls: what a closed feed held is gone."""
    looks: list[int] = []

    def is_at_rest() -> bool:
        looks.append(object_store_bytes())
        return looks[-50:] == [looks[-1]] * 50

    wait_for(is_at_rest, every_s=0.02, deadline_s=60)
    return looks[-1]


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
    before, streamed = level_at_rest(), feed_of(stored, BOUND_BYTES)
    num_batches = 0
    with Levels(object_store_bytes, 0.005) as levels:
        for _ in streamed.batches(0):
            num_batches += 1
    used = [value - before for value in levels.values]
    assert num_batches * BATCH_BYTES > 0.9 * FACTOR * BOUND_BYTES
    assert max(used) > BATCH_BYTES  # it was looked at while it worked
    assert max(used) <= MOST_BYTES
    # Nothing is kept: near the end of the walk the level falls as low as where one batch is held.
    begun = next(look for look, value in enumerate(used) if value > BATCH_BYTES)
    end = max(look for look, value in enumerate(used) if value > BATCH_BYTES)
    last_quarter = used[begun + 3 * (end - begun) // 4 : end + 1]
    assert min(last_quarter) <= BOUND_BYTES / 2


@pytest.mark.promise("R37", control=True)
def test_control_with_another_bound_the_level_exceeds_it(stored: tuple[str, Manifest]) -> None:
    """A consumer that stops is waited for at the bound; ten times the bound is far above it."""
    before, narrow = level_at_rest(), feed_of(stored, BOUND_BYTES)
    batches = narrow.batches(0)  # kept: a generator that is dropped ends its walk
    next(batches)
    levels: list[int] = []

    def is_waiting() -> bool:
        """Whether something has come and the level was the same for the last hundred looks."""
        levels.append(object_store_bytes() - before)
        return levels[-1] > 0 and levels[-100:] == [levels[-1]] * 100

    wait_for(is_waiting, every_s=0.01, deadline_s=120)
    narrow.close()
    assert max(levels) <= MOST_BYTES
    start, wide = level_at_rest(), feed_of(stored, 10 * BOUND_BYTES)
    batches = wide.batches(0)
    next(batches)
    wait_for(lambda: object_store_bytes() - start > MOST_BYTES, deadline_s=120)
    wide.close()
