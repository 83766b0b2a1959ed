"""Lines of a training say where its time went; the report says what bounds it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.file import load_config
from pipeline.model.roofline import Ceilings, Work, ceilings, work
from pipeline.record.goodput import Goodput
from pipeline.record.metrics import read_rows
from pipeline.record.rows import PARTS, HealthRow, StepRow
from pipeline.report.bounds import bounds
from pipeline.track.points import points
from pipeline.train import step_time
from pipeline.train.step_log import MethodLog
from pipeline.train.step_time import StepTime
from sdclr import StepReport, build_network
from sdclr.parts import StepParts
from sdclr.transfer import HostCopy
from tests.recipes import some_images, some_plan, some_trainer
from tests.records import health_row
from tests.simulated_gpu import DEVICE, SimulatedGPU

CONFIG = load_config(None, ["train.methods=[sdclr]", "train.log_every_steps=2"])


class Parts(StepParts):
    """Parts of a step that are known; a GPU's may be ahead."""

    def __init__(self, is_here: bool = True, **seconds: float) -> None:
        self.seconds, self.has_passed = seconds, is_here

    @property
    def is_here(self) -> bool:
        return self.has_passed

    def read(self) -> dict[str, float]:
        assert self.has_passed
        return self.seconds


def report(step: int, parts: StepParts | None, wait_s: float = 0.0) -> StepReport:
    return StepReport(
        epoch=0, step=step, figures=HostCopy(torch.ones(2)), lr=0.1, temperature=0.2,
        num_images=8, wait_s=wait_s, kept_frac=None, parts=parts,
    )  # fmt: skip


def clock(*times_s: float) -> Any:
    return mock.patch.object(step_time.time, "monotonic", iter(times_s).__next__)


def test_parts_are_the_mean_of_a_step_and_add_up_to_its_time() -> None:
    with clock(0.0, 20.0, 20.0):
        spent = StepTime()
        spent.spend("health", 4.0)
        for step in (1, 2):
            spent.see(report(step, Parts(views=1.0, compute=3.0, exchange=2.0), wait_s=0.5))
        spent.spend("checkpoint", 1.0)
        span = spent.span()
    assert span.parts_s == {
        "wait": 0.5, "views": 1, "compute": 3, "exchange": 2, "checkpoint": 0.5, "health": 2,
        "rest": 1,
    }  # fmt: skip
    assert tuple(span.parts_s) == PARTS and sum(span.parts_s.values()) == 10
    assert span.work_s == 4 and span.images_per_s == 16 / 20 and span.wait_frac == 1 / 20


def test_a_step_that_a_gpu_has_not_passed_is_counted_with_the_next_line() -> None:
    ahead = Parts(is_here=False, views=9.0, compute=9.0, exchange=0.0)
    with clock(*range(6)):
        spent = StepTime()
        spent.see(report(1, ahead))
        assert spent.span().parts_s == {}
        ahead.has_passed = True
        spent.see(report(2, Parts(views=1.0, compute=1.0, exchange=0.0)))
        found = spent.span().parts_s
    assert (found["views"], found["rest"]) == (5, 0)  # of two steps


def test_a_block_that_fails_is_counted() -> None:
    times = mock.patch.object(step_time.time, "perf_counter", iter((1.0, 3.0)).__next__)
    with times, clock(0.0, 4.0, 4.0):
        spent = StepTime()
        with pytest.raises(ValueError, match="full"), spent.spent_on("checkpoint"):
            raise ValueError("full")
        spent.see(report(1, Parts(views=0.5, compute=0.5, exchange=0.0)))
        assert spent.span().parts_s["checkpoint"] == 2


def lines(folder: Path, work: Work | None) -> list[StepRow]:
    with MethodLog(str(folder), CONFIG, "sdclr", num_steps=4, rank=0, work=work) as log:
        looked = health_row("sdclr", 0, 0) | {"alarms": ()}
        log.append(HealthRow.model_validate(looked))
        for step in range(1, 5):
            log.step(report(step, Parts(views=1.0, compute=3.0, exchange=0.0)))
    return read_rows(str(folder), StepRow)


