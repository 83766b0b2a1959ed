"""The streamed order: at most once, mixed, equal for any ranks, and cut into tasks without loss."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.feed.schedule import Need, RankSchedule, Unit, streams_of
from sdclr import EpochPlan, EpochStreams, epoch_order
from sdclr.seeds import numpy_generator

SHARDS = [7, 5, 9, 1, 8, 6, 3, 11, 2, 4]
NUM_IMAGES = sum(SHARDS)
STARTS = np.cumsum([0, *SHARDS[:-1]])
Batches = dict[int, list[int]]


def plan_of(
    num_ranks: int = 1, *, streams: int = 4, drop_last: bool = True, batch: int = 16
) -> EpochPlan:
    return EpochPlan(
        num_images=NUM_IMAGES,
        global_batch=batch,
        drop_last=drop_last,
        num_ranks=num_ranks,
        num_streams=streams,
    )


def slow_order(shards: list[int], streams: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The definition, in full: one long order, cut into equal streams (C, N // C)."""
    starts = np.cumsum([0, *shards])
    long = [
        starts[shard] + numpy_generator(seed, "shard", epoch, int(shard)).permutation(shards[shard])
        for shard in numpy_generator(seed, "shards", epoch).permutation(len(shards))
    ]
    length = sum(shards) // streams
    return np.concatenate(long)[: streams * length].reshape(streams, length)


def slow_batches(plan: EpochPlan, seed: int = 0, epoch: int = 0) -> Batches:
    """As many images from each stream, step by step."""
    order, found = slow_order(SHARDS, plan.num_streams, seed, epoch), {}
    place = 0
    for step in range(plan.num_steps):
        share = plan.batch_size(step) // plan.num_streams
        found[step] = order[:, place : place + share].ravel().tolist()
        place += share
    return found


def of_rank(
    plan: EpochPlan, rank: int, *, start_step: int = 0, part_rows: int = 3, epoch: int = 0
) -> Batches:
    """The images of each step, by taking the parts of each stream as the feed does."""
    schedule = RankSchedule(plan, SHARDS, 0, rank, part_rows)
    rows: dict[int, list[int]] = defaultdict(list)
    for unit in schedule.units(epoch, start_step):
        for part in unit.parts:
            assert np.array_equal(part.rows, part.local_rows + STARTS[unit.shard])
            assert 0 < len(part.rows) <= part_rows
            rows[part.need.stream] += part.rows.tolist()
    found: Batches = {}
    for step in range(start_step, plan.num_steps):
        found[step] = []
        for stream in streams_of(plan, rank):
            length = len(schedule.taken(step, stream))
            found[step] += rows[stream][:length]
            del rows[stream][:length]
    assert not any(rows.values())  # nothing is decoded that is not used
    return found


def global_batches(plan: EpochPlan, *, start_step: int = 0, part_rows: int = 3) -> Batches:
    ranks = [
        of_rank(plan, rank, start_step=start_step, part_rows=part_rows)
        for rank in range(plan.num_ranks)
    ]
    return {step: [row for rank in ranks for row in rank[step]] for step in ranks[0]}


@pytest.mark.parametrize("streams", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("epoch", [0, 3])
def test_runs_are_those_of_the_definition(streams: int, epoch: int) -> None:
    found = EpochStreams(SHARDS, streams, 5, epoch)
    rows = [
        [
            row
            for shard, begin, end in found.runs(stream)
            for row in (STARTS[shard] + found.rows(shard)[begin:end]).tolist()
        ]
        for stream in range(streams)
    ]
    assert rows == slow_order(SHARDS, streams, 5, epoch).tolist()
    assert rows != slow_order(SHARDS, streams, 5, epoch + 1).tolist()
    assert rows != slow_order(SHARDS, streams, 6, epoch).tolist()


def test_one_stream_of_one_shard_is_the_order_of_a_set_in_memory() -> None:
    expected = epoch_order(20, seed=3, epoch=2)
    assert np.array_equal(EpochStreams([20], 1, 3, 2).rows(0), expected)
    assert not np.array_equal(EpochStreams([20, 1], 1, 3, 2).rows(0), expected)


@pytest.mark.promise("R6")
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("streams", [1, 2, 4, 16])
@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8, 16])
def test_any_ranks_share_the_batches_of_the_definition(
    num_ranks: int, streams: int, drop_last: bool
) -> None:
    """Also more ranks than streams, which then share one."""
    plan = plan_of(num_ranks, streams=streams, drop_last=drop_last)
    expected = slow_batches(plan)
    assert global_batches(plan) == expected
    if drop_last or num_ranks <= streams:
        assert slow_batches(plan_of(streams=streams, drop_last=drop_last)) == expected
    assert slow_batches(plan, epoch=1) != expected


