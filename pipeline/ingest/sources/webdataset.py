"""WebDataset shards: tar files; entries that differ only in the ending make a sample.

The image is the entry that ends in .jpg, .jpeg, .png or .webp; `.cls` is its label, a whole
number. Other entries (.txt, .json, ...) are left alone. An archive is refused whole, before
anything is written, when an entry leads outside (`..`, absolute), is a link or a device, or is a
pickle: whoever packed it is not to be trusted with the rest either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.cluster.jobs import Result, Tasks
from pipeline.config.data import Data
from pipeline.errors import DataError
from pipeline.ingest.sources import listing, splits, tar
from pipeline.ingest.sources.index import Containers, ImageIndex
from pipeline.ingest.sources.parquet import files_of

_PICKLES = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".joblib")
_BLOCK_BYTES = 4 * 2**20
_MAX_LABEL_BYTES = 32


def webdataset_index(data: Data, tasks: Tasks) -> ImageIndex:
    """Index the images of all tar files below `data.path` (or of one file), in order.

    Ids are FILE/ENTRY. Sets: see `splits.sets_of`. Neighbours of about 4 MiB are a block.

    Raises:
        DataError: no archive, a broken or hostile one, labels on some samples only.
    """
    assert data.path is not None
    root, names = files_of(data.path, ".tar", tasks)
    found = dict(tasks.map(look_at_tar, [{"name": name} for name in names], {"root": root}))
    tables = [found[number].table for number in range(len(names))]
    files = [np.full(len(t), number, np.int32) for number, t in enumerate(tables) if t is not None]
    table = pa.concat_tables([table for table in tables if table is not None])
    if not table.num_rows:
        what, todo = "the archives hold no images", "check data.path"
        raise DataError("E-DATA-073", what, where=root, todo=todo)
    prefixes = pa.array(names, pa.large_string()).take(pa.array(np.concatenate(files)))
    ids = listing.joined(prefixes, table["name"].combine_chunks())
    class_names, labels_N = splits.classes_of(_labels(table, data.labelled, root), len(ids))
    num_bytes_N, place_N = table["size"].to_numpy(), table["start"].to_numpy()
    file_N = np.concatenate(files)
    block_N = _blocks(file_N, place_N)
    sets = splits.sets_of(labels_N, class_names, data)
    return ImageIndex(
        source={
            "kind": "webdataset",
            "labelled": class_names is not None,
            "num_files": len(names),
            "num_images": len(ids),
        },
        ids=ids,
        num_bytes_N=num_bytes_N,
        labels_N=labels_N,
        sets=splits.block_ordered(sets, block_N, seed=data.split_seed),
        class_names=class_names,
        root=root,
        containers=Containers("tar", tuple(names), file_N, place_N, block_N),
    )


def look_at_tar(item: dict[str, Any], shared: Any) -> Result:
    """List name, start, size and label of every image of one archive, in order; a job."""
    uri = storage.join(shared["root"], item["name"])
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    with storage.open_readable(uri) as file:
        try:
            for member in tar.members(file, storage.size_bytes(uri)):
                _check_member(member, uri)
                if member.kind == "folder":
                    continue
                folder, slash, base = member.name.rpartition("/")
                stem, dot, ending = base.partition(".")
                sample = folder + slash + stem
                if f".{ending.lower()}" in listing.IMAGE_ENDINGS and dot:
                    if sample in images:
                        what = f"the sample {sample[:200]} has two images"
                        raise DataError(
                            "E-DATA-074", what, where=uri, todo="pack one image for each sample"
                        )
                    images[sample] = (member.name, member.start, member.num_bytes)
                elif ending.lower() == "cls" and member.num_bytes <= _MAX_LABEL_BYTES:
                    file.seek(member.start)
                    labels[sample] = file.read(member.num_bytes).decode("ascii", "replace").strip()
        except tar.BrokenTarError as error:
            raise DataError(
                "E-DATA-075",
                f"the archive is broken: {error}",
                where=uri,
                todo="restore or remove it; compressed archives (.tar.gz) are not read",
            ) from error
    rows = list(images.values())
    return Result(
        None,
        pa.table(
            {
                "name": pa.array([row[0] for row in rows], pa.large_string()),
                "start": pa.array([row[1] for row in rows], pa.int64()),
                "size": pa.array([row[2] for row in rows], pa.int64()),
                "label": pa.array([labels.get(key, "") for key in images], pa.large_string()),
            }
        ),
    )


def _check_member(member: tar.Member, uri: str) -> None:
    name = member.name.removesuffix("/") if member.kind == "folder" else member.name
    problem = None
    if member.kind == "other":
        problem = "is a link or a device"
    elif name.lower().endswith(_PICKLES):
        problem = "is a pickle, which can run code when it is loaded"
    else:
        listing.check_plain(name, uri)
        try:
            if name.removeprefix("./") not in ("", "."):
                storage.safe_name(name.removeprefix("./"))
        except DataError:
            problem = "leads outside the archive or is not in plain form"
    if problem is not None:
        raise DataError(
            "E-DATA-076",
            f"the archive is refused: its entry {member.name[:200]!r} {problem}",
            where=uri,
            todo="do not use this archive; pack it again without such entries",
        )


def _labels(table: pa.Table, wanted: bool | None, root: str) -> pa.LargeStringArray | None:
    if wanted is False:
        return None
    labels = table["label"].combine_chunks()
    is_label = pc.match_substring_regex(labels, r"^\d+$")
    num_labelled = int(pc.sum(is_label).as_py() or 0)
    if not num_labelled and not wanted:
        return None
    if num_labelled < len(labels):
        raise DataError(
            "E-DATA-077",
            f"{len(labels) - num_labelled} of {len(labels)} samples have no .cls entry with a "
            "whole number",
            where=root,
            todo="label every sample or none, or set data.labelled=false",
        )
    return labels


def _blocks(
    file_N: np.ndarray[Any, np.dtype[np.int32]], place_N: np.ndarray[Any, np.dtype[np.int64]]
) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return number the stretches of about 4 MiB within a file."""
    stretch_N = place_N // _BLOCK_BYTES
    starts_N = np.diff(file_N, prepend=-1) != 0
    starts_N |= np.diff(stretch_N, prepend=-1) != 0
    return (np.cumsum(starts_N) - 1).astype(np.int32)
