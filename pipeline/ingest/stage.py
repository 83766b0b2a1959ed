"""Ingest: any image source becomes shards and a manifest on storage, in parallel, repeatably.

Row order is a seeded permutation within each set, shards are cut by size before any image is read,
and one Ray Data task writes one shard. So the bytes of every shard and the manifest's hash are a
function of the images and the configuration, whatever the number of processes. The manifest comes
last: without it there is no data set, and what an interrupted run left is cleared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from pipeline import storage
from pipeline.cluster.jobs import RayTasks, Tasks, ThreadTasks
from pipeline.config import Config
from pipeline.dataset.image import Remark, remarked
from pipeline.dataset.manifest import (
    MANIFEST_NAME,
    SET_NAMES,
    Duplicates,
    Manifest,
    Place,
    RejectExample,
    Rejects,
    SetInfo,
    SetName,
    ShardInfo,
    read_manifest,
    sealed,
    verify_shards,
    write_manifest,
)
from pipeline.dataset.sets import write_order
from pipeline.errors import DataError, StorageError
from pipeline.ingest.claim import Claim
from pipeline.ingest.duplicates import find_duplicates, losers_by_shard
from pipeline.ingest.lost_images import (
    ClassLoss,
    class_losses,
    listed,
    refuse_losses,
    refuse_rejects,
)
from pipeline.ingest.origin import check_origin, origin_of
from pipeline.ingest.plan import (
    chunks_of,
    content_sections,
    data_set_name,
    data_set_uri,
    image_info,
    planned_work,
)
from pipeline.ingest.sources.index import ImageIndex
from pipeline.ingest.sources.open import index_source
from pipeline.ingest.sources.splits import Indices
from pipeline.ingest.task import Chunk, Work, drop_rows, parse_outcome, run_chunk
from pipeline.record.gauges import Monitor

Progress = Callable[[int, int], None]

_NUM_EXAMPLES = 100
_MANY = 100_000  # listing takes a while: say when it is over


@dataclass
class _Ingested:
    """Result of the tasks: shards with their index rows, by chunk, and the rejects."""

    shards: dict[Chunk, ShardInfo]
    rows: dict[Chunk, Indices]
    rejects: dict[str, RejectExample]
    duplicates: Duplicates
    remarks: Counter[Remark] = field(default_factory=Counter)
    losses: list[ClassLoss] = field(default_factory=list)


def ingest(
    config: Config,
    progress: Progress,
    note: Callable[[str], None] = lambda text: None,
    *,
    tasks: Tasks | None = None,
) -> tuple[str, Manifest]:
    """Make the data set of this configuration, or find it made: its URI and manifest.

    A complete data set is reused when its source has the same files as then; a source that changed
    needs another `data.root` or the deletion of the data set. Of two ingests at once, the one that
    started last makes the data set.

    Args:
        config: sections `data` and `ingest` are used.
        progress: called with (images done, images in all) as shards are finished.
        note: called with what else a person should know, one line each.
        tasks: what runs the work; None = Ray Data.

    Raises:
        DataError: the source is unfit, more images are rejected than `ingest.max_reject_frac`
            allows, a class of the tail lost most images, the source changed since, another or a
            broken data set is in the same place, or another ingest has begun there since.
        StorageError: images cannot be read or shards cannot be written.
        ClusterError: Ray gave the tasks up.
    """
    uri = data_set_uri(config)
    if storage.exists(storage.join(uri, MANIFEST_NAME)):
        manifest = _reuse(config, uri)
        listing = ThreadTasks() if tasks is None else tasks
        for text in check_origin(manifest.origin, config.data, listing, data_uri=uri):
            note(text)
        note("made before, of the same source: delete the folder to ingest it again")
        return uri, manifest
    if tasks is None:
        tasks = RayTasks(where=uri, mark=config.placement.data_nodes)
    with Claim(uri) as claim:
        if storage.exists(storage.join(uri, MANIFEST_NAME)):  # by another ingest, just now
            return uri, _reuse(config, uri)
        return uri, _made(config, uri, claim, tasks, progress, note)


def _made(
    config: Config,
    uri: str,
    claim: Claim,
    tasks: Tasks,
    progress: Progress,
    note: Callable[[str], None],
) -> Manifest:
    shards_uri = storage.join(uri, "shards")
    storage.delete_tree(shards_uri)
    index = index_source(config.data, tasks)
    for text in index.notes:
        note(text)
    origin = origin_of(config.data, tasks, index.listing)
    work, orders = planned_work(config, index)
    if len(index.ids) >= _MANY:
        note(f"{len(index.ids)} images are listed, reading them")
    try:
        made = _write_shards(config, work, orders, claim, tasks, progress)
    except StorageError:
        claim.check()  # another ingest may have cleared the folder under this one
        raise
    manifest = _manifest(config, work.index, made, orders, origin)
    monitor = Monitor(data=manifest.name)
    for reason, number in manifest.rejects.by_reason.items():
        monitor.add("sdclr_rejects", number, reason=reason)
    problem = _unfit(config, work.index, made)
    claim.check()
    if problem is not None:
        storage.delete_tree(shards_uri)
        raise problem
    # What an ended ingest still had under way may have come after the shards were cleared.
    verify_shards(uri, manifest)
    write_manifest(uri, manifest)
    _note_losses(made, note)
    found = made.duplicates
    if found.num_groups:
        what = "dropped" if found.dropped else "kept (ingest.drop_duplicates=true drops them)"
        across = f", {found.num_across_sets} groups across sets" if found.num_across_sets else ""
        note(f"{found.num_images} images have the bytes of another one{across}: {what}")
    if tasks.num_retries:
        note(f"{tasks.num_retries} calls to the storage were tried again")
    return manifest


def _note_losses(made: _Ingested, note: Callable[[str], None]) -> None:
    if made.losses:
        note(f"classes that lost most of their images: {listed(made.losses)}")
    for text in remarked(made.remarks):
        note(text)


def _reuse(config: Config, uri: str) -> Manifest:
    manifest = read_manifest(uri)
    if manifest.name != data_set_name(config) or manifest.config != content_sections(config):
        raise DataError(
            "E-DATA-078",
            "a different data set is in this place",
            where=uri,
            todo="set data.root to another folder, or delete this one",
        )
    verify_shards(uri, manifest)
    return manifest


def _write_shards(
    config: Config,
    work: Work,
    orders: Mapping[str, Indices],
    claim: Claim,
    tasks: Tasks,
    progress: Progress,
) -> _Ingested:
    index = work.index
    chunks = list(chunks_of(work, config.ingest.shard_bytes))
    total, done = sum(chunk.stop - chunk.start for chunk in chunks), 0
    hashes_N2 = np.zeros((len(index.ids), 2), np.uint64)
    kept_N = np.zeros(len(index.ids), bool)
    by_name = {reject.id: reject for reject in index.rejects}
    made = _Ingested({}, {}, by_name, Duplicates(0, 0, 0, False, ()))
    progress(0, total)
    for number, result in tasks.map(run_chunk, [asdict(chunk) for chunk in chunks], work):
        claim.check()
        chunk, outcome = chunks[number], parse_outcome(result)
        rows = index.sets[chunk.set_name][chunk.start : chunk.stop][outcome.kept]
        hashes_N2[rows], kept_N[rows] = outcome.hashes, True
        made.rejects |= {reject.id: reject for reject in outcome.rejects}
        made.remarks.update(outcome.remarks)
        if outcome.shard is not None:
            made.shards[chunk], made.rows[chunk] = outcome.shard, rows
        done += chunk.stop - chunk.start
        progress(done, total)
    made.losses = class_losses(index, kept_N)
    made.duplicates, losers = find_duplicates(replace(index, sets=orders), hashes_N2, kept_N)
    if config.ingest.drop_duplicates and len(losers):
        _drop(made, losers, work.data_uri, tasks)
    return made


def _drop(made: _Ingested, losers: Indices, data_uri: str, tasks: Tasks) -> None:
    """Write the shards that hold losers again without them."""
    dropped = losers_by_shard(made.rows, losers)
    concerned = list(dropped)
    items = [{"shard": asdict(made.shards[c]), "rows": dropped[c]} for c in concerned]
    for number, result in tasks.map(drop_rows, items, data_uri):
        chunk = concerned[number]
        made.rows[chunk] = np.delete(made.rows[chunk], dropped[chunk])
        if result.values is None:
            storage.delete_tree(storage.join(data_uri, made.shards.pop(chunk).name))
        else:
            made.shards[chunk] = ShardInfo(**result.values)
    made.duplicates = replace(made.duplicates, dropped=True)


def _sets(
    index: ImageIndex, made: _Ingested, orders: Mapping[str, Indices], data_uri: str
) -> dict[SetName, SetInfo]:
    """Return the manifest's entry of each set; write the order files of sets that share images."""
    chunks = sorted(made.shards, key=lambda c: (SET_NAMES.index(c.set_name), c.number))
    shard_N, row_N = (np.full(len(index.ids), -1, np.int64) for _ in range(2))
    for number, chunk in enumerate(chunks):
        shard_N[made.rows[chunk]] = number
        row_N[made.rows[chunk]] = np.arange(len(made.rows[chunk]))
    sets: dict[SetName, SetInfo] = {}
    for name in (name for name in SET_NAMES if name in orders):
        own = [chunk for chunk in chunks if chunk.set_name == name]
        rows = orders[name][shard_N[orders[name]] >= 0]
        counts = None
        if index.class_names is not None:
            found = np.bincount(index.labels_N[rows], minlength=len(index.class_names))
            counts = tuple(int(count) for count in found)
        shards = tuple(made.shards[chunk] for chunk in own)
        order = None
        if len(rows) > sum(shard.rows for shard in shards):
            order = write_order(data_uri, name, shard_N[rows], row_N[rows])
        sets[name] = SetInfo(rows=len(rows), class_counts=counts, shards=shards, order=order)
    return sets


