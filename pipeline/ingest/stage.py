"""Ingest: any image source becomes shards and a manifest on storage, in parallel, repeatably.

Row order is a seeded permutation within each set, shards are cut by size before any image is read,
and one Ray Data task writes one shard. So the bytes of every shard and the manifest's hash are a
function of the images and the configuration, whatever the number of processes. The manifest comes
last: without it there is no data set, and what an interrupted run left is cleared.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline import errors, storage
from pipeline.cluster import on_nodes_with
from pipeline.config import Config
from pipeline.dataset.image import ImageLimits
from pipeline.dataset.manifest import (
    MANIFEST_NAME,
    SET_NAMES,
    ImageInfo,
    Manifest,
    Rejects,
    SetInfo,
    SetName,
    read_manifest,
    sealed,
    verify_shards,
    write_manifest,
)
from pipeline.errors import ClusterError, DataError
from pipeline.ingest.sources import Entry, ImageIndex, index_source
from pipeline.ingest.task import Chunk, Outcome, Place, parse_outcome, run_chunk
from pipeline.monitor import Monitor

Progress = Callable[[int, int], None]

_NUM_EXAMPLES = 100
# Bytes of a row besides image and id: hash in hex, label, lengths.
_ROW_OVERHEAD_BYTES = 80
# Where the data set lies and how its source got there do not change what is in it.
_NOT_CONTENT = {"root", "download"}


@dataclass(frozen=True)
class PlannedSet:
    """What ingest would write for one set, before any image is rejected."""

    rows: int
    class_counts: list[int] | None
    num_shards: int
    num_bytes: int


@dataclass(frozen=True)
class DryRun:
    """What ingest would do; `exists` = a complete data set of this configuration is there."""

    data_uri: str
    exists: bool
    class_names: tuple[str, ...] | None
    sets: dict[str, PlannedSet]


def data_set_name(config: Config) -> str:
    """`<source>-<hash8>`: the hash covers all of `data` and `ingest` that decides the content."""
    text = json.dumps(_content_sections(config), sort_keys=True, separators=(",", ":"))
    return f"{config.data.source}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def data_set_uri(config: Config) -> str:
    """Where the data set of this configuration lies, or will lie."""
    return storage.join(storage.absolute(config.data.root), data_set_name(config))


def dry_run(config: Config) -> DryRun:
    """Counts, class histogram and estimated size of every set; reads no photo, writes nothing."""
    index = index_source(config.data)
    planned = {}
    for name, entries in index.sets.items():
        sizes = _row_sizes(entries)
        planned[name] = PlannedSet(
            rows=len(entries),
            class_counts=index.class_counts(name),
            num_shards=len(_cut(sizes, config.ingest.shard_bytes)),
            num_bytes=int(sizes.sum()),
        )
    uri = data_set_uri(config)
    there = storage.exists(storage.join(uri, MANIFEST_NAME))
    return DryRun(data_uri=uri, exists=there, class_names=index.class_names, sets=planned)


def ingest(config: Config, progress: Progress) -> tuple[str, Manifest]:
    """Make the data set of this configuration, or find it made: its URI and manifest.

    A complete data set is reused without looking at the source again: images that changed since
    need a new folder or the deletion of the data set.

    Args:
        config: sections `data` and `ingest` are used.
        progress: called with (images done, images in all) as shards are finished.

    Raises:
        DataError: the source is unfit, more images are rejected than `ingest.max_reject_frac`
            allows, or another or a broken data set is in the same place.
        StorageError: images cannot be read or shards cannot be written.
        ClusterError: Ray gave the tasks up.
    """
    uri = data_set_uri(config)
    if storage.exists(storage.join(uri, MANIFEST_NAME)):
        return uri, _reuse(config, uri)
    shards_uri = storage.join(uri, "shards")
    storage.delete_tree(shards_uri)
    index = index_source(config.data)
    limits = ImageLimits(
        max_bytes=config.ingest.max_image_bytes,
        max_pixels=config.ingest.max_image_pixels,
        min_side_px=config.ingest.min_side_px,
    )
    root = None if index.root is None else storage.absolute(index.root)
    place = Place(data_uri=uri, root=root, limits=limits)
    chunks = list(_chunks(index, config.ingest.shard_bytes))
    total, done, outcomes = sum(len(chunk.ids) for chunk in chunks), 0, []
    progress(0, total)
    for outcome in _run(chunks, place, index.pixels, config.placement.data_resource):
        if outcome.error is not None:
            kind, what, where, todo = outcome.error
            raise getattr(errors, kind)(what, where=where, todo=todo)
        outcomes.append(outcome)
        done += outcome.num_images
        progress(done, total)
    outcomes.sort(key=lambda outcome: (SET_NAMES.index(outcome.set_name), outcome.number))
    manifest = _manifest(config, index, outcomes)
    monitor = Monitor(data=manifest.name)
    for reason, number in manifest.rejects.by_reason.items():
        monitor.add("sdclr_rejects", number, reason=reason)
    problem = _unfit(config, index, manifest)
    if problem is not None:
        storage.delete_tree(shards_uri)
        raise problem
    write_manifest(uri, manifest)
    return uri, manifest


def _content_sections(config: Config) -> dict[str, Any]:
    data = config.data.model_dump(mode="json")
    kept = {key: value for key, value in data.items() if key not in _NOT_CONTENT}
    return {"data": kept, "ingest": config.ingest.model_dump(mode="json")}


def _reuse(config: Config, uri: str) -> Manifest:
    manifest = read_manifest(uri)
    if manifest.name != data_set_name(config) or manifest.config != _content_sections(config):
        raise DataError(
            "a different data set is in this place",
            where=uri,
            todo="set data.root to another folder, or delete this one",
        )
    verify_shards(uri, manifest)
    return manifest


def _row_sizes(entries: Sequence[Entry]) -> np.ndarray[Any, np.dtype[np.int64]]:
    sizes = [entry.num_bytes + len(entry.id) + _ROW_OVERHEAD_BYTES for entry in entries]
    return np.array(sizes, np.int64)


def _cut(sizes: np.ndarray[Any, np.dtype[np.int64]], shard_bytes: int) -> list[range]:
    """Row ranges of shards of about equal size, none larger than shard_bytes plus one row."""
    if not len(sizes):
        return []
    before = np.cumsum(sizes) - sizes
    num_shards = -(-int(sizes.sum()) // shard_bytes)
    shard_of_row = before * num_shards // int(sizes.sum())
    starts = np.flatnonzero(np.diff(shard_of_row, prepend=-1)).tolist()
    return [range(*pair) for pair in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def _chunks(index: ImageIndex, shard_bytes: int) -> Iterator[Chunk]:
    for set_name, entries in index.sets.items():
        for number, rows in enumerate(_cut(_row_sizes(entries), shard_bytes)):
            part = entries[rows.start : rows.stop]
            yield Chunk(
                set_name=set_name,
                number=number,
                ids=[entry.id for entry in part],
                labels=[entry.label for entry in part],
                locators=[entry.locator for entry in part],
                sizes=[entry.num_bytes for entry in part],
            )


def _run(
    chunks: Sequence[Chunk], place: Place, pixels: Any, data_resource: str | None = None
) -> Iterator[Outcome]:
    """Outcomes as their tasks finish, in any order."""
    import ray
    from ray.data import DataContext

    context = DataContext.get_current()
    shown = context.enable_progress_bars
    context.enable_progress_bars = False  # the caller shows progress in its own way
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        items = [{"chunk": json.dumps(asdict(chunk))} for chunk in chunks]
        source = ray.data.from_items(items, override_num_blocks=len(items))
        reference = None if pixels is None else ray.put(pixels)
        written = source.map(
            run_chunk,  # type: ignore[arg-type]  # Ray's stub leaves no room for fn_kwargs
            fn_kwargs={"place": place, "pixels": reference},
            resources=on_nodes_with(data_resource) or None,
        )
        written.set_name(place.data_uri.rpartition("/")[2])  # on the dashboard
        for row in written.iter_rows():
            yield parse_outcome(row["outcome"])
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"the ingest tasks failed: {_first_cause(error)}",
            where=place.data_uri,
            todo="look at the worker logs of Ray; if memory ran out, lower ingest.shard_bytes",
        ) from error
    finally:
        context.enable_progress_bars = shown


def _first_cause(error: Exception) -> str:
    """The first exception in Ray's text, which wraps that of a task several times."""
    text = str(error).strip()
    found = re.search(r"^(?!ray\.)\w+(Error|Exception)\b.*", text, re.MULTILINE)
    first = found.group() if found else text.partition("\n")[0]
    return f"{type(error).__name__}: {first[:300]}"


