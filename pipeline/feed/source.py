"""Source of a Ray Train worker's batches, chosen by the configuration."""

from __future__ import annotations

from typing import TypeAlias

import torch

from pipeline.cluster.connect import smallest_object_store_bytes
from pipeline.cluster.marked_nodes import own_node
from pipeline.cluster.ranks import fail_together
from pipeline.config import Config
from pipeline.dataset.manifest import Manifest
from pipeline.feed.cache import SharedImages, decoder
from pipeline.feed.plan import decoded_bytes, is_cached, stream_budget
from pipeline.feed.stream import StreamSource
from pipeline.feed.tasks import StreamedSet
from sdclr import Images, ImageSet

# Of the free memory of a device, what the decoded set may take without being asked for.
_DEVICE_FRAC = 0.25
# Images that take longer are an error; so does a rank that waits for another one's.
_DEADLINE_S = 900.0


Source: TypeAlias = ImageSet | SharedImages | StreamSource


def open_source(config: Config, manifest: Manifest, data_uri: str, device: torch.device) -> Source:
    """Open the source of this worker; every worker of the group calls it.

    On a device or on the host, the batches are the same bit for bit.
    """
    import ray.train

    if not is_cached(config, manifest):
        num_ranks = ray.train.get_context().get_local_world_size()
        stream = fail_together(
            lambda: streamed_set(config, manifest, data_uri, num_ranks=num_ranks), device=device
        )
        return StreamSource(stream, device=device)
    shard = ray.train.get_dataset_shard("pretrain")
    images = SharedImages(shard.iter_batches(batch_size=None, batch_format="numpy"), manifest)
    return images.to(device) if _on_device(config, manifest, device) else images


def at_hand(source: Source, num_images: int) -> Images:
    """Return images to measure in training: the kept set, or some of a streamed one."""
    return source.sample(num_images) if isinstance(source, StreamSource) else source


def streamed_set(
    config: Config, manifest: Manifest, data_uri: str, *, num_ranks: int = 1
) -> StreamedSet:
    """Return what a run of this configuration streams to a rank in this process.

    Args:
        config: of the run.
        manifest: of the data set.
        data_uri: where it is.
        num_ranks: training workers on this node.
    """
    mark = config.placement.data_nodes
    return StreamedSet(
        decoder=decoder(config, data_uri, manifest),
        shards=manifest.sets["pretrain"].shards,
        budget=stream_budget(config, manifest, object_store_bytes=smallest_object_store_bytes()),
        seed=config.run.seed,
        epochs=config.train.epochs,
        mark=mark,
        node=own_node(mark, num_ranks=num_ranks),
        deadline_s=min(_DEADLINE_S, config.train.collective_timeout_s),
    )


def _on_device(config: Config, manifest: Manifest, device: torch.device) -> bool:
    if device.type != "cuda" or config.feed.cache == "host":
        return False
    if config.feed.cache == "device":
        return True
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return decoded_bytes(config, manifest) <= _DEVICE_FRAC * free_bytes
