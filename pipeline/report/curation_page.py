"""RUN/curation.html: near-duplicates, clusters with their sizes, and what was selected.

Made from curation.json, curation/pictures.json and run.json. No script; all text is escaped.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline import storage
from pipeline.console import counted
from pipeline.record.curation import (
    ACROSS_SETS,
    DUPLICATES,
    PICTURES,
    SELECTED,
    Curation,
    CurationPictures,
    NearPair,
)
from pipeline.report.charts.plots import Bar, bars
from pipeline.report.head import Head, head
from pipeline.report.inputs import Inputs, load, require
from pipeline.report.links import links
from pipeline.report.mining import vectors_warning
from pipeline.report.parts import Figure, Link, Thumb, image_source
from pipeline.report.template import to_html
from pipeline.report.verdict import learned

PAGE = "curation.html"
_SICK = (
    "The network has not learned, see the alarm: images that it takes for alike may differ. Look "
    "at the pairs before you leave anything out."
)
_DOUBT = (
    "It is not shown that this network learned: images that it takes for alike may differ. Look "
    "at the pairs before you leave anything out."
)


@dataclass(frozen=True)
class Two:
    """Two images side by side, each with its file's name, and their cosine."""

    first: Thumb
    second: Thumb
    similarity: str


@dataclass(frozen=True)
class Sheet:
    """Pictures under a heading, with what to know about them and the file that has all.

    Args:
        id: where links lead.
        name: the heading.
        text: what to know.
        file: below the run, beside this page.
        twos: pairs under a heading of their own.
        lists: single images under a heading of their own.
    """

    id: str
    name: str
    text: str
    file: str
    twos: tuple[tuple[str, tuple[Two, ...]], ...] = ()
    lists: tuple[tuple[str, tuple[Thumb, ...]], ...] = ()


@dataclass(frozen=True)
class Page:
    """All of curation.html."""

    head: Head
    word: str
    tone: str
    texts: tuple[str, ...]
    sheets: tuple[Sheet, ...]
    figures: tuple[Figure, ...]
    contents: tuple[tuple[str, str, bool], ...]


def write_curation_page(run_uri: str) -> str:
    """Make the page, and return its URI.

    Raises:
        DataError: a record is missing or broken; the file is named.
    """
    found = require(Curation, storage.join(run_uri, "curation.json"))
    pictures = CurationPictures.read(storage.join(run_uri, PICTURES))
    uri = storage.join(run_uri, PAGE)
    storage.write_bytes(uri, render(load(run_uri), found, pictures, links(run_uri, PAGE)).encode())
    return uri


def render(
    inputs: Inputs, found: Curation, pictures: CurationPictures, ways: tuple[Link, ...] = ()
) -> str:
    """Return the page as HTML."""
    is_across = any(across.images for across in found.across_sets)
    name, newest = found.weights.name, inputs.newest_health()
    collapsed = vectors_warning(found.vectors)
    sick = bool(collapsed) or name in {method for method, a in inputs.alarms() if a.is_severe}
    known = learned({name: newest[name]}, inputs.history).word == "Yes" if name in newest else True
    doubts = (*collapsed, _SICK) if sick else () if known else (_DOUBT,)
    sheets = tuple(s for s in _sheets(found, pictures) if s.twos or s.lists)
    page = Page(
        head=head(inputs, "Near-duplicates and selection", ways),
        word=_word(found, sick=sick, is_across=is_across),
        tone="bad" if sick else "open" if is_across or doubts else "good",
        texts=(*doubts, *texts(found)),
        sheets=sheets,
        figures=_figures(found),
        contents=(("sizes", "Sizes", True), *((s.id, s.name, True) for s in sheets)),
    )
    return to_html("curation.html.j2", page)


def _word(found: Curation, *, sick: bool, is_across: bool) -> str:
    if sick:
        return "Not to be relied on"
    return "Look at pairs across sets" if is_across else f"{counted(found.kept, 'image')} selected"


def clusters_text(found: Curation) -> str:
    """Return the clusters of each level in words."""
    leaves, *groups = found.levels
    return " in ".join([counted(leaves, "cluster"), *(counted(num, "group") for num in groups)])


def texts(found: Curation) -> tuple[str, ...]:
    """Return what was found, one sentence a fact."""
    across_sets = (
        f"Look at these pairs: {across.images} of {counted(across.of, 'image')} of {across.set} "
        "are "
        f"near-duplicates of one of {found.set} by the vectors of this network."
        for across in found.across_sets
        if across.images
    )
    return (
        f"{found.duplicates} of {found.images} images are near-duplicates of another, from a "
        f"cosine of {found.similarity:g} on, by {found.weights.name}.",
        *across_sets,
        f"{found.kept} of the other {found.images - found.duplicates} images are selected, evenly "
        f"over {clusters_text(found)}. Each gives as many as the others, or all that it has but "
        "near-duplicates; what it lacks the others give.",
    )


def _sheets(found: Curation, pictures: CurationPictures) -> tuple[Sheet, ...]:
    own = pictures.thumbs.get(found.set, {})
    across_sets = tuple(
        (f"{across.set}, then {found.set}",
         _twos(across.examples, pictures.thumbs.get(across.set, {}), own))
        for across in found.across_sets
        if across.examples
    )  # fmt: skip
    duplicates = _twos(found.examples, own, own)
    clusters = tuple(
        (f"Cluster {number}: {counted(images, 'image')}, {kept} selected",
         tuple(_thumb(name, own) for name in names))
        for number, (names, images, kept) in enumerate(
            zip(pictures.leaves, found.leaf_images, found.leaf_kept, strict=False), 1)
        if names
    )  # fmt: skip
    return (
        Sheet("across_sets", "Near-duplicates across sets",
              "Candidates: images of test and val, each with the one that it is nearly. Where both "
              "are the same, a score on it is too high.",
              ACROSS_SETS, across_sets),
        Sheet("duplicates", "Near-duplicates", "Each image that is left out, with the one that "
              "stays for it and their cosine. Where the first pairs differ, raise --similarity.",
              DUPLICATES,
              (("From the least to the most alike", duplicates),) if duplicates else ()),
        Sheet("clusters", "The largest clusters", "Some of their selected images.", SELECTED,
              lists=clusters),
    )  # fmt: skip


def _twos(
    pairs: Sequence[NearPair], first: Mapping[str, str], second: Mapping[str, str]
) -> tuple[Two, ...]:
    return tuple(
        Two(_thumb(pair.id, first), _thumb(pair.other, second), f"{pair.similarity:.4f}")
        for pair in pairs
    )


def _thumb(id: str, thumbs: Mapping[str, str]) -> Thumb:
    return Thumb(id, _caption(id), "", image_source(thumbs.get(id)))


def _caption(id: str) -> str:
    """Return the name of the file below its folder, which often is its class."""
    return posixpath.join(*id.split("/")[-2:])


def _figures(found: Curation) -> tuple[Figure, ...]:
    """Return the sizes of the clusters, and how many of each are selected."""
    drawn = (
        ("Images of each cluster", found.leaf_images, "c3", ", near-duplicates included"),
        ("Selected images of each cluster", found.leaf_kept, "c1", ""),
    )
    figures = []
    for name, values, style, also in drawn:
        data = [Bar(str(i), float(n), style, str(n)) for i, n in enumerate(values, 1)]
        clusters = counted(len(data), "cluster")
        svg = bars(data, label=f"{name}, {clusters}", x_label="clusters by size", y_label="images")
        caption = f"{clusters}, the largest first; {counted(sum(values), 'image')}{also}."
        figures.append(Figure(name, Markup(svg), caption))
    return tuple(figures)
