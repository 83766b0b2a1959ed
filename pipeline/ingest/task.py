"""Ingest task: read the images of one chunk, check each, write them as one shard.

Runs in Ray worker processes, many at a time; it imports neither torch nor the sources.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.cluster.jobs import Result
from pipeline.dataset.formats import RejectedImage
from pipeline.dataset.image import ImageLimits, Remark, decode, resized_jpeg
from pipeline.dataset.manifest import RejectExample, SetName, ShardInfo
from pipeline.dataset.shards import read_shard, write_shard
from pipeline.ingest.sources.index import UNLABELLED, ImageIndex
from pipeline.ingest.sources.reading import read_images
from pipeline.ingest.sources.splits import Indices


@dataclass(frozen=True)
class Chunk:
    """Images of one shard-to-be: rows start..stop-1 of the order of a set, by the index."""

    set_name: SetName
    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Work:
    """Plan and limits that all tasks share.

    Attributes:
        data_uri: where shards go.
        index: the images; its sets are in the order of the shards.
        limits: what an image may be.
        resize_short_px: see `ingest.resize_short_px`.
        reduced_bytes: mean size of an image that was reduced to it, by a sample; None if none is.
    """

    data_uri: str
    index: ImageIndex
    limits: ImageLimits
    resize_short_px: int | None = None
    reduced_bytes: int | None = None


@dataclass(frozen=True)
class Outcome:
    """Outcome of the n images of one chunk; `shard` is None when every one was rejected.

    Attributes:
        kept: positions within the chunk of the rows of the shard, in their order.
        hashes: first 16 bytes of the SHA-256 of each stored image, (len(kept), 2) uint64.
        rejects: the others.
        remarks: how many images have each of the remarks of `dataset.image`.
    """

    shard: ShardInfo | None
    kept: Indices
    hashes: np.ndarray[Any, np.dtype[np.uint64]]
    rejects: tuple[RejectExample, ...] = ()
    remarks: Mapping[Remark, int] = field(default_factory=dict)


def run_chunk(item: dict[str, Any], work: Work) -> Result:
    """Write the chunk that the item describes by `write_chunk`; a job."""
    outcome = write_chunk(Chunk(**item), work)
    shard = None if outcome.shard is None else asdict(outcome.shard)
    rejects = [asdict(reject) for reject in outcome.rejects]
    values = {"shard": shard, "rejects": rejects, "remarks": dict(outcome.remarks)}
    columns = {"kept": outcome.kept, "high": outcome.hashes[:, 0], "low": outcome.hashes[:, 1]}
    return Result(values, pa.table(columns))


def parse_outcome(result: Result) -> Outcome:
    """Return the outcome that `run_chunk` packed."""
    assert result.table is not None
    shard, table = result.values["shard"], result.table
    return Outcome(
        shard=None if shard is None else ShardInfo(**shard),
        kept=table["kept"].to_numpy(),
        hashes=np.stack([table["high"].to_numpy(), table["low"].to_numpy()], axis=1),
        rejects=tuple(RejectExample(**reject) for reject in result.values["rejects"]),
        remarks=result.values["remarks"],
    )


def write_chunk(chunk: Chunk, work: Work) -> Outcome:
    """Write the shard of one chunk; images that cannot be used are left out and reported.

    Raises:
        StorageError: an image cannot be read, or the shard cannot be written.
        DataError: a table or an archive of the source is broken.
    """
    rows = work.index.sets[chunk.set_name][chunk.start : chunk.stop]
    ids, images, rejects = work.index.ids_of(rows), {}, {}
    remarks = Counter[Remark]()
    for position, content in read_images(work.index, rows, max_bytes=work.limits.max_bytes):
        try:
            images[position], found = _checked(content, work)
            remarks.update(found)
        except RejectedImage as reject:
            rejects[position] = RejectExample(ids[position], reject.reason, reject.detail)
    kept = sorted(images)
    shard = None
    if kept:
        labels = work.index.labels_N[rows].tolist()
        shard = write_shard(
            work.data_uri,
            f"shards/{chunk.set_name}-{chunk.number:05d}.parquet",
            ids=[ids[position] for position in kept],
            images=[images[position] for position in kept],
            labels=[None if labels[p] == UNLABELLED else labels[p] for p in kept],
        )
    return Outcome(
        shard=shard,
        kept=np.array(kept, np.int64),
        hashes=_hashes([images[position] for position in kept]),
        rejects=tuple(rejects[position] for position in sorted(rejects)),
        remarks=remarks,
    )


def _checked(content: bytes | RejectedImage, work: Work) -> tuple[bytes, tuple[Remark, ...]]:
    """Return what is stored of an image, once one full decode has shown it fit, and remarks."""
    if isinstance(content, RejectedImage):
        raise content
    if work.index.pixels is not None:
        return content, ()
    rgb, remarks = decode(content, work.limits)
    if work.resize_short_px is not None:
        content = resized_jpeg(rgb, work.resize_short_px) or content
    return content, remarks


def _hashes(images: list[bytes]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    digests = b"".join(hashlib.sha256(image).digest()[:16] for image in images)
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


def drop_rows(item: dict[str, Any], data_uri: str) -> Result:
    """Replace a shard by one without some rows, a job; None when no row is left.

    The new one has another name and the old one goes last: a job that is run again, since its node
    died, finds one of the two whole.
    """
    info, dropped = ShardInfo(**item["shard"]), set(item["rows"])
    name = info.name.removesuffix(".parquet") + "-unique.parquet"
    old, new = storage.join(data_uri, info.name), storage.join(data_uri, name)
    if not storage.exists(old) and storage.exists(new):
        data = storage.read_bytes(new)
        digest = hashlib.sha256(data).hexdigest()
        return Result(asdict(ShardInfo(name, info.rows - len(dropped), len(data), digest)))
    rows = read_shard(data_uri, info)
    kept = rows.take([row for row in range(len(rows)) if row not in dropped])
    if not len(kept):
        return Result(None)
    labels = [None if label == UNLABELLED else int(label) for label in kept.labels]
    shard = write_shard(data_uri, name, ids=kept.ids, images=kept.images, labels=labels)
    storage.delete_tree(old)
    return Result(asdict(shard))
