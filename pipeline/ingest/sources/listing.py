"""All files of a kind below a place, with their sizes: listed in parallel when there are many.

What is not of the kind is counted by its ending; sidecars of other programs and what this program
wrote itself are counted under a name of their own. No file of a known ending is opened.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.cluster.jobs import Result, Tasks
from pipeline.dataset.formats import format_of
from pipeline.dataset.manifest import LeftOut, RejectExample
from pipeline.errors import DataError, StorageError
from pipeline.ingest.sources import names as plain
from pipeline.ingest.sources.own_outputs import own_outputs
from pipeline.storage.scan import ScanPage, ScanPart

# What is looked at as an image. The first bytes decide what a file is; the ending only says that
# it is worth reading. Other endings are tried when files of theirs turn out to be images.
IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib",
    ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif", ".mpo",
)  # fmt: skip
_NAMES_PER_TASK = 20_000
_NUM_EXAMPLES = 3
_NUM_SNIFFED, _MAX_ENDINGS = 8, 32


@dataclass
class Excluded:
    """Count of files that a source does not take, by kind, with the first names of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str, number: int = 1) -> None:
        """Count one file, or several of which one is named."""
        self.counts[kind] += number
        self.examples.setdefault(kind, []).append(plain.shown(name))
        if len(self.examples[kind]) > 4 * _NUM_EXAMPLES:
            self.examples[kind] = sorted(set(self.examples[kind]))[:_NUM_EXAMPLES]

    def merge(self, values: Mapping[str, Any]) -> None:
        """Add what `values` of another one says."""
        for kind, (number, names) in values.items():
            for name in names[1:]:
                self.add(kind, name, 0)
            self.add(kind, names[0], number)

    def values(self) -> dict[str, Any]:
        """Return the counts and names as plain values."""
        return {
            kind: [self.counts[kind], sorted(set(self.examples[kind]))[:_NUM_EXAMPLES]]
            for kind in sorted(self.counts)
        }

    def left_out(self) -> dict[str, LeftOut]:
        """Return what the manifest says of them."""
        return {kind: LeftOut(n, tuple(names)) for kind, (n, names) in self.values().items()}


@dataclass(frozen=True)
class Listing:
    """Files of one kind below a place, sorted by name.

    Attributes:
        names: relative to the place.
        num_bytes_N: their sizes.
        excluded: the other files there.
        rejects: files of the kind with a name that cannot be an id.
        newest_s: latest change of a local file, in seconds since 1970; 0 where it is not known.
        other_folders: first folders that hold files, of which none is taken.
    """

    names: pa.LargeStringArray
    num_bytes_N: npt.NDArray[np.int64]
    excluded: Excluded
    rejects: tuple[RejectExample, ...]
    newest_s: float
    other_folders: tuple[str, ...] = ()


def is_one_file(path: str, ending: str) -> bool:
    """Return whether a place is one file of the kind; Spark gives folders such names as well."""
    if not path.lower().endswith(ending):
        return False
    try:
        return not storage.list_names(path)
    except StorageError:  # it is no folder, or a failure that opening it reports
        return True