def _manifest(
    config: Config,
    index: ImageIndex,
    made: _Ingested,
    orders: Mapping[str, Indices],
    origin: dict[str, Place],
) -> Manifest:
    ordered = [made.rejects[name] for name in sorted(made.rejects)]
    reasons = Counter(reject.reason for reject in ordered)
    return sealed(
        Manifest(
            name=data_set_name(config),
            source=dict(index.source),
            image=image_info(index),
            class_names=index.class_names,
            sets=_sets(index, made, orders, data_set_uri(config)),
            fewshot=index.fewshot,
            rejects=Rejects(
                total=len(ordered),
                by_reason=dict(sorted(reasons.items())),
                examples=tuple(ordered[:_NUM_EXAMPLES]),
            ),
            config=content_sections(config),
            hash="",
            left_out=dict(index.left_out),
            origin=origin,
            duplicates=made.duplicates,
        )
    )


def _unfit(config: Config, index: ImageIndex, made: _Ingested) -> DataError | None:
    rejects = [made.rejects[name] for name in sorted(made.rejects)]
    problem = refuse_rejects(rejects, index.num_used(), config) or refuse_losses(
        made.losses, config
    )
    if problem is None and not any(chunk.set_name == "pretrain" for chunk in made.shards):
        problem = DataError(
            "E-DATA-080",
            "no image is left to pre-train on",
            where=config.data.path or config.data.source,
            todo="check data.path and the limits of the ingest section",
        )
    return problem
