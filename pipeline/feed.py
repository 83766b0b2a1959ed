"""Shards to the batches of one worker: Ray Data reads, checks and decodes; `sdclr.order` decides.

The set is streamed once into each worker's memory as uint8. From then on an epoch is index
arithmetic: no start-up, no wait, and an order that is a function of (seed, epoch, step) alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch

from pipeline.cluster import on_nodes_with
from pipeline.config import Config
from pipeline.dataset.decoding import ShardDecoder, shard_items
from pipeline.dataset.image import ImageLimits
from pipeline.dataset.manifest import Manifest
from pipeline.errors import ConfigError, DataError
from sdclr import EpochPlan, ImageSet


def decoder(config: Config, data_uri: str, manifest: Manifest) -> ShardDecoder:
    """What turns the shards of a data set into pixels, under this configuration."""
    limits = ImageLimits(
        max_bytes=config.ingest.max_image_bytes,
        max_pixels=config.ingest.max_image_pixels,
        min_side_px=config.ingest.min_side_px,
    )
    return ShardDecoder(data_uri, manifest.image, limits, config.feed.canvas_px)


def decoded_rows(config: Config, data_uri: str, manifest: Manifest, *set_names: str) -> Any:
    """A Ray dataset of the decoded rows of some sets, one task for each shard, in no set order."""
    import ray.data

    # Progress is shown by the console; Ray Data would draw bars of its own over it.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = shard_items(manifest, set_names)
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    decoded = dataset.map_batches(
        decoder(config, data_uri, manifest),
        batch_size=1,
        resources=on_nodes_with(config.placement.data_resource) or None,
    )
    decoded.set_name(f"{manifest.name}-{'-'.join(set_names)}")  # on the dashboard
    return decoded


def epoch_plan(config: Config, manifest: Manifest) -> EpochPlan:
    """How the pre-training set is cut into steps.

    Raises:
        DataError: it does not fill one global batch.
    """
    num_images = manifest.sets["pretrain"].rows
    try:
        return EpochPlan(
            num_images=num_images,
            global_batch=config.train.global_batch,
            drop_last=config.train.drop_last,
            num_ranks=config.train.workers,
        )
    except ValueError as error:
        most = num_images - num_images % config.train.workers
        raise DataError(
            f"too few images for a batch: {error}",
            where=f"data set {manifest.name}",
            todo=f"set train.global_batch={most} or less, or add images",
        ) from error


def canvas_size(config: Config, manifest: Manifest) -> tuple[int, int]:
    """Height and width in px of the decoded images."""
    if manifest.image.height_px is not None and manifest.image.width_px is not None:
        return manifest.image.height_px, manifest.image.width_px
    side_px = config.feed.canvas_px
    if side_px is None:
        raise ConfigError(
            "images of different sizes need a canvas",
            where="feed.canvas_px",
            todo="set feed.canvas_px, for example feed.canvas_px=256",
        )
    return side_px, side_px


def check_fits(config: Config, manifest: Manifest) -> None:
    """Refuse a set that would not fit the memory that a worker may use for it.

    Raises:
        ConfigError: naming both sizes.
    """
    height_px, width_px = canvas_size(config, manifest)
    needed = manifest.sets["pretrain"].rows * 3 * height_px * width_px
    if needed > config.feed.cache_bytes:
        raise ConfigError(
            f"the decoded pre-training set takes {needed / 2**30:.1f} GiB in each worker, "
            f"feed.cache_bytes allows {config.feed.cache_bytes / 2**30:.1f} GiB",
            where="feed.cache_bytes",
            todo="raise it if the nodes have the memory, or lower feed.canvas_px",
        )


def collect(batches: Iterable[dict[str, Any]], config: Config, manifest: Manifest) -> ImageSet:
    """All rows of the pre-training set, each in its place, from batches in any order.

    Raises:
        DataError: a row is missing or came twice.
    """
    num_images = manifest.sets["pretrain"].rows
    height_px, width_px = canvas_size(config, manifest)
    images_NCHW = torch.empty((num_images, 3, height_px, width_px), dtype=torch.uint8)
    sizes_N2 = torch.empty((num_images, 2), dtype=torch.int64)
    times_seen_N = torch.zeros(num_images, dtype=torch.int64)
    for batch in batches:
        rows_n = torch.as_tensor(batch["row"].copy())
        images_NCHW[rows_n] = torch.as_tensor(batch["pixels"].copy())
        sizes_N2[rows_n] = torch.as_tensor(batch["size"].copy())
        times_seen_N[rows_n] += 1
    wrong = int((times_seen_N != 1).sum())
    if wrong:
        raise DataError(
            f"{wrong} of {num_images} images did not arrive exactly once",
            where=f"data set {manifest.name}",
            todo="run the stage again; if it happens again, ingest the data set again",
        )
    return ImageSet(images_NCHW, sizes_N2)