def list_files(root: str, endings: tuple[str, ...], tasks: Tasks) -> Listing:
    """List the files below `root` that end in one of `endings`.

    This process lists the first 20,000 files; what is beyond goes to the tasks, in rounds, as it
    is found. Among images, up to 8 files of every other ending are looked into: if most of them
    are images, all files of this ending are taken.

    Raises:
        DataError: there is no such file, the place is a file, or a folder is only linked.
        StorageError: the storage does not answer or denies access.
    """
    root = storage.absolute(root)
    first = _first_page(root, endings) if storage.exists(root) else None
    if first is None:
        what = "the folder of images does not exist or is empty"
        raise DataError(
            "E-DATA-048", what, where=root, todo=f"set data.path to a folder with {_words(endings)}"
        )
    shared = {"root": root, "underscores": endings != IMAGE_ENDINGS}
    results, rest = [_kept(first, shared)], first.rest
    while rest:
        items = [{"prefix": part.prefix, "after": part.after} for part in rest]
        rest = []
        for _, result in tasks.map(list_part, items, shared):
            results.append(result)
            rest += [ScanPart(*part) for part in result.values["rest"]]
    excluded, rejects = Excluded(), list[RejectExample]()
    for result in results:
        excluded.merge(result.values["excluded"])
        rejects += [RejectExample(*reject) for reject in result.values["rejects"]]
    tables = [result.table for result in results if result.table is not None]
    table = pa.concat_tables(tables).sort_by("name").combine_chunks()
    table = _without_own(table, root, excluded)
    taken_N = _taken(table, root, endings, excluded)
    table, folders = table.filter(taken_N), first_folder(_column(table.filter(pc.invert(taken_N))))
    names = _column(table)
    if not len(names):
        raise _nothing(root, endings, excluded)
    others = set(pc.unique(folders.drop_null()).to_pylist())
    others -= set(pc.unique(first_folder(names).drop_null()).to_pylist())
    wanted = tuple(
        reject for reject in rejects if plain.ending_of(reject.id) in (*endings, plain.NO_ENDING)
    )
    newest_s = max(result.values["newest_s"] for result in results)
    sizes = table["size"].to_numpy()
    return Listing(names, sizes, excluded, wanted, newest_s, tuple(sorted(others)))


def _first_page(root: str, endings: tuple[str, ...]) -> ScanPage:
    """Return the first files of a place; a file is refused, with its folder if it is an image."""
    failure = None
    try:
        page = storage.scan(root, max_names=_NAMES_PER_TASK)
        if page.names or page.rest:
            return page
    except StorageError as error:
        failure = error
    try:
        head = storage.read_bytes(root, max_bytes=63)
    except StorageError:  # it is no file
        if failure is not None:
            raise failure from None
        return page
    todo = f"set data.path to a folder with {_words(endings)}"
    if endings == IMAGE_ENDINGS and format_of(head) is not None:
        parent = root.rpartition("/")[0] or "/"
        todo = f"set data.path={shlex.quote(parent)}, which takes every image below that folder"
    raise DataError("E-DATA-308", "a folder is expected, and this is a file", where=root, todo=todo)


def list_part(item: dict[str, Any], shared: Any) -> Result:
    """List one part of the place, as a job; its values hold the parts that it left."""
    part = ScanPart(item["prefix"], item["after"])
    return _kept(storage.scan(shared["root"], part, max_names=_NAMES_PER_TASK), shared)


def _kept(page: ScanPage, shared: Mapping[str, Any]) -> Result:
    """Return names and sizes of files that are no sidecars; the parts that are left, as values."""
    root, underscores = shared["root"], shared["underscores"]
    for link in page.links:
        if not plain.is_sidecar(link):  # left out in silence, a class would be missing
            raise DataError(
                "E-DATA-050",
                "a linked folder is not entered",
                where=storage.join(root, link),
                todo="put the folder itself there, or name the images in a list (data.source=list)",
            )
    names, sizes, excluded, rejects = [], [], Excluded(), []
    for name, size in zip(map(plain.of_key, page.names), page.sizes, strict=True):
        if plain.is_sidecar(name, underscores=underscores):
            excluded.add(plain.SIDECARS, name)
        elif (problem := plain.problem_of(name)) is not None:
            rejects.append([plain.shown(name), "unusable_name", problem])
        else:
            names.append(name)
            sizes.append(size)
    table = pa.table(
        {"name": pa.array(names, pa.large_string()), "size": pa.array(sizes, pa.int64())}
    )
    rest = [(part.prefix, part.after) for part in page.rest]
    values = {"rest": rest, "excluded": excluded.values(), "rejects": rejects}
    return Result({**values, "newest_s": page.newest_s}, table)


def _column(table: pa.Table) -> pa.LargeStringArray:
    column = table["name"].combine_chunks()
    return column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)


def _without_own(table: pa.Table, root: str, excluded: Excluded) -> pa.Table:
    kept = np.ones(len(table), bool)
    for home, rows in own_outputs(_column(table), root).items():
        excluded.add(plain.OWN_OUTPUTS, home or ".", len(rows))
        kept[rows] = False
    return table.filter(pa.array(kept))


