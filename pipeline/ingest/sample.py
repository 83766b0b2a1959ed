"""A seeded sample of a source, read and decoded for real: what a dry run can say before the work.

Shapes: n images of the sample.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.formats import RejectedImage
from pipeline.dataset.image import Remark, decode, decode_rgb, resized_jpeg
from pipeline.dataset.manifest import RejectExample
from pipeline.ingest.lost_images import ClassLoss, class_losses
from pipeline.ingest.sources.reading import read_images
from pipeline.ingest.streams import Stream, generator
from pipeline.ingest.task import Work

_NUM_SAMPLED, _BATCH = 256, 16
_NUM_REDUCED = 64
_NUM_RAREST = 64
_MAX_S = 20.0
SIDES_PX = (32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class Sample:
    """Findings on n images.

    Attributes:
        num_images: n, rejects included.
        side_counts: accepted images by shorter side: below 32 px, 32..63, ..., 2048 and more.
        rejects: of the sample.
        mean_stored_bytes: of accepted images, as they would be stored.
        remarks: how many accepted images have each of the remarks of `dataset.image`.
        s_per_image: to read, check and encode one image in one process.
    """

    num_images: int
    side_counts: tuple[int, ...]
    rejects: tuple[RejectExample, ...]
    mean_stored_bytes: float
    remarks: Mapping[Remark, int]
    s_per_image: float


def sample_images(work: Work, seed: int) -> Sample:
    """Read up to 256 seeded images of the pre-training set, or as many as 20 s allow.

    Raises:
        StorageError: an image cannot be read.
        DataError: a table or an archive is broken.
    """
    index = work.index
    rows = index.sets["pretrain"]
    chosen = generator(seed, Stream.DRY_RUN).permutation(rows)[:_NUM_SAMPLED]
    began_s, num_done, remarks = time.monotonic(), 0, Counter[Remark]()
    sides_px, sizes, rejects = [], [], []
    while num_done < len(chosen) and time.monotonic() - began_s < _MAX_S:
        part = chosen[num_done : num_done + _BATCH]
        ids = index.ids_of(part)
        for position, content in read_images(index, part, max_bytes=work.limits.max_bytes):
            try:
                if isinstance(content, RejectedImage):
                    raise content
                rgb, found = decode(content, work.limits)
            except RejectedImage as reject:
                rejects.append(RejectExample(ids[position], reject.reason, reject.detail))
                continue
            remarks.update(found)
            stored = content
            if work.resize_short_px is not None:
                stored = resized_jpeg(rgb, work.resize_short_px) or content
            sides_px.append(min(rgb.shape[:2]))
            sizes.append(len(stored))
        num_done += len(part)
    bins = np.searchsorted(SIDES_PX, sides_px, side="right")
    counts = np.bincount(np.asarray(bins, np.int64), minlength=len(SIDES_PX) + 1)
    return Sample(
        num_images=num_done,
        side_counts=tuple(int(count) for count in counts),
        rejects=tuple(sorted(rejects, key=lambda reject: reject.id)),
        mean_stored_bytes=float(np.mean(sizes)) if sizes else 0.0,
        remarks=remarks,
        s_per_image=(time.monotonic() - began_s) / max(1, num_done),
    )


def rarest_losses(work: Work) -> list[ClassLoss]:
    """Read the smallest classes whole, up to 64 images, and return which lost most of theirs.

    A sample of a long tail hardly meets them. It takes 20 s at most.

    Raises:
        StorageError: an image cannot be read.
        DataError: a table or an archive is broken.
    """
    index = work.index
    if index.class_names is None or index.pixels is not None:
        return []
    used_N, kept_N = index.used(), np.ones(len(index.ids), bool)
    counts = np.bincount(index.labels_N[used_N], minlength=len(index.class_names))
    smallest = np.argsort(counts, kind="stable")
    chosen = smallest[np.cumsum(counts[smallest]) <= _NUM_RAREST]
    rows = np.flatnonzero(used_N & np.isin(index.labels_N, chosen))
    began_s = time.monotonic()
    for start in range(0, len(rows), _BATCH):
        if time.monotonic() - began_s > _MAX_S:
            break  # what is not read counts as kept
        part = rows[start : start + _BATCH]
        for position, content in read_images(index, part, max_bytes=work.limits.max_bytes):
            try:
                if isinstance(content, RejectedImage):
                    raise content
                decode_rgb(content, work.limits)
            except RejectedImage:
                kept_N[part[position]] = False
    return class_losses(index, kept_N)


def mean_reduced_bytes(work: Work, seed: int) -> int | None:
    """Estimate the mean size of reduced images from 64 pre-training images; None if none.

    It decides where shards are cut, so it depends on the images and the seed alone: no time limit.

    Raises:
        StorageError: an image cannot be read.
        DataError: a table or an archive is broken.
    """
    assert work.resize_short_px is not None
    rows = work.index.sets["pretrain"]
    chosen = generator(seed, Stream.REDUCED_SIZE).permutation(rows)[:_NUM_REDUCED]
    sizes = []
    for _, content in read_images(work.index, chosen, max_bytes=work.limits.max_bytes):
        if isinstance(content, RejectedImage):
            continue
        with suppress(RejectedImage):
            reduced = resized_jpeg(decode_rgb(content, work.limits), work.resize_short_px)
            if reduced is not None:
                sizes.append(len(reduced))
    return round(sum(sizes) / len(sizes)) if sizes else None
