"""The running mean of each image's loss: slow loops, exact resume, ranks; training is unchanged."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from sdclr import (
    LossMemory,
    StateError,
    Trainer,
    TrainState,
    capture,
    collective,
    image_losses,
    nt_xent,
    restore,
)
from tests.ranks import run_on_ranks
from tests.recipes import some_images, some_plan, some_trainer

PLAN = some_plan(44)  # 5 steps of 8 images: 4 images of an epoch are left out


def trained(num_steps: int | None = None, *, momentum: float | None = 0.5, **changes: Any) -> Any:
    """A trainer after some steps, with a memory unless `momentum` is None, and its reports."""
    trainer = remembering(momentum, **changes)
    feed = some_images(44).feed(PLAN, seed=0)
    return trainer, list(itertools.islice(trainer.run(feed), num_steps))


def remembering(momentum: float | None = 0.5, **changes: Any) -> Trainer:
    plain = some_trainer(PLAN, **changes)
    memory = None if momentum is None else LossMemory(44, momentum=momentum)
    return Trainer(plain.network, plain.recipe, steps_per_epoch=PLAN.num_steps, memory=memory)


def test_image_losses_equal_the_slow_loop_and_average_to_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64).requires_grad_()
    z = torch.nn.functional.normalize(torch.cat([u, v]), dim=1).detach()
    slow = []
    for image in range(5):
        rows = []
        for row, partner in ((image, image + 5), (image + 5, image)):
            others = torch.stack([z[row] @ z[k] / 0.2 for k in range(10) if k != row])
            rows.append(torch.logsumexp(others, 0) - z[row] @ z[partner] / 0.2)
        slow.append(sum(rows) / 2)
    found = image_losses(u, v, temperature=0.2)
    torch.testing.assert_close(found, torch.stack(slow))  # type: ignore[arg-type]
    torch.testing.assert_close(found.mean(), nt_xent(u, v, temperature=0.2).detach())
    assert not found.requires_grad
    assert not torch.allclose(found, image_losses(u, v.roll(1, 0), temperature=0.2))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.97])
def test_means_equal_the_slow_loop(momentum: float) -> None:
    generator = torch.Generator().manual_seed(1)
    memory, seen = LossMemory(6, momentum=momentum), [[] for _ in range(6)]
    for _ in range(9):
        rows = torch.randperm(5, generator=generator)[:3]
        losses = torch.rand(3, generator=generator)
        memory.update(rows, losses)
        for row, loss in zip(rows.tolist(), losses.tolist(), strict=True):
            seen[row].append(loss)
    for mean, values in zip(memory.means().tolist(), seen, strict=True):
        weights = [momentum ** (len(values) - 1 - t) for t in range(len(values))]
        if values:
            expected = sum(w * x for w, x in zip(weights, values, strict=True)) / sum(weights)
            assert mean == pytest.approx(expected, rel=1e-5)
    assert memory.means().isnan().tolist() == [not values for values in seen] and not seen[5]


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_impossible_momenta_are_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum must be in"):
        LossMemory(3, momentum=momentum)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_training_is_the_same_with_a_memory_which_holds_the_losses_of_the_step(
    micro_batch: int | None,
) -> None:
    plain, expected = trained(momentum=None, micro_batch=micro_batch)
    trainer, reports = trained(momentum=0.0, micro_batch=micro_batch)
    assert [r.loss for r in reports] == [r.loss for r in expected]
    with_memory, without = (capture(t).tensors for t in (trainer, plain))
    assert with_memory.keys() - without.keys() == {"loss_memory"}
    assert all(torch.equal(with_memory[name], without[name]) for name in without)
    for epoch in (0, 1):
        trainer, reports = trained(5 * epoch + 1, momentum=0.0, micro_batch=micro_batch)
        batch = next(some_images(44).feed(PLAN, seed=0).batches(epoch))
        last = trainer.memory.means()[batch.rows_B]
        assert last.mean().item() == pytest.approx(reports[-1].loss, rel=1e-5)
        assert last.std() > 0.01
    assert int(trained(5)[0].memory.means().isnan().sum()) == 4


def test_a_resume_keeps_the_memory_bit_for_bit() -> None:
    unbroken, _ = trained()
    stopped, _ = trained(7)
    state = capture(stopped)
    resumed = remembering()
    restore(resumed, state)
    list(resumed.run(some_images(44).feed(PLAN, seed=0)))
    assert torch.equal(resumed.memory.sums_2N, unbroken.memory.sums_2N)
    # Control: without what it was, it ends elsewhere.
    empty = state.tensors | {"loss_memory": torch.zeros(2, 44)}
    restore(resumed, TrainState(empty, state.numbers))
    list(resumed.run(some_images(44).feed(PLAN, seed=0)))
    assert not torch.equal(resumed.memory.sums_2N, unbroken.memory.sums_2N)


def test_a_state_without_the_memory_or_with_one_too_many_is_refused() -> None:
    with pytest.raises(StateError, match="loss_memory is missing"):
        restore(remembering(), capture(trained(2, momentum=None)[0]))
    with pytest.raises(StateError, match="loss_memory is unknown"):
        restore(remembering(None), capture(trained(2)[0]))


def of_two_ranks() -> dict[str, Tensor]:
    plan = some_plan(44, num_ranks=collective.world_size())
    plain = some_trainer(plan, dtype=torch.float64, epochs=1)
    memory = LossMemory(44, momentum=0.5)
    trainer = Trainer(plain.network, plain.recipe, steps_per_epoch=5, memory=memory)
    list(trainer.run(some_images(44).feed(plan, seed=0, rank=collective.rank())))
    return {"means": memory.means()}


def test_two_ranks_remember_what_one_does() -> None:
    first, second = (rank["means"] for rank in run_on_ranks(of_two_ranks))
    one = of_two_ranks()["means"]
    torch.testing.assert_close(first, one, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(second, first, rtol=0, atol=0, equal_nan=True)
