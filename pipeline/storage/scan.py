"""Listing a place with millions of objects piece by piece, so that many processes can share it.

`pipeline.storage.scan` lists one part and says what it left; the parts that are left can be listed
at the same time. A local folder is cut at its subfolders. An object store has no folders: its keys
are cut by the next character, wherever the keys differ, so a flat prefix is shared out as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ScanPart:
    """A part to be listed: names that begin with `prefix` and come after `after`.

    Both are relative to the place that is scanned; the default is the whole place.
    """

    prefix: str = ""
    after: str = ""


@dataclass(frozen=True)
class ScanPage:
    """Names relative to the place, sizes in bytes, and the parts that are still to be listed.

    `links` are linked folders of a local place; nothing below them is listed. `newest_s` is the
    latest change of a listed local file in seconds since 1970, 0 where that is not known.
    """

    names: list[str]
    sizes: list[int]
    rest: list[ScanPart]
    links: list[str] = field(default_factory=list)
    newest_s: float = 0.0
