"""RUN/curation.json: near-duplicates, also across sets, and what was selected."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Literal

from pipeline import storage
from pipeline.errors import DataError
from pipeline.record.embedding import EmbeddedBy, VectorHealth
from pipeline.record.run import DataRef
from pipeline.record.schema import Part, Record

FILE, PICTURES = "curation.json", "curation/pictures.json"
SELECTED, DUPLICATES = "curation/selected.csv", "curation/duplicates.csv"
ACROSS_SETS = "curation/across_sets.csv"


class NearPair(Part):
    """Two images that are nearly the same, and their cosine similarity."""

    id: str
    other: str
    similarity: float


class AcrossSets(Part):
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
        duplicates: images that were dropped.
        examples: their least and their most alike pairs, by similarity.
        across_sets: of each held-out set.
        levels: clusters of each level of the tree, leaves first.
        kept: images that were selected.
        leaf_images, leaf_kept: of each leaf, the largest first.
        vectors: whether the network distinguishes the images at all; null in older records.
    """

    schema_version: Literal[1] = 1
    data: DataRef
    set: str
    weights: EmbeddedBy
    similarity: float
    images: int
    duplicates: int
    examples: tuple[NearPair, ...]
    across_sets: tuple[AcrossSets, ...]
    levels: tuple[int, ...]
    kept: int
    leaf_images: tuple[int, ...]
    leaf_kept: tuple[int, ...]
    vectors: VectorHealth | None = None


@dataclass(frozen=True)
class Selection:
    """The ids that a curation selected, and for each near-duplicate the image that stays for it."""

    selected: frozenset[str]
    near: dict[str, str]


def find_selection(run_uri: str, manifest_hash: str, set_name: str) -> Selection | None:
    """Return what was selected from a set; None while nothing was, or only from another set.

    Raises:
        DataError: curation.json is malformed, or a CSV is not as it was written.
        StorageError: a file of the curation is missing.
    """
    found = Curation.find(storage.join(run_uri, FILE))
    if found is None or (found.data.manifest_hash, found.set) != (manifest_hash, set_name):
        return None
    selected = _rows(storage.join(run_uri, SELECTED), ("path",))
    pairs = _rows(storage.join(run_uri, DUPLICATES), ("id", "near"))
    return Selection(frozenset(row[0] for row in selected), {row[0]: row[1] for row in pairs})


def _rows(uri: str, columns: tuple[str, ...]) -> list[list[str]]:
    """Return the rows of a CSV that begins with these columns; empty lines are skipped."""
    try:
        text = storage.read_bytes(uri).decode()
        heading, *rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row] or [[]]
        if tuple(heading[: len(columns)]) != columns:
            raise ValueError(f"the first columns are not {', '.join(columns)}")
        if any(len(row) != len(heading) for row in rows):
            raise ValueError("a line has another number of cells than the first one")
    except (ValueError, csv.Error) as error:
        raise DataError(
            "E-DATA-851",
            f"the list of a curation cannot be read: {error!s:.200}",
            where=uri,
            todo="run the curate stage again, which writes it anew",
        ) from error
    return rows
