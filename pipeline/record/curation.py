"""RUN/curation.json: near-duplicates, leaks across sets, and what was selected."""

from __future__ import annotations

from typing import Literal

from pipeline.record.embedding import EmbeddedBy
from pipeline.record.run import DataRef
from pipeline.record.schema import Part, Record

PICTURES = "curation/pictures.json"


class NearPair(Part):
    """Two images that are nearly the same, and their cosine similarity."""

    id: str
    other: str
    similarity: float


class NearLeak(Part):
    """Images of a held-out set that are nearly images of the curated set; `of` is its size."""

    set: str
    images: int
    of: int
    examples: tuple[NearPair, ...]


class CurationPictures(Record):
    """RUN/curation/pictures.json: what curation.html shows of images.

    Args:
        thumbs: set -> id -> small picture in base64, of the examples and of `leaves`.
        leaves: ids of some selected images of each of the largest leaves, in the order of
            `Curation.leaf_images`.
    """

    schema_version: Literal[1] = 1
    thumbs: dict[str, dict[str, str]]
    leaves: tuple[tuple[str, ...], ...]


class Curation(Record):
    """curation.json; the files beside it have every pair and every selected image.

    Args:
        data: the data set.
        set: which of its sets.
        weights: of the network whose vectors were compared.
        similarity: cosine from which on two images are near-duplicates.
        images: of the set.
        duplicates: images that were dropped, with the first pairs as examples.
        leaks: of each held-out set.
        levels: clusters of each level of the tree, leaves first.
        kept: images that were selected.
        leaf_images, leaf_kept: of each leaf, the largest first.
    """

    schema_version: Literal[1] = 1
    data: DataRef
    set: str
    weights: EmbeddedBy
    similarity: float
    images: int
    duplicates: int
    examples: tuple[NearPair, ...]
    leaks: tuple[NearLeak, ...]
    levels: tuple[int, ...]
    kept: int
    leaf_images: tuple[int, ...]
    leaf_kept: tuple[int, ...]
