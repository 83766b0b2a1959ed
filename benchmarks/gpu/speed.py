"""Images per second of the whole step in each way to run it, beside the published scheme."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.augment import smooth_images
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cases import Case, Pictures, batch_of, bound_s, case_of, trainer_of
from benchmarks.gpu.checks import CEILING, COPY
from benchmarks.published import PublishedStep
from sdclr import Trainer, Twin, ViewParams
from sdclr.augment import apply_view, sample_view
from sdclr.rendering import fused_views
from sdclr.step_graph import WARM_UP

SINGLE = "single launches"
NUM_LOADERS, AHEAD, SHARED_MEMORY = 16, 2, Path("/dev/shm")
Way = Callable[[], Trainer]


def resnet18(bench: Bench) -> None:
    """Time ResNet-18 on 32 px."""
    _speed(bench, case_of("resnet18", small=bench.small))


def resnet50(bench: Bench) -> None:
    """Time ResNet-50 on 224 px."""
    _speed(bench, case_of("resnet50", small=bench.small))


def _speed(bench: Bench, case: Case) -> None:
    published = {
        "published, no loaders": lambda: _published(bench, case, with_loaders=False),
        "published, 16 loaders": lambda: _published(bench, case, with_loaders=True),
    }
    for name, time_it in published.items():
        try:
            bench.add(f"{case.name}: {name}", [case.batch / s for s in time_it()], "images/s")
        except Exception as error:  # what has no reference still has a speed
            bench.failed(f"{case.name}: {name}", error)
        _clear(bench)
    _time_views(bench, case)
    work = _flops(bench, case)
    for name, make in _ways(bench, case).items():
        if bench.left_s < 10 and not bench.small:
            bench.add(f"{case.name}: {name}", [], "images/s", note="no time was left")
            continue
        try:
            _time_way(bench, case, name, make, work)
        except Exception as error:  # one way that fails must not hide the others
            bench.failed(f"{case.name}: {name}", error)
        _clear(bench)


def _ways(bench: Bench, case: Case) -> dict[str, Way]:
    """Return the maker of a trainer for each way to run the step, those that compile last.

    On a GPU a step is one CUDA graph where no other way is named.
    """
    ways: dict[str, Way] = {
        "bfloat16": lambda: trainer_of(case, bench.device, precision="bfloat16"),
        "float32": lambda: trainer_of(case, bench.device),
        "bfloat16, SimCLR": lambda: trainer_of(
            case, bench.device, precision="bfloat16", method="simclr"
        ),
        "bfloat16, micro batch of an eighth": lambda: trainer_of(
            case, bench.device, precision="bfloat16", micro_batch=max(3, case.batch // 8)
        ),
    }
    if bench.is_cuda:
        ways[f"bfloat16, {SINGLE}"] = lambda: trainer_of(
            case, bench.device, precision="bfloat16", cuda_graph=False
        )
        ways[f"bfloat16, compiled, {SINGLE}"] = lambda: trainer_of(
            case, bench.device, precision="bfloat16", compile=True, cuda_graph=False
        )
        ways["bfloat16, compiled"] = lambda: trainer_of(
            case, bench.device, precision="bfloat16", compile=True
        )
    return ways


def _time_views(bench: Bench, case: Case) -> None:
    """Time both views of a batch with their draws: by Triton, by torch, and the draws alone."""
    images_BCHW = batch_of(case, bench.device).images_BCHW
    sizes_B2 = torch.tensor(images_BCHW.shape[2:]).expand(case.batch, 2)
    generator = np.random.default_rng(0)

    def draw() -> list[ViewParams]:
        return [sample_view(case.augment, sizes_B2, generator) for _ in range(2)]

    ways: dict[str, Callable[[], object]] = {
        "draws of two views, on the host": draw,
        "two views by torch": lambda: [apply_view(images_BCHW, p, case.augment) for p in draw()],
    }
    if bench.is_cuda:
        ways["two views by Triton"] = lambda: fused_views(images_BCHW, draw(), case.augment)
        half = torch.bfloat16
        ways["two views by Triton, bfloat16"] = lambda: fused_views(
            images_BCHW, draw(), case.augment, dtype=half
        )
    for name, call in ways.items():
        try:
            spent = bench.seconds(call, budget_s=1.5)
        except Exception as error:  # views by torch are a way as well
            bench.failed(f"{case.name}: {name}", error)
            continue
        bench.add(f"{case.name}: {name}", [1e3 * s for s in spent], "ms")


def _time_way(bench: Bench, case: Case, name: str, make: Way, work: float) -> None:
    trainer, batch = make(), batch_of(case, bench.device)
    for _ in range(WARM_UP + 1 if bench.is_cuda else 0):  # the last is captured as a graph
        trainer.update(batch)
    spent = bench.seconds(lambda: trainer.update(batch))
    trainer.begin_at(trainer.step)  # the memory inside a graph is not counted
    peak = bench.peak_bytes(lambda: trainer.update(batch))
    views = bench.seconds(lambda: trainer.views(batch), budget_s=2.0)
    trainer.settle()
    label = f"{case.name}: {name}"
    bench.add(label, [case.batch / s for s in spent], "images/s")
    slow = bench.value(f"{case.name}: published, 16 loaders")
    if slow is not None:
        target = bench.goal(case.target if name == "bfloat16" else None)
        ratios = [case.batch / s / slow for s in spent]
        bench.add(label, ratios, "x", target, versus="published, 16 loaders")
    graph = bench.value(label.removesuffix(f", {SINGLE}"))
    if name == f"bfloat16, {SINGLE}" and graph is not None:
        ratios = [graph * s / case.batch for s in spent]
        bench.add(f"{case.name}: bfloat16", ratios, "x", versus=SINGLE)
    ceiling, copy = bench.value(CEILING), bench.value(COPY)
    if ceiling is not None and copy is not None and "SimCLR" not in name:
        shares = [100 * work / s / (ceiling * 1e12) for s in spent]
        bench.add(label, shares, "%", versus=CEILING)
        least = bound_s(case, flops=ceiling * 1e12, bytes_per_s=copy * 1e9)
        bench.add(label, [100 * least / s for s in spent], "%", versus="roofline of both ceilings")
    share = 100 * min(views) / min(spent)
    bench.add(label, [share], "%", bench.goal(10.0), at_most=True, versus="views")
    bench.add(label, [peak / 2**30], "GiB", versus="peak memory")


def _flops(bench: Bench, case: Case) -> float:
    """Return the floating-point operations of a joint step."""
    with FlopCounterMode(display=False) as counter:
        trainer_of(case, bench.device).update(batch_of(case, bench.device))
    return float(counter.get_total_flops())


def _published(bench: Bench, case: Case, *, with_loaders: bool) -> list[float]:
    """Time steps of the published scheme; what loaders hold at the start is used up before."""
    twin = trainer_of(case, bench.device).model
    assert isinstance(twin, Twin)
    step = PublishedStep(twin, lr=0.5, momentum=0.9, weight_decay=1e-4, temperature=0.2)
    if not with_loaders:
        shape = (case.batch, 3, case.augment.crop_px, case.augment.crop_px)
        view = torch.rand(shape, device=bench.device)
        return bench.seconds(lambda: step.step(view, view.flip(3)), budget_s=5.0)
    workers = 0 if bench.small else NUM_LOADERS
    needed = workers * AHEAD * 2 * 3 * 4 * case.batch * case.canvas_px**2
    if workers and shutil.disk_usage(SHARED_MEMORY).free < needed:
        raise RuntimeError(f"the loaders need {needed / 2**30:.1f} GiB of {SHARED_MEMORY}")
    pictures = Pictures(smooth_images(case.batch, case.canvas_px), case.augment)
    loader = iter(
        DataLoader(
            pictures,
            case.batch,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            pin_memory=bench.is_cuda,
        )
    )

    def call() -> None:
        view1, view2 = (v.to(bench.device, non_blocking=True) for v in next(loader))
        step.step(view1, view2)

    for _ in range(AHEAD * workers):
        call()
    return bench.seconds(call, budget_s=12.0)


def _clear(bench: Bench) -> None:
    gc.collect()
    if bench.is_cuda:
        torch.cuda.empty_cache()
