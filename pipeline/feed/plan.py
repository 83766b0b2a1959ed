"""Plan of the feed, made before a worker starts: steps of an epoch, cached or streamed."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import Config
from pipeline.console import counted
from pipeline.dataset.manifest import Manifest
from pipeline.errors import ConfigError, DataError
from pipeline.feed.schedule import streams_of
from sdclr import EpochPlan
from sdclr.encoder import CANVAS_PER_CROP
from sdclr.methods import METHODS

_SMALL_BATCH = 64  # of tune_configs/photos_small.yaml
# A decode task makes about as much: long against the cost of a task, short against a step.
_PART_BYTES = 16 * 2**20
# Streams that mix as well as a permutation of the whole set, and images of a step that each rank of
# a large run takes at least: with as many streams no two ranks read the same shard.
_ENOUGH_STREAMS, _RANK_IMAGES = 32, 64
# The task of a smaller one costs more than a fifth of what it does: rather fewer streams than such
# parts, as far as the memory has room for them at all.
_SMALL_PART_BYTES, _SMALL_PART_FRAC = 4 * 2**20, 1 / 64
# Parts of each stream that are decoded at the same time: one in use, one ahead. And parts of each
# rank that nobody uses any more, which Ray deletes a moment later.
_PARTS, _PARTS_GONE = 2, 2
# Batches that each rank keeps ready for use, copied out of the object store.
BATCHES_READY = 2
# Ray begins to move objects to disk when its store is four fifths full.
_STORE_FRAC = 0.7


@dataclass(frozen=True)
class StreamBudget:
    """Bounds of what one rank has in flight of a set that is streamed.

    Args:
        units: shards that are read and not yet decoded, at most.
        part_rows: images that one task decodes, at most.
        rows: images that are decoded, or about to be, at most.
        bytes: images in flight at most, encoded and decoded, of all ranks together: those of
            tasks, in Ray's object store, and the batches that are ready for use.
    """

    units: int
    part_rows: int
    rows: int
    bytes: int


def epoch_plan(config: Config, manifest: Manifest) -> EpochPlan:
    """Return how the pre-training set is cut into steps.

    Raises:
        DataError: it does not fill one global batch.
        ConfigError: some batch gives each worker one image only, which BatchNorm cannot train on.
    """
    num_images = manifest.sets["pretrain"].rows
    try:
        plan = EpochPlan(
            num_images=num_images,
            global_batch=config.train.global_batch,
            drop_last=config.train.drop_last,
            num_ranks=config.train.num_workers,
            num_streams=1 if is_cached(config, manifest) else stream_count(config, manifest),
        )
    except ValueError as error:
        most = num_images - num_images % config.train.num_workers
        is_photos = manifest.image.height_px is None and num_images >= _SMALL_BATCH
        small = "; tune_configs/photos_small.yaml is for few photographs" if is_photos else ""
        raise DataError(
            "E-DATA-040",
            f"too few images for a batch: {error}",
            where=f"data set {manifest.name}",
            todo=f"set train.global_batch={most} or less, or add images{small}",
        ) from error
    # Each branch of a twin sees one view of the batch; SimCLR sees both at once.
    smallest = min(plan.batch_size(0), plan.batch_size(plan.num_steps - 1)) // plan.num_ranks
    t = config.train
    has_twin = any(METHODS[method].has_twin for method in t.methods)
    if smallest < 2 and not t.sync_batchnorm and t.num_workers > 1 and has_twin:
        raise ConfigError(
            "E-CONFIG-017",
            "the smallest batch gives each worker one image, and BatchNorm needs two",
            where=f"train.workers={t.num_workers}, train.sync_batchnorm=false",
            todo="set train.sync_batchnorm=true, train.drop_last=true, or other train.workers",
        )
    return plan


def canvas_px(config: Config) -> int | None:
    """Return the side of the square that photographs are reduced to in px; None if it is unknown.

    It is 1.5 times the short side that evaluation resizes to, so that a photograph of 3:2 keeps
    that many pixels on its short side.
    """
    if config.feed.canvas_px is not None or config.augment.crop_px is None:
        return config.feed.canvas_px
    return round(CANVAS_PER_CROP * config.augment.crop_px)


def canvas_size(config: Config, manifest: Manifest) -> tuple[int, int]:
    """Return the height and width of the decoded images in px."""
    if manifest.image.height_px is not None and manifest.image.width_px is not None:
        return manifest.image.height_px, manifest.image.width_px
    side_px = canvas_px(config)
    if side_px is None:
        raise ConfigError(
            "E-CONFIG-018",
            "images of different sizes need a canvas",
            where="augment.crop_px",
            todo="set augment.crop_px, for example augment.crop_px=224",
        )
    return side_px, side_px


def decoded_bytes(config: Config, manifest: Manifest) -> int:
    """Return the memory of the decoded pre-training set in bytes."""
    return manifest.sets["pretrain"].rows * _image_bytes(config, manifest)


def is_cached(config: Config, manifest: Manifest) -> bool:
    """Return whether the decoded set is kept in memory; else it is streamed every epoch.

    A function of the configuration and the data set alone, never of the machine: the order of the
    images, and with it every loss, depends on it.
    """
    if config.feed.cache == "auto":
        return decoded_bytes(config, manifest) <= config.feed.max_memory_bytes
    return config.feed.cache != "none"


def stream_count(config: Config, manifest: Manifest) -> int:
    """Return from how many streams each batch of a streamed set is taken.

    As many as mix well and `feed.max_memory_bytes` holds two shards and two parts of, and a divisor
    of the batch. The number of workers has no influence, nor has the machine: see `is_cached`.
    """
    batch, shards = config.train.global_batch, manifest.sets["pretrain"].shards
    decoded = (_PARTS + _PARTS_GONE + BATCHES_READY + 1) * batch * _image_bytes(config, manifest)
    memory = config.feed.max_memory_bytes
    part_bytes = min(_SMALL_PART_BYTES, int(_SMALL_PART_FRAC * memory))
    room = (memory - decoded) // (2 * (max(shard.bytes for shard in shards) + part_bytes))
    most = min(max(_ENOUGH_STREAMS, batch // _RANK_IMAGES), len(shards), room)
    return next((n for n in range(most, 1, -1) if batch % n == 0), 1)


def stream_budget(config: Config, manifest: Manifest, *, object_store_bytes: int) -> StreamBudget:
    """Return what each rank may have in flight; it changes the speed, never the order.

    Of each stream one shard is open and one part is in use. Room for one more shard, for one more
    part of each stream and for those that Ray has yet to delete is the least.

    Raises:
        ConfigError: feed.max_memory_bytes, or the object store, is too little for that.
    """
    plan, shards = epoch_plan(config, manifest), manifest.sets["pretrain"].shards
    image_bytes, unit_bytes = _image_bytes(config, manifest), max(shard.bytes for shard in shards)
    ranks, share = plan.num_ranks, plan.global_batch // plan.num_ranks
    streams = max(len(streams_of(plan, rank)) for rank in range(ranks))
    per_step = min(plan.global_batch // plan.num_streams, share)
    parts = _PARTS * streams + _PARTS_GONE
    # One more batch is being copied.
    ready_bytes = (BATCHES_READY + 1) * plan.global_batch * image_bytes
    units_bytes, parts_bytes = (
        ranks * (streams + 1) * unit_bytes,
        ranks * parts * per_step * image_bytes,
    )
    in_store = int(_STORE_FRAC * object_store_bytes)
    for key, least, allowed in (
        (
            "feed.max_memory_bytes",
            units_bytes + parts_bytes + ready_bytes,
            config.feed.max_memory_bytes,
        ),
        (
            f"{_STORE_FRAC:.0%} of Ray's object store (--object-store-memory)",
            units_bytes + parts_bytes,
            in_store,
        ),
    ):
        if least > allowed:
            raise ConfigError(
                "E-CONFIG-019",
                f"streaming takes at least {_size(least)}: "
                f"{counted(ranks * (streams + 1), 'shard')}, "
                f"{_size(units_bytes)}, {ranks * parts} parts of {plan.num_streams} streams in "
                f"Ray's object store, {_size(parts_bytes)}, and "
                f"{_size(least - units_bytes - parts_bytes)} of batches ready for use; {key} "
                f"allows {_size(allowed)}",
                where=key,
                todo=f"set it to {least} or more, or lower ingest.shard_bytes, feed.canvas_px or "
                "train.global_batch",
            )
    free = min(config.feed.max_memory_bytes - ready_bytes, in_store) // ranks
    most_units = (free - parts_bytes // ranks) // unit_bytes
    # Decoding gets what is left, but half of the room at least.
    units = max(streams + 1, min(2 * streams, most_units, free // 2 // unit_bytes))
    free_rows = (free - units * unit_bytes) // image_bytes
    part_rows = max(1, min(_PART_BYTES // image_bytes, free_rows // parts))
    return StreamBudget(
        units=units,
        part_rows=part_rows,
        rows=_PARTS * streams * part_rows,
        bytes=ranks * (units * unit_bytes + parts * part_rows * image_bytes) + ready_bytes,
    )


def _image_bytes(config: Config, manifest: Manifest) -> int:
    height_px, width_px = canvas_size(config, manifest)
    return 3 * height_px * width_px


def check_fits(config: Config, manifest: Manifest, *, object_store_bytes: int) -> None:
    """Refuse what would not fit the memory that the feed may use.

    Args:
        config: section `feed` is used.
        manifest: of the data set.
        object_store_bytes: Ray's shared memory on the node that has least of it.

    Raises:
        ConfigError: naming both sizes.
    """
    needed = decoded_bytes(config, manifest)
    allowed = config.feed.max_memory_bytes
    if not is_cached(config, manifest):
        stream_budget(config, manifest, object_store_bytes=object_store_bytes)
        return
    if needed > allowed:
        raise ConfigError(
            "E-CONFIG-020",
            f"the decoded pre-training set takes {_size(needed)} on each node, "
            f"feed.max_memory_bytes allows {_size(allowed)}",
            where="feed.cache",
            todo="set feed.cache=none to stream it, raise feed.max_memory_bytes if the nodes have "
            "the memory, or lower feed.canvas_px",
        )
    if needed > _STORE_FRAC * object_store_bytes:
        raise ConfigError(
            "E-CONFIG-021",
            f"the decoded pre-training set takes {_size(needed)} on each node, Ray's object store "
            f"has {_size(object_store_bytes)} there, of which {_STORE_FRAC:.0%} may be used",
            where="feed.cache",
            todo="set feed.cache=none to stream it, start Ray with a larger --object-store-memory, "
            "or lower feed.canvas_px",
        )


def described(config: Config, manifest: Manifest) -> str:
    """Describe the feed in a few words, for the console."""
    size = _size(decoded_bytes(config, manifest))
    if is_cached(config, manifest):
        return f"the decoded set, {size}, is kept in memory"
    num_shards, streams = len(manifest.sets["pretrain"].shards), stream_count(config, manifest)
    return (
        f"the decoded set, {size}, is streamed, {streams} of {counted(num_shards, 'shard')} "
        "at a time"
    )


def _size(num_bytes: int) -> str:
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:.1f} GiB"
    return f"{num_bytes / 2**20:.1f} MiB"
