"""Steps as CUDA graphs of the simulated GPU: the numbers of single launches, in few launches."""

from __future__ import annotations

import functools
import gc
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from sdclr import ImageSet, NonFiniteError, Trainer, Twin, capture, restore, step_graph
from sdclr.order import EpochPlan
from sdclr.step_graph import MANY_LAUNCHES, StepGraphs, problem_of
from tests.recipes import RECIPE, some_images, some_trainer
from tests.simulated_gpu import DEVICE, SimulatedGPU

PLAN = EpochPlan(num_images=12, global_batch=8, drop_last=False)  # of 8 and 4 images
EPOCHS = 4  # both shapes are captured in the second one
KINDS: dict[str, dict[str, Any]] = {
    "sdclr": {},
    "simclr, adamw": {"method": "simclr", "optimizer": "adamw", "lr": 1e-3},
    "sdclr-ts, lars": {"method": "sdclr-ts", "optimizer": "lars"},
    "bcl, micro batch": {"method": "bcl-d", "micro_batch": 3},
}
MOST_LAUNCHES = 12
"""Of a replayed step: views, copies, two numbers, a graph."""
FIRST_REPLAY = 4


def a_trainer(**changes: Any) -> Trainer:
    return some_trainer(PLAN, device="cuda:0", epochs=EPOCHS, **changes)


def reports_of(trainer: Trainer) -> Iterator[Any]:
    there = ImageSet(some_images(12).images_NCHW.to(DEVICE))
    return trainer.run(there.feed(PLAN, seed=0))


def values_of(trainer: Trainer) -> dict[str, Tensor]:
    """All that a step may change, on the CPU, whatever the last step was."""
    trainer._unread.clear()
    return capture(trainer).tensors


def outcome(trainer: Trainer) -> dict[str, Tensor]:
    """Losses, gradient norms and the whole state after a run."""
    figures = [report.figures.read() for report in reports_of(trainer)]
    return {"figures": torch.stack(figures), **values_of(trainer)}


@functools.cache
def plain_outcome(kind: str = "sdclr") -> dict[str, Tensor]:
    """The same of steps that are launched one by one."""
    with SimulatedGPU():
        return outcome(a_trainer(**KINDS[kind], cuda_graph=False))


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    assert found.keys() == expected.keys() and len(found) > 40
    return [name for name in found if not torch.equal(found[name], expected[name])]


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_give_the_numbers_of_single_launches(kind: str) -> None:
    expected = plain_outcome(kind)
    with SimulatedGPU():
        trainer = a_trainer(**KINDS[kind])
        found = outcome(trainer)
        assert trainer.num_graphs == 2
    assert differing(found, expected) == []


