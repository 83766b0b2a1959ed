"""Image sources: where the images are, which set each belongs to, and in what order.

A source is turned into an ImageIndex once, in the driver; ingest then reads the images in
parallel. Sets: `pretrain` (the long-tailed images that are learned from, labels unused), `probe`
(labelled pool for the linear probe), `val`, `test`. `pretrain` may be a part of `probe`; the
others share no image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.config.data import Data
from pipeline.errors import ConfigError


class Entry(NamedTuple):
    """One image of a set.

    Attributes:
        id: unique within the data set, the same in every set that has the image.
        label: class index, None when unlabelled.
        locator: row of ImageIndex.pixels, or name below ImageIndex.root.
        num_bytes: size as stored, for cutting shards.
    """

    id: str
    label: int | None
    locator: int | str
    num_bytes: int


@dataclass(frozen=True)
class ImageIndex:
    """All images of a source.

    Attributes:
        source: facts for the manifest, "kind" among them.
        sets: entries by set, in the order in which shards will hold them.
        class_names: by class index, None when unlabelled.
        pixels: (N, H, W, 3) uint8 of sources that fit in memory, else None.
        root: URI below which the files lie, when `pixels` is None.
        fewshot: published few-shot lists of ids within `probe`, one list a draw.
    """

    source: Mapping[str, Any]
    sets: Mapping[str, tuple[Entry, ...]]
    class_names: tuple[str, ...] | None
    pixels: npt.NDArray[np.uint8] | None = None
    root: str | None = None
    fewshot: tuple[tuple[str, ...], ...] = ()

    def class_counts(self, name: str) -> list[int] | None:
        """Images per class of one set, None when unlabelled."""
        if self.class_names is None:
            return None
        labels = [entry.label for entry in self.sets[name] if entry.label is not None]
        return [int(count) for count in np.bincount(labels, minlength=len(self.class_names))]


def index_source(data: Data) -> ImageIndex:
    """The index of the configured source; order and splits depend on the configuration only.

    Raises:
        DataError: images or index files are missing, broken or do not fit each other.
        ConfigError: a key does not apply to this source.
        StorageError: the storage does not answer or denies access.
    """
    # These import torch and scikit-learn.
    from pipeline.ingest import source_arrays, source_folder

    _check_keys(data)
    if data.source == "digits":
        return source_arrays.digits_index(data)
    if data.source == "folder":
        return source_folder.folder_index(data)
    return source_arrays.cifar_index(data)


def _check_keys(data: Data) -> None:
    if data.source not in ("cifar10", "cifar100"):
        for key in ("pretrain_index", "probe_index", "val_index", "fewshot_index"):
            if getattr(data, key):
                raise ConfigError(
                    f"index lists do not apply to the source {data.source}",
                    where=f"data.{key}",
                    todo="remove the key; index lists are for cifar10 and cifar100",
                )
