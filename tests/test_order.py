"""Order: exactly once, by (seed, epoch), and the same global batches for any number of ranks."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest

from sdclr.order import EpochPlan, epoch_order


def global_batches(plan: EpochPlan, order: np.ndarray) -> list[list[int]]:
    batches = []
    for step in range(plan.num_steps):
        parts = [order[plan.part(step, rank)] for rank in range(plan.num_ranks)]
        batches.append(np.concatenate(parts).tolist())
    return batches


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("num_images", [8, 16, 29, 31])
def test_each_image_at_most_once_and_the_tail_as_configured(
    num_images: int, drop_last: bool
) -> None:
    plan = EpochPlan(num_images=num_images, global_batch=8, drop_last=drop_last)
    batches = global_batches(plan, epoch_order(num_images, seed=0, epoch=0))
    seen = [row for batch in batches for row in batch]
    assert len(seen) == len(set(seen))
    assert len(seen) == (num_images // 8 * 8 if drop_last else num_images)
    assert [len(b) for b in batches] == [plan.batch_size(s) for s in range(plan.num_steps)]


@pytest.mark.promise("R6")
def test_ranks_share_the_same_global_batches() -> None:
    order = epoch_order(64, seed=3, epoch=5)
    one, two, four = (
        global_batches(
            EpochPlan(num_images=64, global_batch=16, drop_last=True, num_ranks=ranks), order
        )
        for ranks in (1, 2, 4)
    )
    assert one == two == four
    assert one != global_batches(EpochPlan(num_images=64, global_batch=8, drop_last=True), order)


@pytest.mark.promise("R6", control=True)
def test_control_ranks_that_shuffle_their_own_part_make_other_batches() -> None:
    """The usual way, a part of the set for each rank: the batches depend on the ranks."""
    plan = EpochPlan(num_images=64, global_batch=16, drop_last=True)
    one = global_batches(plan, epoch_order(64, seed=3, epoch=5))
    halves = [32 * rank + epoch_order(32, seed=3, epoch=5) for rank in (0, 1)]
    two = [
        [row for half in halves for row in half[8 * step : 8 * step + 8].tolist()]
        for step in range(plan.num_steps)
    ]
    assert sorted(chain.from_iterable(two)) == sorted(chain.from_iterable(one))
    assert [sorted(batch) for batch in two] != [sorted(batch) for batch in one]


@pytest.mark.promise("R25")
def test_a_tail_is_shared_evenly_or_dropped() -> None:
    plan = EpochPlan(num_images=21, global_batch=8, drop_last=False, num_ranks=2)
    assert (plan.num_steps, plan.tail) == (3, 4)
    lonely = EpochPlan(num_images=17, global_batch=8, drop_last=False)
    assert (lonely.num_steps, lonely.tail) == (2, 0)


@pytest.mark.promise("R6")
def test_order_is_a_function_of_seed_and_epoch() -> None:
    first = epoch_order(100, seed=1, epoch=2)
    assert np.array_equal(first, epoch_order(100, seed=1, epoch=2))
    assert not np.array_equal(first, epoch_order(100, seed=1, epoch=3))
    assert not np.array_equal(first, epoch_order(100, seed=2, epoch=2))
    assert sorted(first) == list(range(100))


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="7 images do not fill one global batch of 8"):
        EpochPlan(num_images=7, global_batch=8, drop_last=True)
    with pytest.raises(ValueError, match="not a multiple of 3 ranks"):
        EpochPlan(num_images=70, global_batch=8, drop_last=True, num_ranks=3)
