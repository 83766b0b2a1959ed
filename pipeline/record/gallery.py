"""RUN/mining/gallery.json: the pictures of mining.html, made from the stored originals.

Its size is bounded: small pictures of all images it names, and larger ones while their sum stays
below `MAX_LARGE_BYTES`.
"""

from __future__ import annotations

from typing import Literal

from pipeline import storage
from pipeline.record.schema import Part, Record

MAX_LARGE_BYTES = 8 * 2**20


class Shown(Part):
    """One image: what is known of it, and its pictures in base64.

    Args:
        id: name of the sample; below `Gallery.folder` where that is known.
        label: class index, None without labels.
        rank: place in the ranking, 1 = rarest; None for one that is shown as a neighbour only.
        score: that it is ranked by.
        cluster: number of its cluster; None for a neighbour.
        near: places in `Gallery.images` of its nearest neighbours, nearest first.
        thumb: small picture, JPEG or PNG.
        large: larger picture; None where the small one is the original, or space was used up.
    """

    id: str
    label: int | None
    rank: int | None
    score: float | None
    cluster: int | None
    near: tuple[int, ...]
    thumb: str
    large: str | None


class Gallery(Record):
    """All images of mining.html and the lists that name them by place."""

    schema_version: Literal[1] = 1
    folder: str
    images: tuple[Shown, ...]
    rarest: tuple[int, ...]
    commonest: tuple[int, ...]
    annotate: tuple[int, ...]
    cluster_sizes: tuple[int, ...]


def gallery_uri(run_uri: str) -> str:
    """Return where a run's gallery is."""
    return storage.join(run_uri, "mining", "gallery.json")