def _taken(
    table: pa.Table, root: str, endings: tuple[str, ...], excluded: Excluded
) -> pa.BooleanArray:
    """Return which files are of the kind; the others are counted by ending."""
    names = _column(table)
    lower = pc.utf8_lower(names)
    taken = pa.array(np.zeros(len(names), bool))
    for ending in endings:
        taken = pc.or_(taken, pc.ends_with(lower, ending))
    by_ending: dict[str, list[int]] = {}
    rows = np.flatnonzero(~taken.to_numpy(zero_copy_only=False))
    for row, name in zip(rows.tolist(), names.take(pa.array(rows)).to_pylist(), strict=True):
        by_ending.setdefault(plain.ending_of(name), []).append(row)
    also = []
    common = sorted(by_ending, key=lambda ending: (-len(by_ending[ending]), ending))
    for number, ending in enumerate(common):
        found = by_ending[ending]
        if endings == IMAGE_ENDINGS and number < _MAX_ENDINGS:
            some = [found[i] for i in np.linspace(0, len(found) - 1, _NUM_SNIFFED).astype(int)]
            if _are_images(root, names.take(pa.array(sorted(set(some)))).to_pylist()):
                also += found
                continue
        for row in found[:_NUM_EXAMPLES]:
            excluded.add(ending, names[row].as_py(), 0)
        excluded.counts[ending] += len(found)
    mask = taken.to_numpy(zero_copy_only=False).copy()
    mask[also] = True
    return pa.array(mask)


def _are_images(root: str, names: list[str]) -> bool:
    def is_image(name: str) -> bool:
        return format_of(storage.read_bytes(plain.address(root, name), max_bytes=63)) is not None

    with ThreadPoolExecutor(len(names)) as pool:
        return 2 * sum(pool.map(is_image, names)) > len(names)


def _nothing(root: str, endings: tuple[str, ...], excluded: Excluded) -> DataError:
    kinds = ", ".join(f"{n} {kind}" for kind, n in excluded.counts.most_common(5))
    holds = f"; it holds {kinds}" if kinds else ""
    if set(excluded.counts) == {plain.OWN_OUTPUTS}:
        return DataError(
            "E-DATA-300",
            "the folder holds only what this program wrote itself",
            where=root,
            todo="set data.path to the folder of the source images; a run uses a data set of "
            "this program by data.root",
        )
    what = f"the folder holds no files that end in {_words(endings)}{holds}"
    what = f"the folder holds no images{holds}" if endings == IMAGE_ENDINGS else what
    return DataError(
        "E-DATA-049", what, where=root, todo=f"set data.path to a folder with {_words(endings)}"
    )


def as_strings(values: list[str]) -> pa.LargeStringArray:
    """Return a column of names."""
    return pa.array(values, pa.large_string())


def joined(folders: Any, names: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return FOLDER/NAME for each name, with a column of folders or one for all."""
    text = pa.large_string()
    if isinstance(folders, str):
        folders = pa.scalar(folders, text)
    return pc.binary_join_element_wise(folders, names, pa.scalar("/", text))


def first_folder(names: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return the first folder of each name that is not empty; null where there is none."""
    names = _without_empty_first(names)
    position = pc.find_substring(names, "/")
    folder = pc.struct_field(pc.extract_regex(names, r"^(?P<folder>[^/]*)/"), "folder")
    return pc.if_else(pc.less(position, 0), pa.scalar(None, pa.large_string()), folder)


def below_first_folder(names: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return what follows the first folder of each name; the name itself where there is none."""
    names = _without_empty_first(names)
    return pc.replace_substring_regex(names, r"^[^/]*/", "", max_replacements=1)


def _without_empty_first(names: pa.LargeStringArray) -> pa.LargeStringArray:
    return pc.replace_substring_regex(names, r"^(\./)?/+", "", max_replacements=1)


def _words(endings: tuple[str, ...]) -> str:
    if endings == IMAGE_ENDINGS:
        return "image files, such as .jpg, .png, .webp, .gif, .bmp, .tif or .avif"
    return ", ".join(endings[:-1]) + f" or {endings[-1]} files" if endings[1:] else endings[0]
