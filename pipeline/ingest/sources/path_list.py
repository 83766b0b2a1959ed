"""Lists of images: a text file with one image a line, by path, with or without a label.

- `.csv`, `.tsv`: quotes as usual. A first line that names columns is a heading, by which
  `data.image_column` and `data.label_column` or the usual names find theirs; else path[,label].
- `.txt`: path, or path and a whole number behind a blank, as in the lists of ImageNet-LT
  (Liu et al. 2019): `train/n01440764/n01440764_190.JPEG 0`.

Paths are relative to `data.image_root`; whole URIs below it are accepted as well. `data.sets` names
the lists of val and test, labelled like the first.

The files are not looked up one by one: sizes, which only cut shards, are the mean of a seeded
sample, and a file that turns out to be missing is a reject.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.config.data import Data
from pipeline.dataset.manifest import RejectExample
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.ingest.sources import list_file, splits
from pipeline.ingest.sources import names as plain
from pipeline.ingest.sources.class_names import classes_of
from pipeline.ingest.sources.index import ImageIndex
from pipeline.ingest.sources.listing import IMAGE_ENDINGS
from pipeline.ingest.streams import Stream, generator

_NUM_SIZED = 256


class ListedImages(NamedTuple):
    """Paths relative to the root, labels as text or None, and lines whose path cannot be a name."""

    paths: pa.LargeStringArray
    labels: pa.LargeStringArray | None
    rejects: tuple[RejectExample, ...]


def list_index(data: Data) -> ImageIndex:
    """Index the images that the lists name, in their order before any split.

    With `data.sets.test` that is the test set; else it is drawn as from a folder. The others
    come from `data.path`.

    Raises:
        DataError: a list is empty, torn, names an image twice, leads outside the root, or none of
            a sample of its files exists.
        ConfigError: keys do not fit each other.
    """
    assert data.path is not None
    root = root_of(data)
    parts = {"main": read_list(data.path, root, data)}
    for name, uri in (("val", data.sets.val), ("test", data.sets.test)):
        if uri is not None:
            parts[name] = read_list(uri, root, data)
    labelled = {part.labels is not None for part in parts.values()}
    if len(labelled) > 1 or (len(parts) > 1 and labelled == {False}):
        what = "validation and test images need labels, and so do those of data.path"
        raise DataError(
            "E-DATA-059",
            what,
            where="data.sets",
            todo="add labels to all lists",
        )
    if data.sets.test is not None and data.num_test_per_class is not None:
        what, todo = "the test set is given twice", "remove data.num_test_per_class"
        raise ConfigError(
            "E-CONFIG-023", what, where="data.sets.test, data.num_test_per_class", todo=todo
        )
    ids = pa.concat_arrays([part.paths for part in parts.values()])
    _refuse_repeats(ids, data.path)
    labels = [part.labels for part in parts.values() if part.labels is not None]
    class_names, labels_N = classes_of(pa.concat_arrays(labels) if labels else None, len(ids))
    num_main = len(parts["main"].paths)
    sets = splits.sets_of(labels_N[:num_main], class_names, data)
    start = num_main
    for name in list(parts)[1:]:
        stop = start + len(parts[name].paths)
        sets[name], start = np.arange(start, stop), stop
    mean_bytes = _mean_bytes(root, ids, data)
    return ImageIndex(
        source={"kind": "list", "labelled": bool(labels), "num_images": len(ids)},
        ids=ids,
        num_bytes_N=np.full(len(ids), mean_bytes, np.int64),
        labels_N=labels_N,
        sets=splits.ordered(sets, seed=data.split_seed),
        class_names=class_names,
        root=root,
        may_be_missing=True,
        rejects=tuple(reject for part in parts.values() for reject in part.rejects),
    )


def read_list(uri: str, root: str, data: Data) -> ListedImages:
    """Read paths relative to `root`, and labels: None without labels or if they are unwanted.

    Raises:
        DataError: unreadable, empty, labels on some lines only, or a path that leads elsewhere.
    """
    content = storage.read_bytes(uri)
    if not content.strip():
        raise DataError("E-DATA-060", "the list is empty", where=uri, todo="write one image a line")
    ending = uri.rpartition(".")[2].lower()
    try:
        text = list_file.decoded(content)
        columns = _columns(text, ending, data, lambda name: _exists(root, name))
    except (ValueError, pa.ArrowException) as error:
        todo = "write one image a line: path, or path and label; a heading may name the columns"
        raise DataError(
            "E-DATA-061", f"the list cannot be read: {error!s:.300}", where=uri, todo=todo
        ) from error
    labels = None if data.labelled is False else columns.labels
    if labels is not None and (num_without := _num_empty(labels)):
        if num_without == len(labels):
            labels = None
        else:
            raise DataError(
                "E-DATA-062",
                f"{num_without} of {len(labels)} lines have no label",
                where=uri,
                todo="label every line or none, or set data.labelled=false",
            )
    if labels is None and data.labelled is True:
        what, todo = (
            "the list has no labels",
            "add a label to every line, or set data.labelled=null",
        )
        raise DataError("E-DATA-063", what, where=uri, todo=todo)
    return _usable(_relative(columns.paths, root, uri), labels)


def _columns(
    text: str, ending: str, data: Data, exists: Callable[[str], bool]
) -> list_file.Columns:
    if ending == "txt":
        return list_file.text_columns(text, exists)
    if ending not in ("csv", "tsv"):
        raise ValueError("its name ends neither in .csv nor .tsv nor .txt")
    default = Data.model_fields["image_column"].default
    wanted = list_file.Wanted(
        image=None if data.image_column == default else data.image_column,
        label=data.label_column,
        needs_label=data.labelled is not False,
    )
    return list_file.table_columns(text, "," if ending == "csv" else "\t", wanted, exists)


def _exists(root: str, name: str) -> bool:
    name = plain.of_path(name) if name and not root.startswith("s3://") else name
    return plain.problem_of(name) is None and storage.exists(plain.address(root, name))


def _usable(paths: pa.LargeStringArray, labels: pa.LargeStringArray | None) -> ListedImages:
    """Return the lines with a path that can be an id; the others are rejects."""
    odd = pc.match_substring_regex(paths, r"[\x00-\x1f\x7f-\x{9f}]")
    odd = pc.or_(odd, pc.greater(pc.utf8_length(paths), plain.MAX_CHARS))
    rejects = tuple(
        RejectExample(plain.shown(name), "unusable_name", plain.problem_of(name) or "")
        for name in paths.filter(odd).to_pylist()
    )
    if rejects:
        paths = paths.filter(pc.invert(odd))
        labels = None if labels is None else labels.filter(pc.invert(odd))
    return ListedImages(paths, labels, rejects)


def _num_empty(labels: pa.LargeStringArray) -> int:
    return int(pc.sum(pc.equal(pc.binary_length(labels), 0)).as_py() or 0)


def _relative(paths: pa.LargeStringArray, root: str, uri: str) -> pa.LargeStringArray:
    """Return names relative to the root, with empty parts as `names` has them.

    Raises:
        DataError: a path is absolute, leads upwards, or is of another place.
    """
    prefix = root.rstrip("/") + "/"
    cut = pc.utf8_slice_codeunits(paths, len(prefix))
    if root.startswith("file://"):  # a whole URI is quoted, the name of a file is not
        cut = pa.array([unquote(name) for name in cut.to_pylist()], pa.large_string())
    # Cut from a whole URI a path may begin with an empty part; written alone it is absolute.
    cut = pc.replace_substring_regex(cut, "^/", ".//")
    written = paths = pc.if_else(pc.starts_with(paths, prefix), cut, paths)
    # `..`, absolute, of a folder, other schemes, drives and shares of Windows.
    unsafe = pc.match_substring_regex(
        paths,
        r"(^|[/\\])\.\.([/\\]|$)|^/|/$|(^|/)\.$|^$"
        r"|^~/|^[A-Za-z][A-Za-z0-9+.-]*://|^[A-Za-z]:\\|^\\",
    )
    if root.startswith("s3://"):
        paths = pc.replace_substring_regex(paths, r"^(\./)+([^/])", r"\2")
        unsafe = pc.or_(unsafe, pc.match_substring(paths, "/./"))
    else:
        paths = pc.replace_substring_regex(paths, r"/(\.?/)+", "/")
        paths = pc.replace_substring_regex(paths, r"^(\./)+", "")
    if num_unsafe := int(pc.sum(unsafe).as_py() or 0):
        first = written.filter(unsafe)[0].as_py()
        raise DataError(
            "E-DATA-064",
            f"{num_unsafe} paths of the list lead outside data.image_root or are not in plain "
            f"form, first: {first[:200]!r}",
            where=uri,
            todo=f"write paths relative to {root}; for absolute paths set data.image_root to the "
            "folder that they all begin with",
        )
    return paths.cast(pa.large_string())


def _refuse_repeats(ids: pa.LargeStringArray, uri: str) -> None:
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise DataError(
            "E-DATA-065",
            f"{len(repeated)} images are listed more than once, first: "
            f"{repeated.field('values')[0].as_py()[:200]}",
            where=uri,
            todo="list every image once, in one of the sets",
        )


def _mean_bytes(root: str, ids: pa.LargeStringArray, data: Data) -> int:
    """Estimate the mean size from a seeded sample of the files, without missing ones."""
    shuffled = generator(data.split_seed, Stream.LISTED_SIZE).permutation(len(ids))
    rows = shuffled[:_NUM_SIZED]
    names = ids.take(pa.array(rows)).to_pylist()

    sizes = [found for found in sizes_of(root, names) if found is not None]
    if not sizes:
        raise DataError(
            "E-DATA-066",
            f"none of {len(names)} images of the list exists, first: {names[0]}",
            where=root,
            todo=_likely_cause(root, names[0])
            or "set data.image_root to the folder that the paths start from",
        )
    return max(1, round(sum(sizes) / len(sizes)))


def _likely_cause(root: str, name: str) -> str | None:
    """Return what to do about a name that a slight change turns into that of a file."""
    label = re.search(r"[ \t]+([^ \t]+)$", name)
    changes = {
        "write / between folders, not \\": name.replace("\\", "/"),
        "write path,label into a .csv list: in .txt lists labels are whole numbers": (
            name[: label.start()] if label else name
        ),
        **{
            f"write the names with their ending, {ending}": name + ending
            for ending in (*IMAGE_ENDINGS, *map(str.upper, IMAGE_ENDINGS))
        },
    }
    found = {changed: todo for todo, changed in changes.items() if changed != name}
    for changed, size in zip(found, sizes_of(root, list(found)), strict=True):
        if size is not None:
            return found[changed]
    return None


def sizes_of(root: str, names: list[str]) -> list[int | None]:
    """Look up the size of some files in bytes, None for one that is missing.

    Raises:
        StorageError: the storage does not answer or denies access.
    """

    def size(name: str) -> int | None:
        try:
            return storage.size_bytes(plain.address(root, name))
        except StorageError as error:
            if storage.is_missing(error):
                return None
            raise

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(size, names))


def root_of(data: Data) -> str:
    """Return where the paths of the lists start: `data.image_root`, else the folder of the list."""
    assert data.path is not None
    return data.image_root or data.path.rpartition("/")[0] or "."