def _manifest(config: Config, index: ImageIndex, outcomes: Sequence[Outcome]) -> Manifest:
    sets: dict[SetName, SetInfo] = {}
    for name in SET_NAMES:
        if name not in index.sets:
            continue
        parts = [outcome for outcome in outcomes if outcome.set_name == name]
        shards = tuple(part.shard for part in parts if part.shard is not None)
        counts = None
        if index.class_names is not None:
            labels = [label for part in parts for label in part.labels]
            found = np.bincount(np.array(labels, np.int64), minlength=len(index.class_names))
            counts = tuple(int(count) for count in found)
        rows = sum(shard.rows for shard in shards)
        sets[name] = SetInfo(rows=rows, class_counts=counts, shards=shards)
    # An image of two sets is rejected in both; it counts once.
    rejects = {reject.id: reject for outcome in outcomes for reject in outcome.rejects}
    ordered = [rejects[name] for name in sorted(rejects)]
    reasons = Counter(reject.reason for reject in ordered)
    pixels = index.pixels
    return sealed(
        Manifest(
            name=data_set_name(config),
            source=dict(index.source),
            image=ImageInfo("original", None, None)
            if pixels is None
            else ImageInfo("raw", pixels.shape[1], pixels.shape[2]),
            class_names=index.class_names,
            sets=sets,
            fewshot=index.fewshot,
            rejects=Rejects(
                total=len(ordered),
                by_reason=dict(sorted(reasons.items())),
                examples=tuple(ordered[:_NUM_EXAMPLES]),
            ),
            config=_content_sections(config),
            hash="",
        )
    )


def _unfit(config: Config, index: ImageIndex, manifest: Manifest) -> DataError | None:
    num_images = len({entry.id for entries in index.sets.values() for entry in entries})
    total, limit_frac = manifest.rejects.total, config.ingest.max_reject_frac
    if total > limit_frac * num_images:
        reasons = ", ".join(f"{n} {reason}" for reason, n in manifest.rejects.by_reason.items())
        first = "; ".join(
            f"{reject.id} ({reject.reason}: {reject.detail})"
            for reject in manifest.rejects.examples[:3]
        )
        return DataError(
            f"{total} of {num_images} images are unfit ({reasons}), more than the allowed share "
            f"of {limit_frac:g}; first: {first}",
            where=config.data.path or config.data.source,
            todo="repair or remove these images, or raise ingest.max_reject_frac",
        )
    if not manifest.sets["pretrain"].rows:
        return DataError(
            "no image is left to learn from",
            where=config.data.path or config.data.source,
            todo="check data.path and the limits of the ingest section",
        )
    return None
