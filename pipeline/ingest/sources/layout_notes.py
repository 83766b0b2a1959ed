"""Folders of a layout and what a person should know of how they were read.

Neither names nor numbers prove what a folder is: where it may be something else, a line says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.config.data import Data
from pipeline.ingest.sources.set_names import resembles_set, roles_of

_DATES = re.compile(r"(19|20)\d\d([-_. ]?[01]?\d([-_. ]?[0-3]?\d)?)?")
# What a folder holds: images of one collection beside their masks.
_CONTENTS = re.compile(
    r"(?:jpeg|jpg|png)?(?:images?|imgs?|photos?|pictures?)|(?:.*[ _.-])?(?:masks?|labels?|gt|depth)"
    r"|annotations?|segmentation.*|ground[ _.-]?truth",
    re.IGNORECASE,
)
_UNLABELLED = "set data.labelled=false if the folders are no classes"
_NUM_SHOWN = 5


@dataclass
class Folder:
    """Images directly in a folder, and those in each folder below it."""

    num_flat: int = 0
    inner: dict[str, int] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """Number of images at any depth."""
        return self.num_flat + sum(self.inner.values())


def notes_labelled(
    folders: Mapping[str, Folder], roles: Mapping[str, str], data: Data
) -> tuple[str, ...]:
    """Return why the folders, which are taken as classes, may be none."""
    notes, some = [], shown(sorted(folders)[:3])
    named = roles or (folders if all(map(resembles_set, folders)) else ())
    if named:
        notes.append(f"{shown(sorted(named))} are taken as classes, although named like sets")
    is_none = (all(pattern.fullmatch(name) for name in folders) for pattern in (_DATES, _CONTENTS))
    if data.labelled is None and any(is_none):
        notes.append(f"folders such as {some} are taken as classes; {_UNLABELLED}")
    if shared := shared_folders(folders):
        notes.append(
            f"{some} are taken as classes, although each of them holds the same folders: "
            f"{shown(shared)}"
        )
    return tuple(notes)


def notes_unlabelled(
    folders: Mapping[str, Folder], num_flat: int, data: Data, root: str
) -> tuple[str, ...]:
    """Return what a folder that is read without labels may have been meant as."""
    roles = roles_of(folders)
    train = next((name for name, role in roles.items() if role == "train"), None)
    is_sets = roles or all(resembles_set(name) for name in folders)
    if len(folders) > 1 and is_sets:
        what = f"all of {shown(sorted(folders))} is pre-trained on"
        return (f"{what}; data.path={root}/{train or min(folders)} leaves the rest out",)
    if len(folders) == 1 and not num_flat and data.labelled is None:
        ((name, folder),) = folders.items()
        if folder.num_flat or len(folder.inner) < 2:
            return ()
        what = f"takes its {len(folder.inner)} folders as classes"
        if roles_of(folder.inner):
            what = f"looks for sets in {shown(sorted(folder.inner))}"
        return (f"all images are below {name}: data.path={root}/{name} {what}",)
    return ()


def shared_folders(folders: Mapping[str, Folder]) -> list[str]:
    """Return the folders below each of several that hold folders alone, when two or more."""
    inner = [set() if folder.num_flat else set(folder.inner) for folder in folders.values()]
    shared = sorted(set.intersection(*inner)) if len(inner) > 1 else []
    return shared if len(shared) > 1 else []


def shown(names: list[str]) -> str:
    """Return the first of some names, and how many there are beyond."""
    more = f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else ""
    return ", ".join(names[:_NUM_SHOWN]) + more
