"""A data set in words: its sets, what was left out, and the name that its user knows it by."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Protocol

from pipeline.dataset.manifest import Manifest

_OWN_IMAGES = ("folder", "list", "parquet", "webdataset")


class Sourced(Protocol):
    """Facts of the source in a manifest, or in a view of one."""

    @property
    def name(self) -> str:
        """Of the data set."""

    @property
    def source(self) -> Mapping[str, object]:
        """Its kind, and what is of that kind."""

    @property
    def config(self) -> Mapping[str, Mapping[str, object]]:
        """Keys by section."""


def source_name(manifest: Sourced) -> str:
    """Return the end of the user's path, `photos/flat`; of a known data set its name."""
    path, kind = manifest.config.get("data", {}).get("path"), manifest.source.get("kind")
    if path and kind in _OWN_IMAGES:
        place = str(path).partition("://")[2] or str(path)
        return "/".join(os.path.normpath(place).strip("/").split("/")[-2:])
    return str(kind or manifest.name)


def described(manifest: Manifest) -> str:
    """Describe sets, class counts and rejects in a few words, for the console."""
    parts = [f"{name} {info.rows}" for name, info in manifest.sets.items()]
    counts = manifest.sets["pretrain"].class_counts
    if counts:
        present = sorted((c for c in counts if c), reverse=True)
        parts.append(f"images per class {present[0]}..{present[-1]}")
    if manifest.rejects.total:
        reasons = ", ".join(f"{n} {reason}" for reason, n in manifest.rejects.by_reason.items())
        parts.append(f"{manifest.rejects.total} rejected ({reasons})")
    if manifest.left_out:
        parts.append(f"left out: {left_out_text(manifest)}")
    return ", ".join(parts)


def left_out_text(manifest: Manifest) -> str:
    """Return what the source holds beside images, the most frequent kinds first."""
    kinds = sorted(manifest.left_out.items(), key=lambda kind: (-kind[1].files, kind[0]))
    shown = [f"{info.files} {_counted(kind, info.files)}" for kind, info in kinds[:8]]
    more = sum(info.files for _, info in kinds[8:])
    return ", ".join([*shown, f"{more} of other endings"] if more else shown)


def _counted(kind: str, number: int) -> str:
    """Return a kind as one of them where there is one; kinds that are no endings are plurals."""
    is_plural = number != 1 or kind.startswith(".")
    return kind if is_plural else re.sub(r"s\b", "", kind, count=1)
