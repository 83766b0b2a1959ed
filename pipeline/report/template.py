"""Templates to HTML: everything is escaped, and control characters are replaced."""

from __future__ import annotations

from pathlib import Path

import jinja2

from pipeline.report.charts.svg import printable

_FOLDER = Path(__file__).parent


def to_html(template: str, page: object, **more: str) -> str:
    """Return the page of a template in this folder.

    Args:
        template: its file name.
        page: a dataclass, which the template knows as `page`.
        more: other texts by name.
    """
    return _environment().get_template(template).render(page=page, **more)


def source(template: str) -> str:
    """Return the text of a file in this folder."""
    return (_FOLDER / template).read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,  # for every template: the suffix .j2 would switch the usual rule off
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
