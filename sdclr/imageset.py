"""A set of decoded images in memory, cut into batches in the order of `sdclr.order`.

Shapes: N images in the set, B images of this rank in one step, C = 3 channels, H x W pixels of the
canvas.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from sdclr.order import EpochPlan, epoch_order
from sdclr.transfer import to_device


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    Args:
        images_BCHW: uint8; an image smaller than the canvas is in the top left corner.
        sizes_B2: int64, height and width in px of each image on its canvas.
        rows_B: int64, which images of the set these are.
        start: place of the first of them in the global batch.
        num_global: images in the global batch.
    """

    images_BCHW: Tensor
    sizes_B2: Tensor
    rows_B: Tensor
    start: int
    num_global: int


class Feed(Protocol):
    """Anything that a trainer can read: batches as a function of (epoch, step), nothing else."""

    plan: EpochPlan

    def batches(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch, from `start_step` on."""
        ...


class Images(Protocol):
    """Decoded images in memory, by row."""

    def __len__(self) -> int:
        """Return the number of images N."""
        ...

    def take(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) uint8 and their sizes (B, 2), in the order of `rows_B`."""
        ...


class ImageSet:
    """Images held in memory as uint8, on the host or on a device.

    Args:
        images_NCHW: uint8.
        sizes_N2: height and width of each image; None when all fill the canvas.

    Raises:
        ValueError: wrong type or shape.
    """

    def __init__(self, images_NCHW: Tensor, sizes_N2: Tensor | None = None) -> None:
        if images_NCHW.dtype != torch.uint8 or images_NCHW.ndim != 4 or images_NCHW.shape[1] != 3:
            found = f"{images_NCHW.dtype} {tuple(images_NCHW.shape)}"
            raise ValueError(f"images must be uint8 of shape (N, 3, H, W), got {found}")
        if sizes_N2 is None:
            sizes_N2 = torch.tensor(images_NCHW.shape[2:]).expand(len(images_NCHW), 2)
        self.images_NCHW, self.sizes_N2 = images_NCHW, sizes_N2

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def take(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) on the set's device and their sizes (B, 2), in row order."""
        rows_here_B = to_device(rows_B, self.images_NCHW.device)
        return self.images_NCHW[rows_here_B], self.sizes_N2[rows_B]

    def feed(self, plan: EpochPlan, *, seed: int, rank: int = 0) -> SetFeed:
        """Return the batches that one rank trains on."""
        return SetFeed(self, plan, seed=seed, rank=rank)


class SetFeed:
    """The batches of some images for one rank, re-shuffled every epoch; a `Feed`.

    Raises:
        ValueError: the plan is for another number of images.
    """

    def __init__(self, images: Images, plan: EpochPlan, *, seed: int, rank: int) -> None:
        if plan.num_images != len(images):
            raise ValueError(f"the plan is for {plan.num_images} images, the set has {len(images)}")
        self.images, self.plan, self.seed, self.rank = images, plan, seed, rank

    def batches(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch, from `start_step` on."""
        order = torch.from_numpy(epoch_order(len(self.images), seed=self.seed, epoch=epoch))
        for step in range(start_step, self.plan.num_steps):
            part = self.plan.part(step, self.rank)
            rows_B = order[part]
            images_BCHW, sizes_B2 = self.images.take(rows_B)
            yield Batch(
                images_BCHW=images_BCHW,
                sizes_B2=sizes_B2,
                rows_B=rows_B,
                start=part.start - step * self.plan.global_batch,
                num_global=self.plan.batch_size(step),
            )


def staged(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches with their images on a GPU: the next is copied while one is trained on.

    The copy runs on a stream of its own, from pinned memory. On a CPU, and where the images are on
    the GPU already, batches are passed on as they are.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: deque[tuple[Batch, torch.cuda.Event | None]] = deque()
    for batch in batches:
        event = None
        if not batch.images_BCHW.is_cuda:
            with torch.cuda.stream(stream):
                batch = replace(batch, images_BCHW=to_device(batch.images_BCHW, device))
            event = stream.record_event()
        ahead.append((batch, event))
        if len(ahead) > 1:
            yield _arrived(*ahead.popleft())
    while ahead:
        yield _arrived(*ahead.popleft())


def _arrived(batch: Batch, event: torch.cuda.Event | None) -> Batch:
    """Let the training's stream, not the host, wait for a copy."""
    if event is not None:
        current = torch.cuda.current_stream(batch.images_BCHW.device)
        current.wait_event(event)
        batch.images_BCHW.record_stream(current)
    return batch