def freeze_rate(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    """Give the optimizer the learning rate as a number, as single launches may have it."""
    rate = mock.Mock()

    def fill_(value: float) -> None:
        for group in trainer.optimizer.param_groups:
            group["lr"] = value

    rate.fill_ = fill_
    patch.setattr(trainer, "_lr", rate)


def replace_masks(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    """Make new masks instead of writing to those that are there."""
    model = trainer.model
    assert isinstance(model, Twin)
    refresh = model.refresh_masks

    def refresh_masks(*args: Any) -> Any:
        found = refresh(*args)
        for name, mask in list(model.masks.named_buffers()):
            setattr(model.masks, name, mask.clone())
            mask.fill_(True)
        return found

    patch.setattr(model, "refresh_masks", refresh_masks)


def keep_batch(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    """Leave the views of the capture in place."""

    def replay(self: Any, views: Any) -> Any:
        self.graph.replay()
        return self.outputs

    patch.setattr(step_graph._Captured, "replay", replay)


def move_in_the_trial(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    """Let the steps that are compared before a graph is used change the weights."""
    patch.setattr(StepGraphs, "_at_rest", lambda self: nullcontext())


FAULTS = [freeze_rate, replace_masks, keep_batch, move_in_the_trial]


@pytest.mark.filterwarnings(f"ignore:{MANY_LAUNCHES}")  # the last one shows in the figures
@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_graph_must_not_do_is_seen(
    fault: Callable[[Trainer, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain_outcome()
    with SimulatedGPU():
        trainer = a_trainer()
        fault(trainer, monkeypatch)
        found = outcome(trainer)
    changed = differing(found, expected)
    assert "figures" in changed
    # The first steps are launched one by one, so they are not touched.
    same = (found["figures"] - expected["figures"]).abs().amax(1) < 1e-6
    assert same[: FIRST_REPLAY - 1].all() and not same[FIRST_REPLAY:].all()


def test_a_replayed_step_has_few_launches_and_waits_for_nothing() -> None:
    with SimulatedGPU() as gpu:
        launches, waits = [], []
        reports = reports_of(a_trainer())
        gpu.forget()
        for _ in reports:
            launches.append(gpu.num_launches)
            waits.append(sum(gpu.waits.values()))
            gpu.forget()
    # The fourth and the fifth step are captured: it waits before, and for a comparison.
    assert waits[1:5] == [0, 0, 2, 2] and sum(waits[5:]) == 0
    assert launches[1] > 300
    assert launches[5] <= MOST_LAUNCHES and launches[7] <= MOST_LAUNCHES


@pytest.mark.parametrize(
    ("optimizer", "how"),
    [("sgd", "weight"), ("sgd", "gradient"), ("adamw", "gradient"), ("lars", "gradient")],
)
@pytest.mark.promise("R22")
def test_a_non_finite_replay_is_found_a_step_late_and_has_changed_nothing(
    optimizer: str, how: str
) -> None:
    with SimulatedGPU():
        trainer = a_trainer(optimizer=optimizer, lr=1e-3 if optimizer == "adamw" else 0.1)
        factor = torch.ones((), device=DEVICE)
        head = trainer.network.head[0]
        head.weight.register_hook(lambda grad: grad * factor)
        reports = reports_of(trainer)
        list(itertools.islice(reports, 5))
        if how == "weight":
            with torch.no_grad():
                head.bias[0] = torch.inf
        else:  # a finite loss whose gradient overflows
            factor.fill_(torch.inf)
        before = values_of(trainer)
        next(reports)
        assert trainer.num_graphs == 2
        assert not trainer.is_sound
        with pytest.raises(NonFiniteError, match="step 5 "):
            next(reports)
        assert trainer.step == 5 and trainer.num_graphs == 0
        after = values_of(trainer)
    counts = ("running_mean", "running_var", "num_batches_tracked")  # the norms saw the batch
    assert [n for n in differing(after, before) if not n.endswith(counts)] == []


@pytest.mark.parametrize("forgets", [True, False])
def test_a_restored_state_has_graphs_of_its_own(
    forgets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SimulatedGPU():
        trainer = a_trainer()
        reports = reports_of(trainer)
        list(itertools.islice(reports, 5))
        state = capture(trainer)
        list(reports)
        expected = values_of(trainer)
        if not forgets:
            monkeypatch.setattr(StepGraphs, "forget", lambda self: None)
        restore(trainer, state)
        found = outcome(trainer)
    del found["figures"]
    assert (differing(found, expected) == []) == forgets


class Small:
    """A layer on the device and the function that trains it, with a fault in a capture."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.layer = nn.Linear(3, 2).to(DEVICE)
        with torch.no_grad():
            for weight in self.layer.parameters():
                weight.copy_(torch.linspace(0, 1, weight.numel(), device=DEVICE).view_as(weight))
        self.flag = torch.zeros((), device=DEVICE)
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.1, momentum=0.9, fused=True)
        self.optimizer.found_inf = self.flag  # type: ignore[attr-defined]
        self.graphs = StepGraphs(self.layer, self.optimizer, self.flag)

    def train(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, None]:
        self.optimizer.zero_grad()
        loss = (self.layer(view1) - view2.mean()).square().mean()
        loss.backward()
        assert self.layer.bias.grad is not None
        if self.fault and SimulatedGPU.now().capturing is not None:
            if self.fault == "waits":
                float(loss.detach())
            if self.fault == "breaks":
                raise ValueError("no capture here\nmore")
            loss = loss * 1.1
        self.optimizer.step()
        return torch.stack([loss.detach(), self.layer.bias.grad.norm()]), None

    def step(self, num_images: int, value: float) -> float:
        view = torch.full((num_images, 3), value, device=DEVICE)
        return float(self.graphs(self.train, view, view + 1)[0][0].cpu())


@pytest.mark.parametrize("fault", ["", "waits", "breaks", "figures"])
def test_what_cannot_be_captured_is_launched_one_by_one_with_a_warning(fault: str) -> None:
    named = {"waits": "CaptureError", "breaks": "ValueError: no capture here", "figures": "instead"}
    with SimulatedGPU() as gpu:
        plain, small = Small(), Small(fault)
        plain.graphs.problem = "not wanted"
        expected = [plain.step(4, 0.1 * n) for n in range(8)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = [small.step(4, 0.1 * n) for n in range(8)]
        assert small.graphs.num_graphs == int(not fault)
        assert len(caught) == int(bool(fault))
        for warning in caught:
            message = str(warning.message)
            assert message.startswith(MANY_LAUNCHES) and named[fault] in message
        assert (gpu.launches["graph"] >= 5) == (not fault)
    assert found == expected and len(set(found)) == 8


def test_a_shape_that_is_new_has_the_memory_to_itself() -> None:
    with SimulatedGPU() as gpu:
        small = Small()
        held = []
        for num_images in (4, 4, 4, 4, 2, 4, 2, 2, 4):
            small.step(num_images, 0.5)
            held.append(small.graphs.num_graphs)
        assert held == [0, 0, 0, 1, 0, 1, 2, 2, 2]
        assert sum(n for name, n in gpu.waits.items() if "stream" in name) == 1


def test_a_trainer_that_is_dropped_gives_its_memory_back_at_once() -> None:
    with SimulatedGPU():
        trainer = a_trainer()
        list(reports_of(trainer))
        assert trainer.num_graphs == 2
        gc.disable()
        try:
            gone = weakref.ref(trainer)
            del trainer
            assert gone() is None
        finally:
            gc.enable()


def test_reasons_for_single_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem_of(RECIPE) == ""
    assert problem_of(replace(RECIPE, cuda_graph=False))
    assert problem_of(replace(RECIPE, compile=True)) == ""
    with mock.patch.object(step_graph.collective, "is_distributed", return_value=True):
        assert problem_of(RECIPE)
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    assert problem_of(RECIPE)