@pytest.mark.promise("R6", control=True)
def test_control_another_number_of_streams_gives_other_batches() -> None:
    assert slow_batches(plan_of(streams=4)) != slow_batches(plan_of(streams=2))


def test_ranks_that_do_not_divide_the_streams_share_one() -> None:
    plan = plan_of(3, streams=4, batch=12, drop_last=False)
    assert [list(streams_of(plan, rank)) for rank in range(3)] == [[0, 1], [1, 2], [2, 3]]
    assert global_batches(plan) == slow_batches(plan)


@pytest.mark.parametrize("streams", [1, 4, 16])
def test_an_image_comes_at_most_once_and_few_are_left_out(streams: int) -> None:
    whole = plan_of(streams=streams, drop_last=False)
    for plan, most in ((whole, streams + 1), (plan_of(streams=streams), 16)):
        rows = list(itertools.chain(*global_batches(plan).values()))
        assert len(set(rows)) == len(rows) > NUM_IMAGES - most
    # Which ones are left out changes from epoch to epoch.
    used = [set(itertools.chain(*slow_batches(plan, epoch=e).values())) for e in (0, 1)]
    assert used[0] != used[1]


@pytest.mark.promise("R3")
@pytest.mark.parametrize("num_ranks", [1, 2, 8])
@pytest.mark.parametrize("part_rows", [1, 4, 100])
def test_a_resume_goes_on_with_the_next_batches(num_ranks: int, part_rows: int) -> None:
    plan = plan_of(num_ranks, drop_last=False)
    unbroken = global_batches(plan)
    for step in range(plan.num_steps):
        resumed = global_batches(plan, start_step=step, part_rows=part_rows)
        assert resumed == {k: rows for k, rows in unbroken.items() if k >= step}


@pytest.mark.promise("R3", control=True)
def test_control_a_resume_at_another_step_gives_other_batches() -> None:
    unbroken, resumed = global_batches(plan_of()), global_batches(plan_of(), start_step=1)
    assert resumed[1] == unbroken[1] and resumed[1] != unbroken[2]


@pytest.mark.parametrize("streams", [1, 4])
def test_a_resume_reads_again_no_more_than_a_shard_of_each_stream(streams: int) -> None:
    plan = plan_of(streams=streams, batch=4)
    schedule = RankSchedule(plan, SHARDS, 0, 0, 4)
    for step in range(plan.num_steps):
        used = {row for k, rows in slow_batches(plan).items() if k < step for row in rows}
        units = list(schedule.units(0, step))
        assert not used & {row for unit in units for part in unit.parts for row in part.rows}
        again: dict[int, int] = defaultdict(int)
        for unit in units:
            rows = set(range(STARTS[unit.shard], STARTS[unit.shard] + SHARDS[unit.shard]))
            again[unit.need.stream] += bool(rows & used)
        # Its own, and one that a cut shares with the next stream.
        assert max(again.values()) <= 2 and sum(again.values()) <= 2 * streams - 1


