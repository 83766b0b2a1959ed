"""Two ranks on simulated GPUs: one process's results, no host wait, one gather and one reduction.

The exchange is gloo's, as on CPUs. The operators of the norms are references of their definitions.
"""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sdclr import ImageSet, collective
from sdclr.batchnorm import GlobalBatchNorm, synchronise
from tests import norm_operators
from tests.ranks import run_on_ranks
from tests.recipes import some_images, some_plan, some_trainer
from tests.simulated_gpu import DEVICE, SimulatedGPU
from tests.test_ranks import layers_and_gradients, my_rows, normed_layers, pixels

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
GATHER, REDUCTION = "_allgather_base_", "allreduce_"


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_the_references_make_up_a_batch_norm(shape: tuple[int, ...], affine: bool) -> None:
    g = torch.Generator().manual_seed(3)
    x, direction = torch.randn(2, *shape, generator=g, dtype=torch.float64)
    x = (2 * x + 1).requires_grad_()
    weight, bias = (t.requires_grad_() if affine else None for t in torch.randn(2, 3).double())
    running = [torch.zeros(3).double(), torch.ones(3).double()]
    expected_running = [t.clone() for t in running]
    y = F.batch_norm(x, *expected_running, weight, bias, training=True, momentum=0.1, eps=1e-3)
    inputs = [t for t in (x, weight, bias) if t is not None]
    expected = torch.autograd.grad((y * direction).sum(), inputs)
    counts = torch.tensor([x.numel() / 3]).double()
    with torch.no_grad():
        mean, invstd = norm_operators.batch_norm_stats(x, 1e-3)
        mean, invstd = norm_operators.batch_norm_gather_stats_with_counts(
            x, mean[None], invstd[None], *running, 0.1, 1e-3, counts
        )
        found_y = norm_operators.batch_norm_elemt(x, weight, bias, mean, invstd, 1e-3)
        sums = norm_operators.batch_norm_backward_reduce(
            direction, x, mean, invstd, weight, True, affine, affine
        )
        grad_x = norm_operators.batch_norm_backward_elemt(
            direction, x, mean, invstd, weight, *sums[:2], counts.int()
        )
    torch.testing.assert_close(found_y, y, **CLOSE)
    torch.testing.assert_close([grad_x, *sums[2:]][: len(inputs)], list(expected), **CLOSE)
    torch.testing.assert_close(running, expected_running, **CLOSE)


def layers_there(layers: nn.Module) -> dict[str, Any]:
    """This rank's part of `layers_and_gradients` on the simulated GPU."""
    gpu = SimulatedGPU.now()
    layers = layers.to(DEVICE)
    x, direction = (my_rows(t).to(DEVICE) for t in pixels())
    x.requires_grad_()
    gpu.forget()
    y = layers(x)
    (y * direction).sum().backward()
    seen = {"waits": dict(gpu.waits), "launches": dict(gpu.launches)}
    grads = {n: p.grad.values.clone() for n, p in layers.named_parameters()}  # type: ignore[union-attr]
    for grad in grads.values():
        dist.all_reduce(grad)
    buffers = {name: buffer.values for name, buffer in layers.named_buffers()}  # type: ignore[attr-defined]
    found = {"y": y.detach().values, "x_grad": x.grad.values}  # type: ignore[union-attr]
    return {**found, "grads": grads, "buffers": buffers, **seen}


def own_reduction(value: Tensor) -> Tensor:
    """What `sum_over_ranks` would give if no rank heard of another."""
    return value.clone()


def on_a_rank() -> dict[str, Any]:
    capturing = mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False)
    with norm_operators.on_the_cpu(), SimulatedGPU(), capturing:
        ours = layers_there(synchronise(normed_layers()))
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
        torchs = layers_there(convert(normed_layers()))  # type: ignore[no-untyped-call]
        with mock.patch.object(collective, "sum_over_ranks", own_reduction):
            alone = layers_there(synchronise(normed_layers()))
        norm = synchronise(nn.Sequential(nn.BatchNorm2d(4)))
        norm = norm.to(DEVICE)
        x = torch.randn(2, 4, 3, 3).to(torch.bfloat16, memory_format=torch.channels_last)
        x = x.to(DEVICE).requires_grad_()
        y = norm(x)
        y.sum().backward()
        assert x.grad is not None
        layout = torch.channels_last
        kept = [t.is_contiguous(memory_format=layout) for t in (y.values, x.grad.values)]
        kept += [t.dtype == torch.bfloat16 for t in (y, x.grad)]
    return {"ours": ours, "torchs": torchs, "alone": alone, "low": kept}


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run_on_ranks(on_a_rank)


