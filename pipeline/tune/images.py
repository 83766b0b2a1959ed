"""The decoded images of a sweep: once in the object store, from where every trial reads them.

Trials on a node map the same memory: nothing is copied or decoded again. The test set is never
among them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import feed
from pipeline.config import Config
from pipeline.dataset.manifest import Manifest
from pipeline.errors import ConfigError
from pipeline.feed.rows import in_order
from sdclr import ImageSet

if TYPE_CHECKING:
    import ray


@dataclass(frozen=True)
class DecodedSet:
    """N images of one set in its own order; labels are -1 where there are none."""

    images_NCHW: NDArray[np.uint8]
    sizes_N2: NDArray[np.int64]
    labels_N: NDArray[np.int64]
    ids_N: NDArray[Any]

    def image_set(self) -> ImageSet:
        """Return the images as `sdclr` reads them, on the same memory."""
        with warnings.catch_warnings():
            # Objects in Ray's store cannot be written, and nobody writes to an ImageSet.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return ImageSet(torch.from_numpy(self.images_NCHW), torch.from_numpy(self.sizes_N2))


SetRefs = Mapping[str, "ray.ObjectRef[DecodedSet]"]


def needed_sets(config: Config, manifest: Manifest) -> tuple[str, ...]:
    """Return the sets that a sweep reads: pre-training, and for `fewshot` probe and val.

    Raises:
        ConfigError: the objective needs labels that the data set does not have.
    """
    if config.tune.objective != "fewshot":
        return ("pretrain",)
    if manifest.class_names is None:
        raise ConfigError(
            "E-CONFIG-036",
            "few-shot accuracy needs labels, and the data set has none",
            where="tune.objective=fewshot",
            todo="set tune.objective=view_retrieval",
        )
    if "val" not in manifest.sets:
        raise ConfigError(
            "E-CONFIG-037",
            "a sweep is scored on a validation set, and the data set has none; the test set is "
            "for the end",
            where=f"data set {manifest.name}",
            todo="set data.num_val_per_class or data.sets.val, or tune.objective=view_retrieval",
        )
    return ("pretrain", "probe", "val")


def decode(config: Config, data_uri: str, manifest: Manifest) -> SetRefs:
    """Set name -> reference to its `DecodedSet` in the object store.

    Raises:
        DataError: a shard is broken, or rows are missing.
    """
    import ray

    found = {}
    num_rows = {str(name): info.rows for name, info in manifest.sets.items()}
    for name in needed_sets(config, manifest):
        parts = list(
            feed.decoded_rows(config, data_uri, manifest, name).iter_batches(
                batch_size=None, batch_format="numpy"
            )
        )
        columns = in_order(parts, f"data set {manifest.name}, set {name}", num_rows[name])
        decoded = (columns[key] for key in ("pixels", "size", "label", "id"))
        found[name] = ray.put(DecodedSet(*decoded))
    return found
