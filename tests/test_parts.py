"""The parts of a step's time: they add up, a slow rank shows as the exchange of the others."""

from __future__ import annotations

import itertools
import time
from typing import Any
from unittest import mock

import pytest
import torch

from sdclr import Trainer, parts
from sdclr.order import EpochPlan
from sdclr.parts import PARTS, StepParts
from tests.ranks import run_on_ranks
from tests.recipes import some_images, some_plan, some_trainer
from tests.simulated_gpu import SimulatedGPU

PLAN = some_plan(24)
CPU = torch.device("cpu")
SLOW_S = 0.5


def ticking() -> Any:
    """A clock that goes on by a second whenever it is read."""
    return mock.patch.object(parts.time, "perf_counter", map(float, itertools.count()).__next__)


def test_what_passed_between_two_marks_belongs_to_the_second() -> None:
    with ticking():
        step = StepParts(CPU)
        for part in ("views", "compute", "exchange", "compute"):
            step.end(part)
    assert step.is_here and step.read() == {"views": 1, "compute": 2, "exchange": 1}


def test_a_step_alone_has_views_and_arithmetic_and_no_exchange() -> None:
    trainer = some_trainer(PLAN)
    begun_s = time.perf_counter()
    report = next(trainer.run(some_images(24).feed(PLAN, seed=0)))
    passed_s = time.perf_counter() - begun_s
    assert report.parts is not None
    found = report.parts.read()
    assert tuple(found) == PARTS and found["exchange"] == 0
    assert found["views"] > 0 < found["compute"] and sum(found.values()) <= passed_s


def test_outside_a_step_nothing_is_counted() -> None:
    trainer = some_trainer(PLAN)
    report = next(trainer.run(some_images(24).feed(PLAN, seed=0)))
    assert report.parts is not None
    before = report.parts.read()
    parts.end("exchange")
    assert report.parts.read() == before


def slow_views(slow_rank: int) -> dict[str, Any]:
    """Mean parts of some steps on this rank, where one takes its time over the views."""
    plan = EpochPlan(num_images=24, global_batch=8, drop_last=True, num_ranks=2)
    rank = torch.distributed.get_rank()
    trainer = some_trainer(plan)
    views = Trainer.views

    def late(self: Trainer, batch: Any) -> Any:
        time.sleep(SLOW_S if rank == slow_rank else 0)
        return views(self, batch)

    with mock.patch.object(Trainer, "views", late):
        reports = trainer.run(some_images(24).feed(plan, seed=0, rank=rank))
        found = [r.parts.read() for r in itertools.islice(reports, 3) if r.parts is not None]
    return {part: sum(one[part] for one in found) / len(found) for part in PARTS}


def test_a_slow_rank_is_the_exchange_of_the_other() -> None:
    fast, slow = run_on_ranks(slow_views, 1)
    assert slow["views"] >= SLOW_S
    assert fast["exchange"] >= SLOW_S / 2 and fast["exchange"] > slow["exchange"]


def test_on_a_gpu_the_parts_come_a_step_late_and_nothing_waits() -> None:
    with SimulatedGPU() as gpu:
        trainer = some_trainer(PLAN, device="cuda:0")
        reports = trainer.run(some_images(24).feed(PLAN, seed=0))
        gpu.forget()
        first = next(reports).parts
        assert first is not None and not first.is_here
        with pytest.raises(RuntimeError, match="not passed"):
            first.read()
        next(reports)
        assert first.is_here and first.read()["compute"] > 0 < first.read()["views"]
        assert not [place for place in gpu.waits if "parts.py" in place]