def together(two: list[dict[str, Any]], kind: str, key: str) -> Tensor:
    return torch.cat([rank[kind][key] for rank in two])


@pytest.mark.promise("R4")
@pytest.mark.parametrize("kind", ["ours", "torchs"])
def test_norms_of_two_gpus_equal_batchnorm_over_all_images(
    two: list[dict[str, Any]], kind: str
) -> None:
    one = layers_and_gradients()
    torch.testing.assert_close(together(two, kind, "y"), one["y"], **CLOSE)
    torch.testing.assert_close(together(two, kind, "x_grad"), one["x_grad"], **CLOSE)
    for rank in two:
        torch.testing.assert_close(rank[kind]["grads"], one["grads"], **CLOSE)
        torch.testing.assert_close(rank[kind]["buffers"], one["buffers"], **CLOSE)


@pytest.mark.promise("R4", control=True)
def test_a_norm_that_reduces_nothing_would_be_noticed(two: list[dict[str, Any]]) -> None:
    one = layers_and_gradients()
    torch.testing.assert_close(together(two, "alone", "y"), one["y"], **CLOSE)
    assert (together(two, "alone", "x_grad") - one["x_grad"]).norm() > 0.05 * one["x_grad"].norm()


def test_a_norm_waits_for_nothing_gathers_once_and_reduces_once(two: list[dict[str, Any]]) -> None:
    num_norms = 2
    for rank in two:
        launches = rank["ours"]["launches"]
        assert rank["ours"]["waits"] == {}
        assert launches[GATHER] == launches[REDUCTION] == num_norms
        # torch's own leaves out ranks without images, and the host has to know how many.
        assert sum(rank["torchs"]["waits"].values()) == 3 * num_norms
        assert rank["low"] == [True] * 4


class AveragedGradients(nn.Module):
    """What DistributedDataParallel does, whose buckets are C++ and know no simulated GPU."""

    def __init__(self, module: nn.Module, **_: Any) -> None:
        super().__init__()
        self.module = module
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(self.average)

    @staticmethod
    def average(parameter: Tensor) -> None:
        assert parameter.grad is not None
        total = collective.sum_over_ranks(parameter.grad)
        parameter.grad.copy_(total / collective.world_size())  # in the layout of the weight

    def forward(self, *views: Tensor) -> Any:
        return self.module(*views)


def training_there() -> dict[str, Any]:
    plan = some_plan(num_ranks=collective.world_size())
    waits, launches = [], []
    simple = mock.patch.object(collective, "DistributedDataParallel", AveragedGradients)
    with norm_operators.on_the_cpu(), SimulatedGPU() as gpu, simple:
        made = some_trainer(plan, dtype=torch.float64, epochs=1, device="cuda:0")
        norms = [m for m in made.model.modules() if isinstance(m, GlobalBatchNorm)]
        images = ImageSet(some_images().images_NCHW.to(DEVICE))
        reports = []
        gpu.forget()
        for report in made.run(images.feed(plan, seed=0, rank=collective.rank())):
            reports.append(report)
            waits.append(Counter(gpu.waits))
            launches.append(Counter(gpu.launches))
            gpu.forget()
        losses = [report.loss for report in reports]
    return {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "waits": dict(sum(waits, Counter())),
        "gathers": launches[1][GATHER],
        "num_norms": len(norms),
    }


@pytest.mark.promise("R4")
def test_training_on_two_gpus_is_that_of_one_cpu_and_never_waits() -> None:
    plan = some_plan()
    alone = some_trainer(plan, dtype=torch.float64, epochs=1)
    losses = [report.loss for report in alone.run(some_images().feed(plan, seed=0))]
    expected = torch.tensor(losses, dtype=torch.float64)
    for rank in run_on_ranks(training_there):
        torch.testing.assert_close(rank["losses"], expected, rtol=1e-6, atol=1e-6)
        assert rank["waits"] == {}
        # One for each norm that a step passes, one for the embeddings, one for the mean of losses.
        assert rank["gathers"] == rank["num_norms"] + 2
