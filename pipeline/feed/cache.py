"""The decoded set in memory, one copy a node: Ray Data decodes it once, `sdclr.order` decides.

The decoded blocks stay in Ray's object store, and every worker of a node reads the same memory:
nothing is copied but the images of a batch. From then on an epoch is index arithmetic: no start-up,
no wait, and an order that is a function of (seed, epoch, step) alone.

Shapes: N images in the set, B images of a batch, H x W pixels of the canvas.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.cluster.marked_nodes import on_nodes
from pipeline.config import Config
from pipeline.dataset.decoding import Columns, ShardDecoder, shard_items
from pipeline.dataset.image import ImageLimits
from pipeline.dataset.manifest import Manifest
from pipeline.feed.plan import canvas_px
from pipeline.feed.rows import RowLedger
from sdclr import EpochPlan, ImageSet, SetFeed


def decoder(config: Config, data_uri: str, manifest: Manifest) -> ShardDecoder:
    """Return the decoder of a data set's shards under this configuration."""
    return ShardDecoder(data_uri, manifest.image, ImageLimits(), canvas_px(config))


def decoded_rows(
    config: Config,
    data_uri: str,
    manifest: Manifest,
    *set_names: str,
    only: Container[int] | None = None,
    with_sha256: bool = False,
) -> Any:
    """Return a Ray dataset of decoded rows, one task a shard, in arbitrary order.

    Args:
        config: of the run; gives the canvas.
        data_uri: the data set.
        manifest: of the data set.
        set_names: whose images.
        only: places in the set of the first image of each shard that is wanted; None = all shards.
        with_sha256: give the recorded hash of each image as well.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    # Progress is shown by the console; Ray Data would draw bars of its own over it.
    context.enable_progress_bars = False
    # Ray Data's own wrapping of an error is pickled without its cause: the kind and id are lost.
    context.raise_original_map_exception = True
    # The error is reported by us; Ray would call it one of its own and ask to report it to Ray.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    items = shard_items(data_uri, manifest, set_names)
    if only is not None:
        items = [item for item in items if item["first_row"] in only]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    decoded = dataset.map_batches(
        replace(decoder(config, data_uri, manifest), with_sha256=with_sha256),
        batch_size=1,
        **on_nodes(config.placement.data_nodes),
    )
    decoded.set_name(f"{manifest.name}-{'-'.join(set_names)}")  # on the dashboard
    return decoded


class SharedImages:
    """The decoded set as the blocks in which it came, read where they lie; see `sdclr.Images`.

    Args:
        batches: rows of `ShardDecoder`, consecutive within each batch, batches in any order. Their
            arrays are kept, so views of shared memory stay views.
        manifest: of the data set.

    Raises:
        DataError: a row is missing or came twice.
    """

    def __init__(self, batches: Iterable[Columns], manifest: Manifest) -> None:
        blocks = [(int(b["row"][0]), b["row"], b["pixels"], b["size"]) for b in batches]
        blocks.sort(key=lambda block: block[0])
        num_images = manifest.sets["pretrain"].rows
        ledger = RowLedger(f"data set {manifest.name}, set pretrain", num_images)
        for _, rows, _, _ in blocks:
            ledger.add(rows)
        ledger.close()
        self._starts = np.array([first for first, _, _, _ in blocks])
        self._blocks: list[NDArray[np.uint8]] = [pixels for _, _, pixels, _ in blocks]
        self._sizes_N2 = torch.from_numpy(np.concatenate([size for _, _, _, size in blocks]))

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self._sizes_N2)

    def take(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) uint8 and their sizes (B, 2), in the order of `rows_B`."""
        rows = rows_B.numpy()
        order = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows[order], [*self._starts[1:], len(self)])
        images_BCHW = torch.empty((len(rows), *self._blocks[0].shape[1:]), dtype=torch.uint8)
        out = images_BCHW.numpy()
        begin = 0
        for first, block, end in zip(self._starts, self._blocks, ends, strict=True):
            if end > begin:
                places = order[begin:end]
                out[places] = block[rows[places] - first]
                begin = end
        return images_BCHW, self._sizes_N2[rows_B]

    def to(self, device: torch.device) -> ImageSet:
        """Return the whole set in the memory of a device."""
        shape = (len(self), *self._blocks[0].shape[1:])
        images_NCHW = torch.empty(shape, dtype=torch.uint8, device=device)
        for first, block in zip(self._starts, self._blocks, strict=True):
            # A copy, since shared memory is read-only, which torch has no word for.
            images_NCHW[first : first + len(block)] = torch.from_numpy(block.copy())
        return ImageSet(images_NCHW, self._sizes_N2)

    def feed(self, plan: EpochPlan, *, seed: int, rank: int = 0) -> SetFeed:
        """Return the batches that one rank trains on."""
        return SetFeed(self, plan, seed=seed, rank=rank)
