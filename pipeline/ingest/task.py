"""What one ingest task does: read the images of one chunk, check each, write them as one shard.

Runs in Ray worker processes, many at a time; it imports neither torch nor the sources.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import ray

from pipeline import storage
from pipeline.dataset.image import ImageLimits, RejectedImage, decode_rgb
from pipeline.dataset.manifest import RejectExample, ShardInfo
from pipeline.dataset.shards import write_shard
from pipeline.errors import PipelineError


@dataclass(frozen=True)
class Chunk:
    """Images of one shard-to-be: ids, labels and locators as in pipeline.ingest.sources.Entry."""

    set_name: str
    number: int
    ids: Sequence[str]
    labels: Sequence[int | None]
    locators: Sequence[int | str]
    sizes: Sequence[int]


@dataclass(frozen=True)
class Place:
    """Where images come from and where shards go; `root` is None when pixels are in memory."""

    data_uri: str
    root: str | None
    limits: ImageLimits


@dataclass(frozen=True)
class Outcome:
    """What became of one chunk; `shard` is None when every image was rejected."""

    set_name: str
    number: int
    num_images: int
    shard: ShardInfo | None = None
    labels: tuple[int, ...] = ()
    rejects: tuple[RejectExample, ...] = ()
    error: tuple[str, str, str, str] | None = field(default=None)


def run_chunk(row: dict[str, Any], *, place: Place, pixels: Any) -> dict[str, Any]:
    """Ray Data's view of `write_chunk`: one JSON text in, one out.

    A PipelineError travels as part of the outcome, so that the driver can raise it as it is; any
    other exception is a bug and fails the task.

    Args:
        row: {"chunk": JSON of a Chunk}.
        place: see Place.
        pixels: an object reference to the (N, H, W, 3) uint8 array, or the array, or None.
    """
    chunk = Chunk(**json.loads(row["chunk"]))
    if isinstance(pixels, ray.ObjectRef):
        pixels = ray.get(pixels)
    try:
        outcome = write_chunk(chunk, place=place, pixels=pixels)
    except PipelineError as error:
        told = (type(error).__name__, error.what, error.where, error.todo)
        outcome = Outcome(chunk.set_name, chunk.number, len(chunk.ids), error=told)
    return {"outcome": json.dumps(asdict(outcome))}


def parse_outcome(text: str) -> Outcome:
    """The outcome that `run_chunk` put into words."""
    content = json.loads(text)
    shard = content["shard"]
    return Outcome(
        set_name=content["set_name"],
        number=content["number"],
        num_images=content["num_images"],
        shard=None if shard is None else ShardInfo(**shard),
        labels=tuple(content["labels"]),
        rejects=tuple(RejectExample(**reject) for reject in content["rejects"]),
        error=None if content["error"] is None else tuple(content["error"]),
    )


def write_chunk(chunk: Chunk, *, place: Place, pixels: np.ndarray[Any, Any] | None) -> Outcome:
    """Write the shard of one chunk; images that cannot be used are left out and reported.

    Raises:
        StorageError: an image cannot be read, or the shard cannot be written.
    """
    ids, images, labels, rejects = [], [], [], []
    rows = zip(chunk.ids, chunk.labels, chunk.locators, chunk.sizes, strict=True)
    for name, label, locator, num_bytes in rows:
        try:
            if pixels is not None:
                image = pixels[locator].tobytes()
            else:
                image = _read_checked(place, str(locator), num_bytes)
        except RejectedImage as reject:
            rejects.append(RejectExample(name, reject.reason, reject.detail))
            continue
        ids.append(name)
        images.append(image)
        labels.append(label)
    shard = None
    if ids:
        file = f"shards/{chunk.set_name}-{chunk.number:05d}.parquet"
        shard = write_shard(place.data_uri, file, ids=ids, images=images, labels=labels)
    return Outcome(
        set_name=chunk.set_name,
        number=chunk.number,
        num_images=len(chunk.ids),
        shard=shard,
        labels=tuple(label for label in labels if label is not None),
        rejects=tuple(rejects),
    )


def _read_checked(place: Place, name: str, num_bytes: int) -> bytes:
    """The file's bytes, after one full decode has shown that they are an image within limits."""
    assert place.root is not None
    if num_bytes > place.limits.max_bytes:  # known from the listing: do not even fetch it
        raise RejectedImage("too_many_bytes", f"{num_bytes} bytes, limit {place.limits.max_bytes}")
    data = storage.read_bytes(storage.join(place.root, name))
    decode_rgb(data, place.limits)
    return data