def test_lines_hold_the_parts_the_arithmetic_and_the_share_of_the_roofline(tmp_path: Path) -> None:
    first, second = lines(tmp_path / "a", Work(flops=100.0, bound_s=0.25))
    assert first.parts_s["compute"] == 3 and second.step == 4
    assert first.flops_per_s == pytest.approx(2 * first.images_per_s * 100)
    workers = CONFIG.train.num_workers
    assert first.roofline_frac == pytest.approx(2 * first.images_per_s / workers * 0.25)
    (unknown, _) = lines(tmp_path / "b", None)
    assert unknown.flops_per_s is None is unknown.roofline_frac
    (_, point, _) = points([*read_rows(str(tmp_path / "a"), HealthRow), first, second])
    assert point.values["compute_s"] == 3 and "roofline_frac" in point.values


def test_a_run_on_a_gpu_has_parts_and_waits_for_none(tmp_path: Path) -> None:
    plan = some_plan(24)
    with SimulatedGPU() as gpu:
        images = some_images(24)
        images.images_NCHW = images.images_NCHW.to(DEVICE)
        trainer = some_trainer(plan, device="cuda:0")
        gpu.forget()
        with MethodLog(str(tmp_path), CONFIG, "sdclr", num_steps=9, rank=0) as log:
            for one in itertools.islice(trainer.run(images.feed(plan, seed=0)), 8):
                log.step(one)
        assert not [place for place in gpu.waits if "parts" in place or "step_time" in place]
    found = read_rows(str(tmp_path), StepRow)
    assert len(found) == 4 and all(row.parts_s["compute"] > 0 for row in found)


@pytest.mark.parametrize(("backbone", "px"), [("resnet8", 32), ("resnet18", 32), ("resnet50", 64)])
def test_the_arithmetic_is_what_torch_counts(backbone: str, px: int) -> None:
    network = build_network(backbone, stem="imagenet", head_depth=2, seed=0)
    network.head.eval()
    modes = [module.training for module in network.modules()]
    found = work(network, px, Ceilings(1e12, 1e11), value_bytes=2)
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())
    network.eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, px, px))
    assert found.flops == 3 * counter.get_total_flops() > 0


def test_the_slower_of_arithmetic_and_memory_bounds_a_layer() -> None:
    layer = nn.Conv2d(3, 5, 3, padding=1, bias=False)  # of 4 x 4 px
    moved = 3 * 2 * (3 + 5) * 16
    for at, wanted in (
        (Ceilings(1.0, 1e12), 3 * 2 * 5 * 16 * 27),
        (Ceilings(1e12, 1.0), moved),
    ):
        assert work(nn.Sequential(layer), 4, at, value_bytes=2).bound_s == wanted


def test_a_norm_moves_its_values_nine_times() -> None:
    norm = nn.Sequential(nn.BatchNorm2d(3))
    assert work(norm, 4, Ceilings(1.0, 1.0), value_bytes=2).bound_s == 9 * 3 * 16 * 2


def test_ceilings_are_measured() -> None:
    found = ceilings(torch.device("cpu"), torch.float32)
    assert 1e7 < found.flops < 1e15 and 1e7 < found.bytes_per_s < 1e13


def test_goodput_rises_while_nothing_is_lost() -> None:
    begun = Goodput(10.0, {"start": 10.0}, {})
    assert begun.frac == 0 and begun.after(90).frac == 0.9 and begun.wall_s == 10


def row(method: str, **parts_s: float) -> StepRow:
    return StepRow(
        method=method, seed=0, epoch=0, step=1, num_steps=9, loss=1.0, lr=0.1, temperature=0.2,
        grad_norm=1.0, images_per_s=1.0, data_wait_frac=0.0, parts_s=parts_s, roofline_frac=0.3,
        time_s=0.0,
    )  # fmt: skip


def test_the_report_says_what_bounds_each_method() -> None:
    rows = [row("sdclr", wait=6.0, compute=3.0, views=1.0), row("sdclr", wait=8.0, compute=2.0)]
    text = bounds([*rows, row("simclr", compute=1.0)])
    assert "SDCLR: waiting for data, 70 % of a step" in text and "docs/feed.md" in text
    assert "optimizer 25 %, making views 5 %" in text and "30 %" in text
    assert "SimCLR: forward, backward and optimizer, 100 %" in text


def test_older_records_say_nothing() -> None:
    assert bounds([row("sdclr")]) == ""
