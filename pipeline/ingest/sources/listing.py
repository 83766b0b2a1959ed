"""All files of a kind below a place, with their sizes: listed in parallel when there are many."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.cluster.jobs import Result, Tasks
from pipeline.errors import DataError
from pipeline.storage.scan import ScanPage, ScanPart

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
_NAMES_PER_TASK = 20_000


def list_files(
    root: str, endings: tuple[str, ...], tasks: Tasks
) -> tuple[pa.LargeStringArray, npt.NDArray[np.int64]]:
    """List names relative to `root` and sizes in bytes, sorted by name.

    Names that begin with a dot, and files below such folders, do not count. This process lists
    the first 20,000 files; what is beyond goes to the tasks, in rounds, as it is found.

    Raises:
        DataError: there is no such file, a name is not plain text, or a folder is only linked.
        StorageError: the storage does not answer or denies access.
    """
    root = storage.absolute(root)
    first = storage.scan(root, max_names=_NAMES_PER_TASK) if storage.exists(root) else None
    if first is None:
        what = "the folder of images does not exist or is empty"
        raise DataError(
            "E-DATA-048", what, where=root, todo=f"set data.path to a folder with {_words(endings)}"
        )
    tables, rest = [_kept(first, endings, root)], first.rest
    while rest:
        shared = {"root": root, "endings": endings}
        items = [{"prefix": part.prefix, "after": part.after} for part in rest]
        rest = []
        for _, result in tasks.map(list_part, items, shared):
            assert result.table is not None
            tables.append(result.table)
            rest += [ScanPart(*part) for part in result.values]
    table = pa.concat_tables(tables).sort_by("name")
    if not table.num_rows:
        what = f"the folder holds no files that end in {_words(endings)}"
        what = "the folder holds no images" if endings == IMAGE_ENDINGS else what
        raise DataError(
            "E-DATA-049", what, where=root, todo=f"set data.path to a folder with {_words(endings)}"
        )
    names = table["name"].combine_chunks()
    return names, table["size"].to_numpy()


def list_part(item: dict[str, Any], shared: Any) -> Result:
    """List one part of the place, a job; its values are the parts that it left."""
    part = ScanPart(item["prefix"], item["after"])
    page = storage.scan(shared["root"], part, max_names=_NAMES_PER_TASK)
    rest = [(part.prefix, part.after) for part in page.rest]
    return Result(rest, _kept(page, tuple(shared["endings"]), shared["root"]))


def _kept(page: ScanPage, endings: tuple[str, ...], root: str) -> pa.Table:
    for link in page.links:
        if not _is_hidden(link):  # left out in silence, a class would be missing
            raise DataError(
                "E-DATA-050",
                "a linked folder is not entered",
                where=storage.join(root, link),
                todo="put the folder itself there, or name the images in a list (data.source=list)",
            )
    names, sizes = [], []
    for name, size in zip(page.names, page.sizes, strict=True):
        if name.lower().endswith(endings) and not _is_hidden(name):
            check_plain(name, root)
            names.append(name)
            sizes.append(size)
    return pa.table(
        {"name": pa.array(names, pa.large_string()), "size": pa.array(sizes, pa.int64())}
    )


def _is_hidden(name: str) -> bool:
    return "/." in f"/{name}"


def check_plain(name: str, where: str) -> None:
    """Refuse a name with control characters or a backslash, which would not survive as an id.

    Raises:
        DataError: naming it.
    """
    if not name.isprintable() or "\\" in name:
        raise DataError(
            "E-DATA-051",
            f"the name of an image is not plain text: {name[:200]!r}",
            where=where,
            todo="rename the file",
        )


def as_strings(values: list[str]) -> pa.LargeStringArray:
    """Return a column of names."""
    return pa.array(values, pa.large_string())


def joined(folders: Any, names: pa.LargeStringArray) -> pa.LargeStringArray:
    """Join FOLDER/NAME for each name, with a column of folders or one for all."""
    text = pa.large_string()
    if isinstance(folders, str):
        folders = pa.scalar(folders, text)
    return pc.binary_join_element_wise(folders, names, pa.scalar("/", text))


def first_folder(names: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return what precedes the first slash of each name; null where there is none."""
    position = pc.find_substring(names, "/")
    folder = pc.struct_field(pc.extract_regex(names, r"^(?P<folder>[^/]*)/"), "folder")
    return pc.if_else(pc.less(position, 0), pa.scalar(None, pa.large_string()), folder)


def _words(endings: tuple[str, ...]) -> str:
    return ", ".join(endings[:-1]) + f" or {endings[-1]} files" if endings[1:] else endings[0]
