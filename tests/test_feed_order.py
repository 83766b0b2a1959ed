"""The streamed order: exactly once, mixed, and cut into tasks without losing or moving an image."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.feed.schedule import EpochSchedule, Part
from sdclr import EpochPlan, epoch_order, epoch_windows

SHARDS = [7, 5, 9, 1, 8, 6, 3]
STARTS = np.cumsum([0, *SHARDS[:-1]])


def whole_order(shards: list[int], window: int, seed: int = 0, epoch: int = 0) -> NDArray[np.int64]:
    found = epoch_windows(shards, window_shards=window, seed=seed, epoch=epoch)
    return np.concatenate(list(found))


@pytest.mark.parametrize("window", [1, 2, 3, 7, 100])
def test_every_image_comes_once_whatever_the_window(window: int) -> None:
    order = whole_order(SHARDS, window)
    assert sorted(order) == list(range(sum(SHARDS)))


@pytest.mark.promise("R6")
def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert np.array_equal(whole_order(SHARDS, 2, 1, 4), whole_order(SHARDS, 2, 1, 4))
    for other in (whole_order(SHARDS, 2, 1, 5), whole_order(SHARDS, 2, 2, 4)):
        assert not np.array_equal(whole_order(SHARDS, 2, 1, 4), other)


def test_a_window_holds_its_shards_and_no_other_row() -> None:
    for rows in epoch_windows(SHARDS, window_shards=3, seed=0, epoch=0):
        shards = set((np.searchsorted(STARTS, rows, side="right") - 1).tolist())
        assert len(shards) <= 3
        assert len(rows) == sum(SHARDS[shard] for shard in shards)


def test_one_window_for_all_is_the_order_of_a_set_in_memory() -> None:
    expected = epoch_order(sum(SHARDS), seed=3, epoch=2)
    assert np.array_equal(whole_order(SHARDS, len(SHARDS), 3, 2), expected)
    assert not np.array_equal(whole_order(SHARDS, len(SHARDS) - 1, 3, 2), expected)


def shards_of(rows: NDArray[np.int64]) -> set[int]:
    return set((np.searchsorted(STARTS, rows, side="right") - 1).tolist())


def imbalance(order: NDArray[np.int64], labels: NDArray[np.int64], batch: int) -> float:
    """Mean over batches and classes of |share of the class in the batch - share in the set|."""
    share = np.bincount(labels) / len(labels)
    batches = labels[order][: len(order) // batch * batch].reshape(-1, batch)
    shares = np.stack([np.bincount(b, minlength=len(share)) / batch for b in batches])
    return float(np.abs(shares - share).mean())


def test_a_set_sorted_by_class_comes_out_mixed() -> None:
    """Of 64 shards with one of 10 classes each or two: the wider the window, the better mixed."""
    shards, batch = [500] * 64, 256
    labels = np.arange(sum(shards)) * 10 // sum(shards)
    random = np.random.default_rng(0).permutation(len(labels))
    chance = imbalance(random, labels, batch)
    found = {w: imbalance(whole_order(shards, w), labels, batch) for w in (1, 8, 16, 32, 64)}
    assert found[64] < 1.1 * chance  # one window is a permutation of all
    assert found[32] < 3.5 * chance and found[16] < 5.5 * chance
    assert found[8] > found[16] > found[32] > found[64]
    assert found[1] > 8 * chance  # negative control: shards one by one stay sorted


def test_a_set_in_random_order_stays_mixed_with_any_window() -> None:
    """Ingest stores images in a random order, so the window only has to break up the shards."""
    shards, batch = [500] * 64, 256
    labels = np.random.default_rng(1).permutation(np.arange(sum(shards)) * 10 // sum(shards))
    chance = imbalance(np.random.default_rng(0).permutation(len(labels)), labels, batch)
    for window in (1, 8):
        assert imbalance(whole_order(shards, window), labels, batch) < 1.1 * chance


def followed(plan: EpochPlan, start_step: int, piece_steps: int, part_rows: int) -> list[list[int]]:
    """What each rank gets at each step, by doing what the tasks would do."""
    schedule = EpochSchedule(plan, start_step, piece_steps, part_rows)
    pieces = list(schedule.pieces())
    parts = {
        Part(piece.number, rank, number): np.full(size, -1)
        for piece in pieces
        for rank in range(plan.num_ranks)
        for number, size in enumerate(schedule.part_sizes(piece))
    }
    place = 0
    for rows in epoch_windows(SHARDS, window_shards=2, seed=0, epoch=0):
        for shard, slices in schedule.slices(rows, place, STARTS).items():
            for part, set_rows, local_rows, places in slices:
                assert np.array_equal(set_rows, local_rows + STARTS[shard])
                assert (parts[part][places] == -1).all()
                parts[part][places] = set_rows
        place += len(rows)
    batches = []
    for piece in pieces:
        sizes = schedule.part_sizes(piece)
        assert max(sizes) <= part_rows
        for step in range(piece.start, piece.stop):
            share = plan.batch_size(step) // plan.num_ranks
            first = (step - piece.start) * (plan.global_batch // plan.num_ranks)
            for rank in range(plan.num_ranks):
                whole = [parts[Part(piece.number, rank, n)] for n in range(len(sizes))]
                batches.append(np.concatenate(whole)[first : first + share].tolist())
    return batches


@pytest.mark.promise("R3")
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize(("piece_steps", "part_rows"), [(1, 3), (1, 100), (2, 5), (3, 4), (99, 99)])
@pytest.mark.parametrize("start_step", [0, 1, 3])
def test_tasks_make_the_batches_of_the_plan(
    drop_last: bool, num_ranks: int, piece_steps: int, part_rows: int, start_step: int
) -> None:
    plan = EpochPlan(
        num_images=sum(SHARDS), global_batch=8, drop_last=drop_last, num_ranks=num_ranks
    )
    order = whole_order(SHARDS, 2)
    expected = [
        order[plan.part(step, rank)].tolist()
        for step in range(start_step, plan.num_steps)
        for rank in range(num_ranks)
    ]
    assert followed(plan, start_step, piece_steps, part_rows) == expected


@pytest.mark.promise("R3", control=True)
def test_control_a_resume_at_another_step_gives_other_batches() -> None:
    plan = EpochPlan(num_images=sum(SHARDS), global_batch=8, drop_last=True)
    unbroken = followed(plan, 0, 2, 5)
    assert followed(plan, 3, 2, 5) == unbroken[3:]
    assert followed(plan, 2, 2, 5)[: len(unbroken) - 3] != unbroken[3:]


@pytest.mark.parametrize("window_shards", [1, 2, 3])
def test_a_resume_reads_no_shard_that_has_nothing_left_to_give(window_shards: int) -> None:
    """And decodes no image that was used: the slices hold what is left of the epoch, no more."""
    plan = EpochPlan(num_images=sum(SHARDS), global_batch=3, drop_last=True)
    order = whole_order(SHARDS, window_shards)
    for start_step in range(plan.num_steps):
        schedule = EpochSchedule(plan, start_step, 2, 4)
        left = order[start_step * 3 : plan.num_steps * 3]
        read: Counter[int] = Counter()
        wanted: list[int] = []
        place = 0
        for rows in epoch_windows(SHARDS, window_shards=window_shards, seed=0, epoch=0):
            slices = schedule.slices(rows, place, STARTS)
            read.update(slices.keys())
            wanted += [int(row) for part in slices.values() for s in part for row in s.rows]
            place += len(rows)
        assert sorted(wanted) == sorted(left.tolist())
        assert set(read) == shards_of(left)
        assert max(read.values()) == 1
        # Read before the stop as well: shards of the one window that was in use.
        assert len(set(read) & shards_of(order[: start_step * 3])) <= window_shards
