"""Plan of an ingest, made before any image is read: the data set's name, its shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from pipeline import storage
from pipeline.cluster.jobs import Tasks, ThreadTasks
from pipeline.config import Config
from pipeline.dataset.image import ImageLimits
from pipeline.dataset.manifest import (
    MANIFEST_NAME,
    SET_NAMES,
    ImageInfo,
    Manifest,
    Rejects,
    SetInfo,
    ShardInfo,
    read_manifest,
)
from pipeline.ingest.lost_images import listed, refuse_losses, refuse_rejects, surely_too_many
from pipeline.ingest.origin import check_origin
from pipeline.ingest.sample import Sample, mean_reduced_bytes, rarest_losses, sample_images
from pipeline.ingest.sources import splits
from pipeline.ingest.sources.index import ImageIndex
from pipeline.ingest.sources.open import index_source
from pipeline.ingest.task import Chunk, Work

# Bytes of a row besides image and id: hash in hex, label, lengths.
_ROW_OVERHEAD_BYTES = 80
# Place and origin of the data set do not change its content.
_NOT_CONTENT = {"root", "download"}


@dataclass(frozen=True)
class PlannedSet:
    """Planned content of one set, before any image is rejected."""

    rows: int
    class_counts: list[int] | None
    num_shards: int
    num_bytes: int


@dataclass(frozen=True)
class DryRun:
    """Plan of an ingest, with a measured sample.

    Args:
        data_uri: where.
        exists: a complete data set of this configuration is there.
        class_names: None when there are no labels.
        sets: by name.
        num_images: of all sets, each image once.
        sample: what reading some images showed; None for images that are in memory as pixels.
        manifest: as it would be written, but for hashes, rejects and exact sizes.
        notes: what a person should know of how the source was read, one line each.
    """

    data_uri: str
    exists: bool
    class_names: tuple[str, ...] | None
    sets: dict[str, PlannedSet]
    num_images: int
    sample: Sample | None
    manifest: Manifest
    notes: tuple[str, ...] = ()


def data_set_name(config: Config) -> str:
    """Name the data set `<source>-<hash8>`: the hash covers all that decides its content."""
    text = json.dumps(content_sections(config), sort_keys=True, separators=(",", ":"))
    return f"{config.data.source}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def data_set_uri(config: Config) -> str:
    """Return the URI of this configuration's data set, whether it exists or not."""
    return storage.join(storage.absolute(config.data.root), data_set_name(config))


def content_sections(config: Config) -> dict[str, dict[str, JsonValue]]:
    """Return the part of the configuration that decides what is in the data set.

    Places are absolute: `images` and `./images` are one, `images` of two projects are two.
    """
    data = config.data.model_dump(mode="json")
    kept = {key: value for key, value in data.items() if key not in _NOT_CONTENT}
    for key in ("path", "image_root"):
        if kept[key] is not None:
            kept[key] = storage.absolute(kept[key])
    kept["sets"] = {
        name: [*map(storage.absolute, value)]
        if isinstance(value, list)
        else value and storage.absolute(value)
        for name, value in kept["sets"].items()
    }
    return {"data": kept, "ingest": config.ingest.model_dump(mode="json")}


def work_of(config: Config, index: ImageIndex) -> Work:
    """Return what the tasks share; see `planned_work`."""
    return planned_work(config, index)[0]


def planned_work(config: Config, index: ImageIndex) -> tuple[Work, dict[str, splits.Indices]]:
    """Return what the tasks share, and the rows of every set in its order.

    The sets of the index that is shared are what is stored for each: an image of several sets goes
    to the first of them.
    """
    root = None if index.root is None else storage.absolute(index.root)
    work = Work(
        data_uri=data_set_uri(config),
        index=replace(index, root=root, listing=None),
        limits=ImageLimits(),
        resize_short_px=config.ingest.resize_short_px,
    )
    if work.resize_short_px is not None and index.pixels is None:
        work = replace(work, reduced_bytes=mean_reduced_bytes(work, config.data.split_seed))
    sets = dict(index.sets)
    if index.containers is not None:
        sets = _mixed_within_shards(config, work)
    return replace(work, index=replace(work.index, sets=_stored_once(sets, len(index.ids)))), sets


def _stored_once(sets: Mapping[str, splits.Indices], num_images: int) -> dict[str, splits.Indices]:
    """Return the rows that each set stores, in its order: those that no set before it has."""
    is_stored_N, stored = np.zeros(num_images, bool), dict[str, splits.Indices]()
    for name in (name for name in SET_NAMES if name in sets):
        stored[name] = sets[name][~is_stored_N[sets[name]]]
        is_stored_N[sets[name]] = True
    return stored


def chunks_of(work: Work, shard_bytes: int) -> Iterator[Chunk]:
    """Yield the planned shards of all sets."""
    for set_name in (name for name in SET_NAMES if name in work.index.sets):
        rows = work.index.sets[set_name]
        for number, part in enumerate(cut(row_sizes(work, rows), shard_bytes)):
            yield Chunk(set_name, number, part.start, part.stop)


