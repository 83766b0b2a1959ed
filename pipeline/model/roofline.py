"""The ceilings of a device, and the least time that a network takes on it.

The two ceilings of a device, arithmetic and memory, are measured where the training runs: no table
of names, and what a container, a thread limit or a clock takes away is taken away here too.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.dataset.manifest import Manifest
from pipeline.model import build
from sdclr.shapes import forward_by_shape

_MEASURED_S = 0.03
"""Time for each ceiling, once a training; the best repetition counts."""
_COPIED_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}
_SIDE = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True)
class Ceilings:
    """The two speeds of a device at best.

    Args:
        flops: floating-point operations a second.
        bytes_per_s: read and written of its memory.
    """

    flops: float
    bytes_per_s: float


@dataclass(frozen=True)
class Work:
    """A network's training on one image.

    Args:
        flops: floating-point operations, forward and backward; a product and a sum are two.
        bound_s: seconds that a device with certain ceilings needs at least.
    """

    flops: float
    bound_s: float


@functools.cache
def ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure the ceilings of a device, once a process: two products and a copy.

    The faster product counts, of matrices or a convolution: GPUs round the second in float32.
    """
    kind = device.type
    side = _SIDE[kind]
    a_NN = torch.ones(side, side, device=device, dtype=dtype)
    x = torch.ones(8, 128, side // 32, side // 32, device=device, dtype=dtype)
    kernel = torch.ones(128, 128, 3, 3, device=device, dtype=dtype)
    x, kernel = (t.contiguous(memory_format=torch.channels_last) for t in (x, kernel))
    source = torch.zeros(_COPIED_BYTES[kind], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    with torch.no_grad():
        product_s = _best_s(lambda: a_NN @ a_NN, device)
        convolution_s = _best_s(lambda: torch.conv2d(x, kernel, padding=1), device)
        copy_s = _best_s(lambda: target.copy_(source), device)
    flops = max(2 * side**3 / product_s, 2 * x.numel() * kernel[0].numel() / convolution_s)
    return Ceilings(flops, 2 * source.numel() / copy_s)


def work(network: nn.Module, px: int, at: Ceilings, *, value_bytes: int) -> Work:
    """Return what one image in one view costs to train on, in the least time.

    Each convolution or linear layer takes its arithmetic or its memory traffic, whichever is
    longer, once forward and twice backward. Norms and activations between them read or write their
    values three times forward and six times backward, as fused kernels would. Views, loss,
    optimizer and the products of attention are left out. Nothing is computed: shapes are enough.

    Args:
        network: in training mode or not; not changed.
        px: side of the view.
        at: ceilings of the device.
        value_bytes: of an activation.
    """
    flops, seconds = 0.0, 0.0

    def count(_: str, module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        nonlocal flops, seconds
        if isinstance(module, nn.Conv2d | nn.Linear):
            layer = 3 * 2 * output.numel() * module.weight[0].numel()
            moved = 3 * (inputs.numel() + output.numel()) * value_bytes
            flops += layer
            seconds += max(layer / at.flops, moved / at.bytes_per_s)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            seconds += 9 * output.numel() * value_bytes / at.bytes_per_s

    forward_by_shape(network, px, visit=count)
    return Work(flops, seconds)


def of_training(
    config: Config, manifest: Manifest, network: nn.Module, device: torch.device
) -> Work | None:
    """Return the work of one view of a run's images on a device, whose ceilings are measured.

    None where a backbone of another library computes with values, which shapes do not have.
    """
    is_half = config.train.forward_precision == "bfloat16"
    at = ceilings(device, torch.bfloat16 if is_half else torch.float32)
    with suppress(Exception):  # a number that is not shown ends no training
        px = build.crop_px(config, manifest)
        return work(network, px, at, value_bytes=2 if is_half else 4)
    return None


def _best_s(work: Callable[[], object], device: torch.device) -> float:
    """Return the least seconds of one call; the first ones prepare what later ones reuse."""
    best_s, end_s = float("inf"), time.perf_counter() + _MEASURED_S
    for repetition in range(1000):
        _settle(device)
        begin_s = time.perf_counter()
        work()
        _settle(device)
        now_s = time.perf_counter()
        best_s = min(best_s, now_s - begin_s)
        if now_s > end_s and repetition >= 1:
            break
    return max(best_s, 1e-9)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
