"""Templates to HTML: everything is escaped, and control characters are replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from pipeline.report.charts.svg import printable

_FOLDER = Path(__file__).parent


def to_html(template: str, page: Mapping[str, Any]) -> str:
    """Render the page of a template in this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,  # for every template: the suffix .j2 would switch the usual rule off
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(page)
