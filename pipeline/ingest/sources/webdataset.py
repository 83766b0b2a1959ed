"""WebDataset shards: tar files; entries that differ only in the ending make a sample.

The image is the entry with the ending of an image; `.cls` is its label, a number or a name. A
sample is named up to the first dot of its entries. When it has no image of just that name, each
image with a longer name, dots included, is taken: `cam1_2024.05.10.jpg` with the label of
`cam1_2024.05.10.cls`, else that of `cam1_2024.cls`. Other fields, such as `seg.png` beside an
image, are counted and left alone. An archive is refused whole, before anything is written, when an
entry leads outside (`..`, absolute), is a link or a device, or is a pickle: whoever packed it is
not to be trusted with the rest either.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.cluster.jobs import Result, Tasks
from pipeline.config.data import Data
from pipeline.dataset.manifest import RejectExample
from pipeline.errors import DataError
from pipeline.ingest.sources import listing, splits, tar
from pipeline.ingest.sources import names as plain
from pipeline.ingest.sources.index import Containers, ImageIndex
from pipeline.ingest.sources.listing import Excluded
from pipeline.ingest.sources.parquet import files_of

_PICKLES = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".joblib")
_BLOCK_BYTES = 4 * 2**20
_MAX_LABEL_BYTES = 256


def webdataset_index(data: Data, tasks: Tasks) -> ImageIndex:
    """Index the images of all tar files below `data.path` (or of one file), in order.

    Ids are FILE/ENTRY. Sets: see `splits.sets_of`. Neighbours of about 4 MiB are a block.

    Raises:
        DataError: no archive, a broken or hostile one, labels on some samples only.
    """
    assert data.path is not None
    root, names, found_files = files_of(data.path, ".tar", tasks)
    excluded = Excluded() if found_files is None else found_files.excluded
    found = dict(tasks.map(look_at_tar, [{"name": name} for name in names], {"root": root}))
    tables = [found[number].table for number in range(len(names))]
    rejects = []
    for number, name in enumerate(names):
        excluded.merge(found[number].values["excluded"])
        for entry, problem in found[number].values["rejects"]:
            rejects.append(RejectExample(f"{name}/{entry}", "unusable_name", problem))
    files = [np.full(len(t), number, np.int32) for number, t in enumerate(tables) if t is not None]
    table = pa.concat_tables([table for table in tables if table is not None])
    if not table.num_rows:
        kinds = ", ".join(f"{n} {kind}" for kind, n in excluded.counts.most_common(5))
        raise DataError(
            "E-DATA-073",
            f"the archives hold no images; they hold {kinds or 'nothing'}",
            where=root,
            todo="set data.path to archives with entries such as 0001.jpg and 0001.cls",
        )
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
        left_out=excluded.left_out(),
        listing=found_files,
        rejects=tuple(rejects),
    )


class _Entry(NamedTuple):
    """An image of an archive: its name, the name of its sample, its name without the ending."""

    name: str
    sample: str
    stem: str
    start: int
    num_bytes: int


def look_at_tar(item: dict[str, Any], shared: Any) -> Result:
    """List name, start, size and label of every image of one archive, in its order, as a job."""
    uri = plain.address(shared["root"], item["name"])
    images: dict[str, list[_Entry]] = {}
    labels: dict[str, str] = {}
    excluded, rejects = Excluded(), []
    with storage.open_readable(uri) as file:
        try:
            for member in tar.members(file, storage.size_bytes(uri)):
                _check_member(member, uri)
                if member.kind == "folder":
                    continue
                name = plain.of_path(member.name)
                ending = plain.ending_of(name)
                if plain.is_sidecar(name):
                    excluded.add(plain.SIDECARS, name)
                elif (problem := plain.problem_of(name)) is not None:
                    if ending in listing.IMAGE_ENDINGS:
                        rejects.append([plain.shown(name), problem])
                    else:
                        excluded.add(ending, name)
                elif ending in listing.IMAGE_ENDINGS:
                    folder, slash, base = name.rpartition("/")
                    sample = folder + slash + base.partition(".")[0]
                    stem = name[: -len(ending)]
                    entry = _Entry(name, sample, stem, member.start, member.num_bytes)
                    images.setdefault(sample, []).append(entry)
                elif ending == ".cls" and member.num_bytes <= _MAX_LABEL_BYTES:
                    file.seek(member.start)
                    content = file.read(member.num_bytes)
                    labels[name[: -len(ending)]] = content.decode("utf-8-sig", "replace").strip()
                else:
                    excluded.add(ending, name)
        except tar.BrokenTarError as error:
            raise DataError(
                "E-DATA-075",
                f"the archive is broken: {error}",
                where=uri,
                todo="restore or remove it; compressed archives (.tar.gz) are not read",
            ) from error
    rows = [entry for entries in images.values() for entry in _taken(entries, uri, excluded)]
    rows.sort(key=lambda entry: entry.start)
    found = [labels.get(entry.stem, labels.get(entry.sample, "")) for entry in rows]
    table = pa.table(
        {
            "name": pa.array([entry.name for entry in rows], pa.large_string()),
            "start": pa.array([entry.start for entry in rows], pa.int64()),
            "size": pa.array([entry.num_bytes for entry in rows], pa.int64()),
            "label": pa.array(found, pa.large_string()),
        }
    )
    return Result({"excluded": excluded.values(), "rejects": rejects}, table)


def _taken(entries: list[_Entry], uri: str, excluded: Excluded) -> list[_Entry]:
    """Return the images of one sample: the one of just its name, else all with longer names."""
    whole = [entry for entry in entries if entry.stem == entry.sample]
    if len(whole) > 1 or (not whole and len({entry.stem for entry in entries}) < len(entries)):
        sample = entries[0].sample
        raise DataError(
            "E-DATA-074",
            f"the sample {sample[:200]} has two images",
            where=uri,
            todo="pack one image for each sample",
        )
    if not whole:
        return entries
    for entry in entries:
        if entry is not whole[0]:
            excluded.add("other fields of samples", entry.name)
    return whole


def _check_member(member: tar.Member, uri: str) -> None:
    name = member.name.removesuffix("/") if member.kind == "folder" else member.name
    name = name.removeprefix("./")
    problem = None
    if member.kind == "other":
        problem = "is a link or a device"
    elif name.lower().endswith(_PICKLES):
        problem = "is a pickle, which can run code when it is loaded"
    elif name.startswith(("/", "~")) or ".." in re.split(r"[/\\]", name):
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
    num_without = int(pc.sum(pc.equal(pc.binary_length(labels), 0)).as_py() or 0)
    if num_without == len(labels) and not wanted:
        return None
    if num_without:
        without = table["name"].filter(pc.equal(pc.binary_length(table["label"]), 0))
        raise DataError(
            "E-DATA-077",
            f"{num_without} of {len(labels)} samples have no .cls entry with a number or a name, "
            f"first: {without[0].as_py()[:200]}",
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
