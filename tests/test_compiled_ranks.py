"""Two ranks with torch.compile: the losses of two without, from one graph without a break."""

from __future__ import annotations

from collections.abc import Callable
from functools import partialmethod
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from sdclr import batchnorm, collective
from tests.ranks import run_on_ranks
from tests.recipes import some_images, some_plan, some_trainer

BUCKET_MIB = 3
"""Of gradients: the compiler cuts its graph where a bucket is full, 5 times here."""

statistics = batchnorm._traced_statistics


def without_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    mean_C, var_C = statistics(x)
    return mean_C.detach(), var_C.detach()


def losses(compiled: bool, found: Callable[[Tensor], tuple[Tensor, Tensor]] = statistics) -> Any:
    plan = some_plan(16, num_ranks=collective.world_size())
    feed = some_images(16).feed(plan, seed=0, rank=collective.rank())
    made = some_trainer(plan, epochs=1, dtype=torch.float64, compile=compiled)
    with mock.patch.object(batchnorm, "_traced_statistics", found):
        return [report.loss for report in made.run(feed)]


def on_a_rank() -> dict[str, Any]:
    # The graph is captured and differentiated as for GPUs; only code generation is left out.
    counter = CompileCounterWithBackend("aot_eager")
    compiler = partialmethod(nn.Module.compile, backend=counter)
    buckets = partialmethod(DistributedDataParallel.__init__, bucket_cap_mb=BUCKET_MIB)
    with (
        mock.patch.object(nn.Module, "compile", compiler),
        mock.patch.object(DistributedDataParallel, "__init__", buckets),
    ):
        eager, compiled = losses(False), losses(True)
        seen = {"graphs": counters["stats"]["unique_graphs"], "parts": counter.frame_count}
        seen["breaks"] = sum(counters["graph_break"].values())
        torch._dynamo.reset()
        wrong = losses(True, without_gradient)
    return {"eager": eager, "compiled": compiled, "wrong": wrong, **seen}


@pytest.mark.filterwarnings("default")
def test_compiled_losses_of_two_ranks_are_those_without_a_compiler() -> None:
    for rank in run_on_ranks(on_a_rank):
        assert rank["compiled"] == pytest.approx(rank["eager"], rel=1e-4)
        assert (rank["graphs"], rank["breaks"]) == (1, 0)
        assert rank["parts"] > 1
        # Statistics without a gradient: the first loss is right, and no other.
        assert rank["wrong"][0] == pytest.approx(rank["eager"][0], rel=1e-4)
        assert rank["wrong"][1] != pytest.approx(rank["eager"][1], rel=1e-2)
