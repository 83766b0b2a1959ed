"""The way between the pages of a run, and to the comparisons that it is part of."""

from __future__ import annotations

import posixpath
from urllib.parse import quote

from pipeline import storage
from pipeline.record.comparisons import FILE, Comparisons
from pipeline.report.parts import Link

# Name, page, and the record that the page is made of.
_PAGES = (
    ("Run report", "report.html", "run.json"),
    ("Rare images", "mining.html", "mining.json"),
    ("Near-duplicates", "curation.html", "curation.json"),
)


def links(run_uri: str, here: str) -> tuple[Link, ...]:
    """Return links from the page `here` of a run to its other pages.

    Raises:
        DataError: the list of comparisons is broken.
    """
    found = [
        Link(name, page)
        for name, page, record in _PAGES
        if page != here and storage.exists(storage.join(run_uri, record))
    ]
    listed = Comparisons.find(storage.join(run_uri, FILE)) or Comparisons()
    hrefs = [href for page in listed.pages if (href := relative(page, run_uri))]
    for number, href in enumerate(hrefs, 1):
        found.append(Link("Comparison" if len(hrefs) == 1 else f"Comparison {number}", href))
    return tuple(found)


def relative(uri: str, folder: str) -> str:
    """Return the way from a folder to a file on the same storage as a link; empty on another."""
    (scheme, _, path), (other, _, start) = (u.rpartition("://") for u in (uri, folder))
    if scheme != other or (scheme and path.split("/")[0] != start.split("/")[0]):
        return ""
    return quote(posixpath.relpath(path, start))
