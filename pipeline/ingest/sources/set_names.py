"""Names of folders and files that stand for a set: which of train, val and test each means.

`train`, `training`, `trainval`; `val`, `valid`, `validation`, `dev`, `eval`, `evaluation`; `test`,
`testing`; perhaps followed by `set`, `images`, `data` or a year, or behind one prefix of all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

_ROLE = re.compile(
    r"(?:(?P<train>train|training|train[ _.-]?val)"
    r"|(?P<val>val|valid|validation|dev|eval|evaluation)|(?P<test>test|testing))"
    r"(?:[ _.-]?(?:set|images?|imgs?|data))?(?:[ _.-]?\d{4})?",
    re.IGNORECASE,
)
_LIKE_A_SET = re.compile(
    r"(?:train|training|val|valid|validation|dev|eval|evaluation|test|testing)(?:[ _.-].*|\d+)?"
    r"|unlabell?ed|extra|holdout",
    re.IGNORECASE,
)


def roles_of(folders: Iterable[str]) -> dict[str, str]:
    """Return which of train, val and test each folder is that is named like a set."""
    names = sorted(folders)
    found = {name: match.lastgroup for name in names if (match := _ROLE.fullmatch(name))}
    if not found and len(names) > 1:
        common = os.path.commonprefix(names)  # noqa: RUF071 (characters are meant)
        prefix = re.sub(r"[^ _.-]*$", "", common)
        behind = {name: _ROLE.fullmatch(name[len(prefix) :]) for name in names}
        found = {name: match.lastgroup for name, match in behind.items() if match}
        if not prefix or len(found) < len(names) or len(set(found.values())) < 2:
            return {}
    return {name: role for name, role in found.items() if role is not None}


def note_of_sets(names: Iterable[str]) -> tuple[str, ...]:
    """Return a line when tables or archives of several sets are read as one; see `roles_of`.

    Args:
        names: of the files, such as `train/00.tar` or `data/test-00000-of-00001.parquet`.
    """
    found: dict[str, str] = {}
    for name in names:
        *folders, base = name.split("/")
        for word in (*folders, re.split(r"[-_. ]", base)[0]):
            if match := _ROLE.fullmatch(word):
                found.setdefault(match.lastgroup or "", name)
                break
    if len(found) < 2:
        return ()
    listed = ", ".join(sorted(found.values()))
    return (
        f"files named like several sets are read as one: {listed}; data.path takes one of them",
    )


def resembles_set(folder: str) -> bool:
    """Return whether a name begins like that of a set, or is one of images without labels."""
    return _LIKE_A_SET.fullmatch(folder) is not None
