"""The loop: determinism, exact resume at every kind of step, and the stop before a bad update."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from sdclr import ImageSet, NonFiniteError, StateError, Trainer, TrainState, capture, restore
from tests.recipes import AUGMENT, some_images, some_plan, some_trainer

PLAN = some_plan()  # 5 steps per epoch, 3 epochs


def feed(seed: int = 0) -> Any:
    return some_images().feed(PLAN, seed=seed)


def losses_of(trainer: Trainer, num_steps: int | None = None, *, seed: int = 0) -> list[float]:
    reports = itertools.islice(trainer.run(feed(seed)), num_steps)
    return [report.loss for report in reports]


def same_state(a: TrainState, b: TrainState) -> bool:
    return a.numbers == b.numbers and all(
        torch.equal(a.tensors[n], b.tensors[n]) for n in a.tensors.keys() | b.tensors.keys()
    )


@pytest.mark.promise("R1")
def test_same_seed_same_losses_for_fifty_steps() -> None:
    first, again = (losses_of(some_trainer(PLAN, epochs=10)) for _ in range(2))
    assert len(first) == 50 and first == again


@pytest.mark.promise("R1", control=True)
def test_another_seed_has_other_losses_from_step_one() -> None:
    assert losses_of(some_trainer(PLAN, seed=1), 1, seed=1) != losses_of(some_trainer(PLAN), 1)


@cache
def unbroken(method: str) -> tuple[list[float], TrainState]:
    """Losses and last state of a run that nothing interrupts."""
    trainer = some_trainer(PLAN, method=method)
    return losses_of(trainer), capture(trainer)


@cache
def stopped(method: str) -> tuple[list[float], list[TrainState]]:
    """Losses of another run, and what is saved of it before the first and after every step."""
    trainer = some_trainer(PLAN, method=method)
    states, losses = [capture(trainer)], []
    for report in trainer.run(feed()):
        losses.append(report.loss)
        states.append(capture(trainer))
    return losses, states


@pytest.mark.parametrize("method", ["sdclr", "simclr"])
@pytest.mark.parametrize("stop", [0, 1, 4, 5, 7, 10, 14, 15])
@pytest.mark.promise("R2", "R3", "R5")
def test_resume_is_bit_equal_to_the_unbroken_run(method: str, stop: int) -> None:
    expected, end = unbroken(method)
    head, states = stopped(method)
    resumed = some_trainer(PLAN, method=method)
    restore(resumed, states[stop])
    assert head[:stop] + losses_of(resumed) == expected
    assert same_state(capture(resumed), end)


@pytest.mark.parametrize(
    "dropped",
    ["network.backbone.conv1.weight", "running_mean", "pruned_norms", "masks", "momentum"],
)
@pytest.mark.promise("R2", control=True)
def test_a_resume_without_any_one_part_is_not_equal(dropped: str) -> None:
    expected, end = unbroken("sdclr")
    whole = stopped("sdclr")[1][7]
    damaged = {n: torch.zeros_like(t) if dropped in n else t for n, t in whole.tensors.items()}
    resumed = some_trainer(PLAN)
    restore(resumed, TrainState(damaged, whole.numbers))
    tail = losses_of(resumed)
    if dropped == "running_mean":  # not read in training: seen in the state, not in the losses
        assert not same_state(capture(resumed), end)
    else:
        assert tail != expected[7:]


def test_a_captured_state_does_not_move_with_the_trainer() -> None:
    trainer = some_trainer(PLAN)
    losses_of(trainer, 3)
    state = capture(trainer)
    copies = {n: t.clone() for n, t in state.tensors.items()}
    losses_of(trainer, 3)
    assert all(torch.equal(t, copies[n]) for n, t in state.tensors.items())
    assert not same_state(state, capture(trainer))


def damaged_states(state: TrainState) -> dict[str, TrainState]:
    weight, momentum = "model.network.backbone.conv1.weight", "momentum.network.head.0.weight"
    without = {n: t for n, t in state.tensors.items() if n != weight}
    return {
        f"{weight} is missing": TrainState(without, state.numbers),
        f"{momentum} is missing": TrainState(
            {n: t for n, t in state.tensors.items() if n != momentum}, state.numbers
        ),
        "model.extra is unknown": TrainState(
            state.tensors | {"model.extra": torch.ones(1)}, state.numbers
        ),
        f"{weight} is torch.float32 (2,), not": TrainState(
            without | {weight: torch.ones(2)}, state.numbers
        ),
        f"{weight} is not finite": TrainState(
            without | {weight: state.tensors[weight] * torch.nan}, state.numbers
        ),
        "method: this run has 'sdclr', the state 'simclr'": TrainState(
            state.tensors, state.numbers | {"method": "simclr"}
        ),
        "seed: this run has 0, the state 4": TrainState(state.tensors, state.numbers | {"seed": 4}),
        "step: 99 is not in 0..15": TrainState(state.tensors, state.numbers | {"step": 99}),
    }


@pytest.mark.promise("R11")
def test_a_foreign_or_torn_state_is_refused_by_name_and_changes_nothing() -> None:
    source = some_trainer(PLAN)
    losses_of(source, 3)
    target = some_trainer(PLAN)
    before = capture(target)
    for message, state in damaged_states(capture(source)).items():
        with pytest.raises(StateError) as error:
            restore(target, state)
        assert message in str(error.value)
        assert same_state(capture(target), before)


def test_masks_are_refreshed_at_each_epoch_and_constant_within() -> None:
    trainer = some_trainer(PLAN)
    refreshed = {r.step: r.kept_frac for r in trainer.run(feed()) if r.kept_frac is not None}
    assert list(refreshed) == [1, 6, 11]
    assert all(0 < kept <= 1 for fracs in refreshed.values() for kept in fracs.values())
    plain = some_trainer(PLAN, method="simclr")
    assert all(r.kept_frac is None for r in plain.run(feed()))


@pytest.mark.parametrize("broken", ["weight", "gradient"])
@pytest.mark.promise("R22")
def test_a_non_finite_step_stops_before_the_update(broken: str) -> None:
    trainer = some_trainer(PLAN)
    losses_of(trainer, 6)
    head = trainer.network.head[0]
    if broken == "weight":
        with torch.no_grad():
            head.bias[0] = torch.inf
    else:  # a finite loss whose gradient overflows
        head.weight.register_hook(lambda grad: grad * torch.inf)
    before = capture(trainer)
    with pytest.raises(NonFiniteError, match=r"step 6 \(epoch 1\).*stopped before the update"):
        losses_of(trainer, 1)
    after = capture(trainer)
    names = [n for n in before.tensors if "running" not in n and "tracked" not in n]
    assert all(
        torch.equal(after.tensors[n], before.tensors[n])
        for n in names
        if torch.isfinite(before.tensors[n]).all()
    )
    assert trainer.step == 6


@pytest.mark.parametrize("method", ["sdclr", "simclr"])
def test_training_lowers_the_loss_and_reports_what_it_did(method: str) -> None:
    # Smooth images can be told apart whatever their crop; pure noise cannot.
    coarse = torch.rand(40, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")
    images = ImageSet((255 * smooth).to(torch.uint8))
    still = replace(AUGMENT, jitter_prob=0.0, gray_prob=0.0)
    changes = {"epochs": 20, "lr": 0.05, "temperature": 0.5, "augment": still}
    reports = list(some_trainer(PLAN, method=method, **changes).run(images.feed(PLAN, seed=0)))
    assert [r.step for r in reports] == list(range(1, 101))
    assert [r.epoch for r in reports] == [s // 5 for s in range(100)]
    assert {r.num_images for r in reports} == {8}
    first, last = (sum(r.loss for r in part) / 20 for part in (reports[:20], reports[-20:]))
    assert last < 0.9 * first


def test_bfloat16_trains_close_to_float32_and_keeps_float32_weights() -> None:
    trainer = some_trainer(PLAN, precision="bfloat16")
    # The first two losses see the initial weights: later ones tell how chaotic a tiny run is.
    low, high = losses_of(trainer, 2), losses_of(some_trainer(PLAN), 2)
    assert low == pytest.approx(high, rel=0.02) and low != high
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_impossible_trainers_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a prune rule"):
        some_trainer(PLAN, prune=None)
    with pytest.raises(ValueError, match="the feed has 5 steps per epoch, the trainer 7"):
        trainer = Trainer(some_trainer(PLAN).network, some_trainer(PLAN).recipe, steps_per_epoch=7)
        list(trainer.run(feed()))
