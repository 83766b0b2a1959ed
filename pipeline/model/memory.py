"""Estimate of the memory that a worker needs for a step, from the shapes of its network."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch

from pipeline.config import Config
from pipeline.model import build

LEAST_MICRO_BATCH = 4
_COPIES_OF_WEIGHTS = 4  # weights, gradients, momentum, and the masked weights of the pruned branch


def process_bytes() -> int:
    """Return the memory that this process holds, with its libraries; 0 where Linux does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * mmap.PAGESIZE


def worker_bytes(config: Config, crop_px: int, num_images: int) -> int:
    """Return the bytes of a step that holds the activations of so many images of each view.

    It is an estimate: what libraries reserve, views and kept images come on top.
    """
    weights, _ = build.state_bytes(config, config.train.methods[0])
    return _COPIES_OF_WEIGHTS * weights + 2 * num_images * view_bytes(config, crop_px)


def images_held(config: Config) -> int:
    """Return the images of each view whose activations a worker holds at a time."""
    share = max(2, config.train.global_batch // config.train.num_workers)
    return min(share, config.train.micro_batch or share)


def fitting_micro_batch(config: Config, crop_px: int, free_bytes: int) -> int:
    """Return the largest power of 2 that fits as `train.micro_batch`, or the least there is."""
    found = images_held(config)
    found = 1 << (found.bit_length() - 1)
    while found > LEAST_MICRO_BATCH and worker_bytes(config, crop_px, found) > free_bytes:
        found //= 2
    return found


def view_bytes(config: Config, crop_px: int) -> int:
    """Return the bytes that one view leaves for the backward pass, counted on two views."""
    network, held = build.new_network(config, config.train.methods[0]).train(), {}
    parameters = {p.data_ptr() for p in network.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            held[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        out = network.features(torch.rand(2, 3, crop_px, crop_px)).sum()
    half = config.train.precision == "bfloat16"
    return int(out.isfinite()) * sum(held.values()) // 2 // (2 if half else 1)
