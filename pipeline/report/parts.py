"""Pieces that every page is built of: a figure with its legend, a table, a list of pairs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.record.evaluation import Picture

_MAGIC = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}


@dataclass(frozen=True)
class Swatch:
    """An entry of a legend: CSS classes of a line, or of the marker that `path` draws."""

    name: str
    style: str
    path: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing with its heading, caption and legend."""

    name: str
    svg: Markup
    caption: str
    legend: tuple[Swatch, ...] = ()


@dataclass(frozen=True)
class Table:
    """Text cells; the first column names the row."""

    label: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Thumb:
    """One image of a contact sheet; `name` is its class, empty without labels."""

    id: str
    name: str
    score: str
    src: str


@dataclass(frozen=True)
class Link:
    """Another page, relative to this one."""

    name: str
    href: str


def thumb(item: Picture, class_names: Sequence[str] | None) -> Thumb:
    """Return what a contact sheet shows of one image of a record."""
    name = class_name(item.label, class_names)
    return Thumb(str(item.id), name, f"{item.score:.3f}", image_source(item.png_base64))


def class_name(label: int | None, class_names: Sequence[str] | None) -> str:
    """Return the class of a label; empty when there are no labels."""
    if class_names is None:
        return ""
    return class_names[label] if label is not None and 0 <= label < len(class_names) else "no label"


def image_source(text: str | None) -> str:
    """Return a data URI if the text really is a PNG or a JPEG in base64, else an empty text."""
    try:
        image = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        return ""
    for magic, kind in _MAGIC.items():
        if image.startswith(magic):
            return f"data:image/{kind};base64," + base64.b64encode(image).decode()
    return ""