def row_sizes(work: Work, rows: splits.Indices) -> NDArray[np.int64]:
    """Estimate the bytes that each of some rows takes in a shard."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids, image_bytes = work.index.ids, work.index.num_bytes_N[rows]
    if work.reduced_bytes is not None:
        image_bytes = np.minimum(image_bytes, work.reduced_bytes)
    id_bytes = pc.binary_length(ids.take(pa.array(rows))).to_numpy(zero_copy_only=False)
    return np.asarray(image_bytes + id_bytes + _ROW_OVERHEAD_BYTES, np.int64)


def cut(sizes: NDArray[np.int64], shard_bytes: int) -> list[range]:
    """Cut rows into shards of about equal size, at most shard_bytes plus one row."""
    if not len(sizes):
        return []
    before = np.cumsum(sizes) - sizes
    num_shards = -(-int(sizes.sum()) // shard_bytes)
    # Whole numbers of more than 64 bits would be needed to stay exact beyond some terabytes.
    shard_of_row = (before * (num_shards / int(sizes.sum()))).astype(np.int64)
    starts = np.flatnonzero(np.diff(shard_of_row, prepend=-1)).tolist()
    return [range(*pair) for pair in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def dry_run(config: Config) -> DryRun:
    """Count, estimate and measure a sample; write nothing, start no Ray.

    Raises:
        PipelineError: what ingest would fail with, as far as it can be known.
    """
    tasks, uri = ThreadTasks(), data_set_uri(config)
    if storage.exists(storage.join(uri, MANIFEST_NAME)):
        return _existing(config, uri, tasks)
    index = index_source(config.data, tasks)
    work, sets = planned_work(config, index)
    sample = None if index.pixels is not None else sample_images(work, config.data.split_seed)
    _refuse_sample(config, index, sample)
    losses = rarest_losses(work)
    if (error := refuse_losses(losses, config)) is not None:
        raise error
    lost = (f"classes that lost most of their images: {listed(losses)}",) if losses else ()
    planned, infos = {}, {}
    for name in (name for name in SET_NAMES if name in sets):
        rows = work.index.sets[name]
        sizes, counts = row_sizes(work, rows), index.class_counts(name)
        num_bytes = int(sizes.sum())
        if sample is not None and config.ingest.resize_short_px is not None:
            num_bytes = round(len(rows) * (sample.mean_stored_bytes + _ROW_OVERHEAD_BYTES))
        share = num_bytes / max(1, int(sizes.sum()))
        shards = tuple(
            ShardInfo("", len(part), round(share * int(sizes[part.start : part.stop].sum())), "")
            for part in cut(sizes, config.ingest.shard_bytes)
        )
        infos[name] = SetInfo(len(sets[name]), None if counts is None else tuple(counts), shards)
        planned[str(name)] = PlannedSet(
            rows=len(sets[name]), class_counts=counts, num_shards=len(shards), num_bytes=num_bytes
        )
    return DryRun(
        data_uri=work.data_uri,
        exists=False,
        class_names=index.class_names,
        sets=planned,
        num_images=sum(len(rows) for rows in work.index.sets.values()),
        sample=sample,
        manifest=Manifest(
            name=data_set_name(config),
            source=dict(index.source),
            image=image_info(index),
            class_names=index.class_names,
            sets=infos,
            fewshot=index.fewshot,
            rejects=Rejects(total=0, by_reason={}, examples=()),
            config=content_sections(config),
            hash="",
            left_out=dict(index.left_out),
        ),
        notes=(*index.notes, *lost),
    )


def _existing(config: Config, uri: str, tasks: Tasks) -> DryRun:
    """Return the data set that is there, once its source is seen to be unchanged."""
    manifest = read_manifest(uri)
    notes = check_origin(manifest.origin, config.data, tasks, data_uri=uri)
    return made_before(uri, manifest, tuple(notes))


def made_before(uri: str, manifest: Manifest, notes: tuple[str, ...] = ()) -> DryRun:
    """Return a data set that is there as a plan shows it."""
    planned = {
        str(name): PlannedSet(
            rows=info.rows,
            class_counts=None if info.class_counts is None else list(info.class_counts),
            num_shards=len(info.shards),
            num_bytes=sum(shard.bytes for shard in info.shards),
        )
        for name, info in manifest.sets.items()
    }
    return DryRun(
        data_uri=uri,
        exists=True,
        class_names=manifest.class_names,
        sets=planned,
        num_images=sum(shard.rows for shard in manifest.shards()),
        sample=None,
        manifest=manifest,
        notes=notes,
    )


def _refuse_sample(config: Config, index: ImageIndex, sample: Sample | None) -> None:
    """Refuse what ingest would refuse for its rejects, as far as a sample shows it."""
    rejects = [*index.rejects, *(sample.rejects if sample is not None else ())]
    num_read = len(index.rejects) + (sample.num_images if sample is not None else 0)
    limit_frac = config.ingest.max_reject_frac
    if surely_too_many(len(rejects), num_read, index.num_used(), limit_frac):
        error = refuse_rejects(sorted(rejects, key=lambda r: r.id), num_read, config)
        if error is not None:
            raise error


def image_info(index: ImageIndex) -> ImageInfo:
    """Return how the images of a source are stored."""
    if index.pixels is None:
        return ImageInfo("original", None, None)
    return ImageInfo("raw", index.pixels.shape[1], index.pixels.shape[2])


def _mixed_within_shards(config: Config, work: Work) -> dict[str, splits.Indices]:
    """Return rows of a container in its order; within every shard they are permuted."""
    sets = {}
    for name, rows in work.index.sets.items():
        parts = [
            splits.shard_order(
                rows[part.start : part.stop],
                set_name=name,
                number=number,
                seed=config.data.split_seed,
            )
            for number, part in enumerate(cut(row_sizes(work, rows), config.ingest.shard_bytes))
        ]
        sets[name] = np.concatenate(parts)
    return sets
