"""Collective operations of the training ranks; each also works without a process group.

Convention for gradients: each rank's loss L_r is its own, collectives differentiate the *sum* of
all ranks' losses, and DistributedDataParallel averages parameter gradients over R ranks. The result
is the gradient of mean_r L_r, with no extra factor anywhere.
"""

from __future__ import annotations

import inspect
import os
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sdclr import parts


def is_distributed() -> bool:
    """Return whether a process group of more than one rank is initialised."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return this process's rank; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


_SPIN_S = 0.005


def _finish(work: Any, device: torch.device) -> None:
    """Wait for a collective, a moment awake before asleep when it runs on a CPU.

    Waking a sleeping core takes several times as long as a small exchange between two processes
    of one machine. After `_SPIN_S` the process sleeps until the group's own deadline.
    """
    is_cpu = device.type == "cpu"
    if is_cpu:
        parts.end("compute")  # a GPU's norms exchange too often for a mark each
        end_s = time.perf_counter() + _SPIN_S
        while not work.is_completed() and time.perf_counter() < end_s:
            os.sched_yield()
    work.wait()
    if is_cpu:
        parts.end("exchange")


# The name since torch 2.13, and that before it.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def _gather(value: Tensor) -> Tensor:
    """Stack the tensors of all ranks along a new first dimension, in one piece of memory."""
    value = value.contiguous()
    parts = value.new_empty(dist.get_world_size() * value.numel())
    if torch.compiler.is_compiling():  # into the graph, as a collective that the compiler knows
        _all_gather(parts, value.flatten())
    else:
        _finish(_all_gather(parts, value.flatten(), async_op=True), value.device)
    return parts.view(-1, *value.shape)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor) -> Tensor:
        ctx.num_rows = len(rows_BD)
        return _gather(rows_BD).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Every rank's loss depends on every rank's rows: sum what all of them want from ours.
        total_ND = sum_over_ranks(grads[0])
        start = dist.get_rank() * ctx.num_rows
        return total_ND[start : start + ctx.num_rows]


def gather_rows(rows_BD: Tensor) -> Tensor:
    """Gather the rows of all ranks in rank order: (N, D), N = world size * B, with gradient.

    All ranks must pass the same shape.
    """
    if not is_distributed():
        return rows_BD
    gathered: Tensor = _GatherRows.apply(rows_BD)
    return gathered


def stack_over_ranks(value: Tensor) -> Tensor:
    """Stack the tensors of all ranks along a new first dimension, without gradient.

    For small tensors: gloo gathers them in a quarter of the time that it takes to reduce them.
    """
    value = value.detach()
    return _gather(value) if is_distributed() else value.unsqueeze(0)


def sum_over_ranks(value: Tensor) -> Tensor:
    """Add the tensors of all ranks, without gradient; for what is large, or on a GPU."""
    total = value.detach().clone(memory_format=torch.contiguous_format)
    if is_distributed() and torch.compiler.is_compiling():
        dist.all_reduce(total)
    elif is_distributed():
        _finish(dist.all_reduce(total, async_op=True), total.device)
    return total


def mean_over_ranks(value: Tensor) -> Tensor:
    """Average a tensor over ranks, without gradient. A NaN on any rank gives NaN on all."""
    return stack_over_ranks(value).mean(0)


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model as one whose gradients are averaged over ranks; needs several."""
    # Masks are equal on all ranks, and so are BatchNorm statistics, unless they are meant to be
    # each rank's own. Newer releases of torch renamed the switch.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    newer = "forward_sync_buffers" in known
    without_buffers: dict[str, Any] = {
        "forward_sync_buffers" if newer else "broadcast_buffers": False
    }
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **without_buffers,
    )
