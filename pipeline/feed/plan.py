"""Plan of the feed, made before a worker starts: steps of an epoch, cached or streamed."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import Config
from pipeline.dataset.manifest import Manifest
from pipeline.errors import ConfigError, DataError
from sdclr import EpochPlan
from sdclr.encoder import CANVAS_PER_CROP

# A decode task makes about as much: long against the cost of a task, short against a step.
_PART_BYTES = 16 * 2**20
_FEWEST_PIECES, _MOST_PIECES = 2, 32
# Batches that each rank keeps ready for use, copied out of the object store.
BATCHES_READY = 2
# Ray begins to move objects to disk when its store is four fifths full.
_STORE_FRAC = 0.7


@dataclass(frozen=True)
class StreamBudget:
    """Division of the memory that a set is streamed within.

    Args:
        window_shards: shards that are read together and mixed.
        piece_steps: steps that are handed out together.
        part_rows: images that one task decodes, at most.
        pieces_ahead: pieces in flight, the one in use included.
        bytes: images in flight at most, encoded and decoded, on all nodes together: those of
            tasks, in Ray's object store, and the batches that are ready for use.
    """

    window_shards: int
    piece_steps: int
    part_rows: int
    pieces_ahead: int
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
        )
    except ValueError as error:
        most = num_images - num_images % config.train.num_workers
        raise DataError(
            "E-DATA-040",
            f"too few images for a batch: {error}",
            where=f"data set {manifest.name}",
            todo=f"set train.global_batch={most} or less, or add images",
        ) from error
    # Each branch of SDCLR sees one view of the batch; SimCLR sees both at once.
    smallest = min(plan.batch_size(0), plan.batch_size(plan.num_steps - 1)) // plan.num_ranks
    t = config.train
    if smallest < 2 and not t.sync_batchnorm and t.num_workers > 1 and "sdclr" in t.methods:
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
    height_px, width_px = canvas_size(config, manifest)
    return manifest.sets["pretrain"].rows * 3 * height_px * width_px


def is_cached(config: Config, manifest: Manifest) -> bool:
    """Return whether the decoded set is kept in memory; else it is streamed every epoch.

    A function of the configuration and the data set alone, never of the machine: the order of the
    images, and with it every loss, depends on it.
    """
    if config.feed.cache == "auto":
        return decoded_bytes(config, manifest) <= config.feed.max_memory_bytes
    return config.feed.cache != "none"


def stream_budget(config: Config, manifest: Manifest, *, object_store_bytes: int) -> StreamBudget:
    """Return how the set is streamed; only `window_shards` affects the order of images.

    Encoded images of two windows are held (one in use, one being read), pieces of decoded ones,
    and the batches that the ranks have ready.

    Raises:
        ConfigError: feed.max_memory_bytes, or the object store, is too little for that.
    """
    plan, info = epoch_plan(config, manifest), manifest.sets["pretrain"]
    height_px, width_px = canvas_size(config, manifest)
    image_bytes = 3 * height_px * width_px
    largest = sorted((shard.bytes for shard in info.shards), reverse=True)
    windows_bytes = 2 * sum(largest[: config.feed.window_shards])
    # A piece in flight is encoded at first and decoded at last.
    step_bytes = plan.global_batch * (image_bytes + -(-sum(largest) // info.rows))
    # One more is being copied. A rank whose batches are not ready has left its pieces in the store.
    ready_bytes = (BATCHES_READY + 1) * plan.global_batch * image_bytes
    # Other ranks may still be in the piece that rank 0 has left.
    behind = int(plan.num_ranks > 1)
    fewest = _FEWEST_PIECES + behind
    least_stored = windows_bytes + fewest * step_bytes
    in_store = int(_STORE_FRAC * object_store_bytes)
    for key, least, allowed in (
        (
            "feed.max_memory_bytes",
            least_stored + ready_bytes,
            config.feed.max_memory_bytes,
        ),
        (
            f"{_STORE_FRAC:.0%} of Ray's object store (--object-store-memory)",
            least_stored,
            in_store,
        ),
    ):
        if least > allowed:
            raise ConfigError(
                "E-CONFIG-019",
                f"streaming takes at least {_size(least)}: two windows of "
                f"{config.feed.window_shards} shards, {_size(windows_bytes)}, {fewest} batches in "
                f"Ray's object store, {_size(step_bytes)} each, and "
                f"{_size(least - least_stored)} of batches ready for use; {key} allows "
                f"{_size(allowed)}",
                where=key,
                todo=f"set it to {least} or more, or lower feed.window_shards, feed.canvas_px or "
                "train.global_batch",
            )
    share = plan.global_batch // plan.num_ranks
    free = min(config.feed.max_memory_bytes - ready_bytes, in_store) - windows_bytes
    part_rows = max(1, min(_PART_BYTES, free // (8 * plan.num_ranks)) // image_bytes)
    piece_steps = min(max(1, part_rows // share), free // (fewest * step_bytes), plan.num_steps)
    pieces = min(free // (piece_steps * step_bytes) - behind, _MOST_PIECES)
    return StreamBudget(
        window_shards=config.feed.window_shards,
        piece_steps=piece_steps,
        part_rows=min(part_rows, piece_steps * share),
        pieces_ahead=pieces,
        bytes=windows_bytes + (pieces + behind) * piece_steps * step_bytes + ready_bytes,
    )


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
    num_shards = len(manifest.sets["pretrain"].shards)
    window = min(config.feed.window_shards, num_shards)
    return f"the decoded set, {size}, is streamed, {window} of {num_shards} shards mixed at a time"


def _size(num_bytes: int) -> str:
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:.1f} GiB"
    return f"{num_bytes / 2**20:.1f} MiB"
