"""Source of a Ray Train worker's batches, chosen by the configuration."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from pipeline.cluster.connect import on_nodes_with, smallest_object_store_bytes
from pipeline.cluster.ranks import on_first_rank
from pipeline.config import Config
from pipeline.dataset.manifest import Manifest
from pipeline.feed.cache import SharedImages, decoder
from pipeline.feed.mailbox import Mailbox
from pipeline.feed.plan import decoded_bytes, is_cached, stream_budget
from pipeline.feed.stream import StreamSource
from pipeline.feed.tasks import StreamedSet
from sdclr import Images, ImageSet

# Of the free memory of a device, what the decoded set may take without being asked for.
_DEVICE_FRAC = 0.25


Source: TypeAlias = ImageSet | SharedImages | StreamSource


def open_source(config: Config, manifest: Manifest, data_uri: str, device: torch.device) -> Source:
    """Open the source of this worker; every worker of the group calls it.

    On a device or on the host, the batches are the same bit for bit.
    """
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    if not is_cached(config, manifest):
        # Nodes come and go: a rank that looked for itself could cut the stream in other pieces.
        several = config.train.num_workers > 1
        made = on_first_rank(
            lambda: (streamed_set(config, manifest, data_uri), new_mailbox() if several else None),
            rank=ray.train.get_context().get_world_rank(), device=device, where=data_uri,
        )  # fmt: skip
        if several:
            made = broadcast_from_rank_zero(made)
        assert made is not None  # rank 0's, on every rank
        stream, mailbox = made
        return StreamSource(stream, mailbox=mailbox, pin_memory=device.type == "cuda")
    shard = ray.train.get_dataset_shard("pretrain")
    images = SharedImages(shard.iter_batches(batch_size=None, batch_format="numpy"), manifest)
    return images.to(device) if _on_device(config, manifest, device) else images


def at_hand(source: Source, num_images: int) -> Images:
    """Return images to measure in training: the kept set, or some of a streamed one."""
    return source.sample(num_images) if isinstance(source, StreamSource) else source


def streamed_set(config: Config, manifest: Manifest, data_uri: str) -> StreamedSet:
    """Return what a run of this configuration streams."""
    return StreamedSet(
        decoder=decoder(config, data_uri, manifest),
        shards=manifest.sets["pretrain"].shards,
        budget=stream_budget(config, manifest, object_store_bytes=smallest_object_store_bytes()),
        seed=config.run.seed,
        epochs=config.train.epochs,
        resources=on_nodes_with(config.placement.data_resource),
    )


def new_mailbox() -> Any:
    """Start the actor that hands parts to ranks; it ends with its creator."""
    import ray

    # Outside the placement group of the training workers, which has no room for it.
    return ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy="DEFAULT").remote()


def _on_device(config: Config, manifest: Manifest, device: torch.device) -> bool:
    if device.type != "cuda" or config.feed.cache == "host":
        return False
    if config.feed.cache == "device":
        return True
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return decoded_bytes(config, manifest) <= _DEVICE_FRAC * free_bytes
