"""Plain names and sidecar files: what a name alone says of a file.

One idea of a plain name serves folders, lists, archives and tables: any UTF-8 text without
control characters that stays below its root. What is not plain is a reject that is counted.

Empty parts, as in `x//y.jpg`: to file systems and archives they are nothing, so that is `x/y.jpg`.
To S3 they are part of the key, which may stand beside `x/y.jpg`; there a name keeps them. A key
that begins with one, `photos//y.jpg` below `s3://b/photos`, has the name `.//y.jpg`: no name is
absolute. Parts `.` and `..` are never part of a name.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata

from pipeline import storage
from pipeline.storage import place

MAX_CHARS = 1024
NO_ENDING = "no ending"
SIDECARS = "sidecars"
OWN_OUTPUTS = "own outputs"

# Files and folders beside images that programs leave: NAS, Windows, macOS, notebooks, Spark, Delta.
_SIDECARS = {
    "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin",
    "__macosx", "__pycache__", "_delta_log", "_metadata", "_common_metadata", "_spark_metadata",
    "_success", "_temporary", "desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "lost+found",
    "system volume information", "thumbs.db", "icon\r",
}  # fmt: skip
# What Kubernetes keeps beside mounted files; any other name with two dots in front is a name.
_MOUNTED = re.compile(r"\.\.(data(_tmp)?|\d{4}(_\d\d){5}\.\d+)")
_EMPTY_FIRST = ".//"


def problem_of(name: str) -> str | None:
    """Return why a name cannot be the id of an image, None if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "the name is not UTF-8"
    if any(unicodedata.category(char) == "Cc" for char in name):
        return "the name has a control character"
    if len(name) > MAX_CHARS:
        return f"the name has {len(name)} characters, at most {MAX_CHARS} are taken"
    return "the name is not in plain form" if leads_elsewhere(name) else None


def leads_elsewhere(name: str) -> bool:
    """Return whether a name is empty, absolute, of a folder, or has a part that is `.` or `..`."""
    parts = name.removeprefix(_EMPTY_FIRST).split("/")
    return name.startswith("/") or not parts[-1] or not {".", ".."}.isdisjoint(parts)


def of_key(relative: str) -> str:
    """Return the name of a key relative to its root; see the top of this module."""
    return _EMPTY_FIRST[:2] + relative if relative.startswith("/") else relative


def of_path(path: str) -> str:
    """Return a relative path in short form: without empty parts and `.`."""
    return posixpath.normpath(path)


def address(root: str, name: str) -> str:
    """Return the URI of the file that a name stands for below `root`."""
    if name.startswith(_EMPTY_FIRST) and place.parse(root).kind == "s3":
        return f"{root.rstrip('/')}/{name.removeprefix(_EMPTY_FIRST[:2])}"
    return storage.join(root, name)


def split(uri: str) -> tuple[str, str]:
    """Return the root and the name of one file; `address` puts them together again."""
    folder, _, name = uri.rpartition("/")
    if place.parse(uri).kind == "local":
        return folder, name
    root = folder.rstrip("/")
    return root, of_key(uri[len(root) + 1 :])


def shown(name: str) -> str:
    """Return a name as text that any file and console can hold."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(
        char if unicodedata.category(char) != "Cc" else f"\\x{ord(char):02x}" for char in text
    )[:200]


def is_sidecar(name: str, *, underscores: bool = False) -> bool:
    """Return whether a file, or a folder above it, is one that programs leave beside the data.

    Args:
        name: relative to the source.
        underscores: whether whatever begins with `_` is one, as Spark and Delta have it.
    """
    for part in name.split("/"):
        if part.startswith(".") and not part.startswith("..") and part != ".":
            return True
        if part.lower() in _SIDECARS or _MOUNTED.fullmatch(part):
            return True
        if underscores and part.startswith("_"):
            return True
    return False


def ending_of(name: str) -> str:
    """Return the ending in lower case with its dot, or `no ending`."""
    base = name.rpartition("/")[2]
    stem, dot, ending = base.rpartition(".")
    return f".{ending.lower()}" if dot and stem and 0 < len(ending) <= 16 else NO_ENDING
