"""HEIC, the format of many telephones: Pillow reads it where pillow-heif is installed."""

from __future__ import annotations

import functools
from importlib import import_module
from importlib.util import find_spec

HEAD_BYTES = 64
"""First bytes of a file that `brands_of` needs."""
INSTALL_HEIF = "pip install pillow-heif"
NEEDS_HEIF = f"HEIC: {INSTALL_HEIF} to read it"
HEIF_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"))


def brands_of(head: bytes) -> set[bytes]:
    """Return the formats that the first 64 bytes of an ISO media file name; empty for others."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), HEAD_BYTES)
    return {head[start : start + 4] for start in (8, *range(16, end, 4))}


@functools.cache
def reads_heif() -> bool:
    """Have Pillow read HEIC; return whether it can."""
    if find_spec("pillow_heif") is None:
        return False
    import_module("pillow_heif").register_heif_opener()
    return True
