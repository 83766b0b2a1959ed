"""RUN/comparisons.json: the pages on which a run is compared with others."""

from __future__ import annotations

from typing import Literal

from pipeline import storage
from pipeline.record.schema import Record

FILE = "comparisons.json"


class Comparisons(Record):
    """RUN/comparisons.json.

    Args:
        pages: URIs, the oldest first.
    """

    schema_version: Literal[1] = 1
    pages: tuple[str, ...] = ()


def note_comparison(run_uri: str, page: str) -> None:
    """Remember that a run is on a page."""
    uri = storage.join(run_uri, FILE)
    known = Comparisons.find(uri) or Comparisons()
    if page not in known.pages:
        Comparisons(pages=(*known.pages, page)).write(uri)