def test_units_and_parts_come_in_the_order_of_need() -> None:
    units = list(RankSchedule(plan_of(), SHARDS, 0, 0, 3).units(2, 1))
    assert [unit.need for unit in units] == sorted(unit.need for unit in units)
    assert {unit.need.epoch for unit in units} == {2} and units[0].need == Need(2, 1, 0)
    assert sum(len(part.rows) for unit in units for part in unit.parts) == (3 - 1) * 16
    for unit in units:
        assert unit.need == unit.parts[0].need
        assert [part.need for part in unit.parts] == sorted(part.need for part in unit.parts)


def test_the_first_parts_of_an_epoch_are_small() -> None:
    plan = EpochPlan(num_images=4000, global_batch=8, drop_last=True, num_streams=4)
    units: list[Unit] = list(RankSchedule(plan, [1000] * 4, 0, 0, 100).units(0, 7))
    sizes = [[len(part.rows) for part in unit.parts] for unit in units if unit.need.step == 7]
    assert [size[:6] for size in sizes] == [[2, 8, 32, 100, 100, 100]] * 4


def batches_of(shards: list[int], streams: int, batch: int, epoch: int = 0) -> NDArray[np.int64]:
    """The epoch as (steps, batch), from the definition."""
    order, share = slow_order(shards, streams, 0, epoch), batch // streams
    steps = order.shape[1] // share
    return np.concatenate(
        [order[:, k * share : (k + 1) * share].ravel()[None] for k in range(steps)]
    )


def imbalance(batches: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Mean over batches and classes of |share of the class in the batch - share in the set|."""
    share = np.bincount(labels) / len(labels)
    shares = np.stack([np.bincount(b, minlength=len(share)) / len(b) for b in labels[batches]])
    return float(np.abs(shares - share).mean())


def test_a_set_sorted_by_class_comes_out_mixed() -> None:
    """Of 64 shards with one of 10 classes each or two: the more streams, the better mixed."""
    shards, batch = [500] * 64, 256
    labels = np.arange(sum(shards)) * 10 // sum(shards)
    random = np.random.default_rng(0).permutation(len(labels)).reshape(-1, batch)
    chance = imbalance(random, labels)
    found = {c: imbalance(batches_of(shards, c, batch), labels) for c in (1, 8, 32, 64)}
    assert found[64] < 1.5 * chance and found[32] < 3.5 * chance
    assert found[8] > found[32] > found[64]
    assert found[1] > 8 * chance  # negative control: shards one by one stay sorted


def test_a_set_in_random_order_stays_mixed_with_any_streams() -> None:
    """Ingest stores images in a random order, so the streams only have to break up the shards."""
    shards, batch = [500] * 64, 256
    labels = np.random.default_rng(1).permutation(np.arange(sum(shards)) * 10 // sum(shards))
    random = np.random.default_rng(0).permutation(len(labels)).reshape(-1, batch)
    chance = imbalance(random, labels)
    for streams in (1, 8, 32):
        assert imbalance(batches_of(shards, streams, batch), labels) < 1.1 * chance


def mates(shards: list[int], streams: int | None, batch: int, epochs: int) -> float:
    """Distinct images that some images share a batch with, as a fraction of the places there."""
    num_images, found = sum(shards), [set[int]() for _ in range(8)]
    for epoch in range(epochs):
        if streams is None:
            order = epoch_order(num_images, seed=0, epoch=epoch)
            batches = order[: num_images // batch * batch].reshape(-1, batch)
        else:
            batches = batches_of(shards, streams, batch, epoch)
        for image, seen in enumerate(found):
            step, _ = np.nonzero(batches == image * num_images // len(found))
            seen.update(batches[step].ravel().tolist())
    places = epochs * (batch - 1)
    return float(np.mean([len(seen) for seen in found]) / places)


def test_an_image_meets_others_in_each_epoch() -> None:
    shards = [80] * 256
    best, many, few, one = (mates(shards, c, 64, 15) for c in (None, 32, 8, 1))
    assert best > 0.95 and many > 0.97 * best
    assert many > few > one
    assert one < 0.5  # negative control: one stream meets little but its own shard
