"""Image sources: where the images are, which set each belongs to, and in what order.

A source is turned into an ImageIndex; ingest then reads the images in parallel. Sets: `pretrain`
(the long-tailed images that are learned from, labels unused), `probe` (labelled pool for the
linear probe), `val`, `test`. `pretrain` may be a part of `probe`; the others share no image.

The index is columns, not objects: of millions of images the driver holds an id, a label, a size
and a place each: 46 bytes with names of 18 letters, 220 at the peak (`python -m benchmarks.index`,
a million names), and 25 more for hashes. The tasks read the same columns from shared memory.

Shapes: N images of the source, n of a set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import JsonValue

from pipeline.dataset.manifest import LeftOut, RejectExample
from pipeline.ingest.sources.listing import Listing
from pipeline.ingest.sources.splits import Indices

UNLABELLED = -1


@dataclass(frozen=True)
class Containers:
    """Files that hold many images each: tables and archives.

    Attributes:
        kind: how they are read.
        names: of the files, relative to ImageIndex.root.
        file_N: number of the file that holds the image.
        place_N: row of the table, or first byte in the archive.
        block_N: neighbours that are best read together have the same number.
        image_column: of tables.
    """

    kind: Literal["parquet", "tar"]
    names: tuple[str, ...]
    file_N: npt.NDArray[np.int32]
    place_N: npt.NDArray[np.int64]
    block_N: npt.NDArray[np.int32]
    image_column: str = ""


@dataclass(frozen=True)
class ImageIndex:
    """All images of a source; without `pixels` and `containers` every id is a file below `root`.

    Attributes:
        source: facts for the manifest, "kind" among them.
        ids: names of the N images, each once, the same in every set that has the image.
        num_bytes_N: sizes as stored, for cutting shards; of some sources an estimate.
        labels_N: class indices, -1 when unlabelled.
        sets: rows 0..N-1 of each set, in the order in which shards will hold them.
        class_names: by class index, None when unlabelled.
        pixels: (N, H, W, 3) uint8 of sources that fit in memory, else None.
        root: URI below which the files lie, when `pixels` is None.
        containers: where in these files the images are, if not a file each.
        may_be_missing: whether a file that is not there is a reject and no failure.
        fewshot: published few-shot lists of ids, one list a draw.
        left_out: files beside the images that are not taken, by ending or as what they are.
        rejects: images that cannot be used by their names alone.
        listing: of `data.path`, when it is a folder of files.
        notes: what a person should know of how the source was read, one line each.
    """

    source: Mapping[str, JsonValue]
    ids: pa.LargeStringArray
    num_bytes_N: npt.NDArray[np.int64]
    labels_N: npt.NDArray[np.int32]
    sets: Mapping[str, Indices]
    class_names: tuple[str, ...] | None
    pixels: npt.NDArray[np.uint8] | None = None
    root: str | None = None
    containers: Containers | None = None
    may_be_missing: bool = False
    fewshot: tuple[tuple[str, ...], ...] = ()
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)
    rejects: tuple[RejectExample, ...] = ()
    listing: Listing | None = None
    notes: tuple[str, ...] = ()

    def ids_of(self, rows: Indices) -> list[str]:
        """Return ids of some of the images, in the order given."""
        return list(self.ids.take(pa.array(rows)).to_pylist())

    def class_counts(self, name: str) -> list[int] | None:
        """Return images per class of one set, None when unlabelled."""
        if self.class_names is None:
            return None
        labels = self.labels_N[self.sets[name]]
        return [int(count) for count in np.bincount(labels, minlength=len(self.class_names))]

    def used(self) -> npt.NDArray[np.bool_]:
        """Return which images are in at least one set, (N,)."""
        used_N = np.zeros(len(self.ids), bool)
        for rows in self.sets.values():
            used_N[rows] = True
        return used_N

    def num_used(self) -> int:
        """Return the number of images in at least one set or rejected by name."""
        return int(self.used().sum()) + len(self.rejects)
