"""All pages of a run: made together, so that each links to the others as they are now."""

from __future__ import annotations

from pipeline import storage
from pipeline.report.curation_page import write_curation_page
from pipeline.report.mining_page import write_mining_page
from pipeline.report.page import write_report


def write_pages(run_uri: str) -> str:
    """Make the report, and the other pages that the run has; return the URI of the report.

    Raises:
        DataError: a record is missing or broken; the file is named.
        StorageError: a page cannot be written.
    """
    if storage.exists(storage.join(run_uri, "mining.html")):
        write_mining_page(run_uri)
    if storage.exists(storage.join(run_uri, "curation.html")):
        write_curation_page(run_uri)
    return write_report(run_uri)
