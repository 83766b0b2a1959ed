"""WebDataset shards: tar files; entries that differ only in the ending make a sample.

The image is the entry with the ending of an image; `.cls` is its label, a number or a name. Stems
may have dots. `a.b.mask.png` is another field of the image `a.b.jpg`, whose name it continues
behind a dot; it is counted and left alone, unless it has a `.cls` of its own. An image without
one has the label of the longest name that it continues so: `s.left.png` and `s.right.png` that of
`s.cls`. They are two images of one sample, and a line says so. An archive is refused whole, before
anything is written, when an entry leads outside (`..`, absolute), is a link or a device, or is a
pickle: whoever packed it is not to be trusted with the rest either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
from pipeline.ingest.sources.class_names import classes_of
from pipeline.ingest.sources.index import Containers, ImageIndex
from pipeline.ingest.sources.listing import Excluded
from pipeline.ingest.sources.parquet import files_of
from pipeline.ingest.sources.set_names import note_of_sets

_PICKLES = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".joblib")
_BLOCK_BYTES = 4 * 2**20
_MAX_LABEL_BYTES = 256
_CUT = "archives have no end mark, so their last images may be missing"
_SHARED = "images share a sample with others and have no .cls of their own"


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
    rejects, shared = [], Excluded()
    for number, name in enumerate(names):
        excluded.merge(found[number].values["excluded"])
        shared.merge(found[number].values["shared"])
        for entry, problem in found[number].values["rejects"]:
            rejects.append(RejectExample(f"{name}/{entry}", "unusable_name", problem))
    files = [np.full(len(t), number, np.int32) for number, t in enumerate(tables) if t is not None]
    table = pa.concat_tables([table for table in tables if table is not None])
    if not table.num_rows:
        kinds = ", ".join(f"{n} {kind}" for kind, n in excluded.counts.most_common(5))
        raise DataError(
            "E-DATA-073",
            f"the archives hold no images; they hold {kinds or 'nothing'}",
            where=data.path,
            todo="set data.path to archives with entries such as 0001.jpg and 0001.cls",
        )
    prefixes = pa.array(names, pa.large_string()).take(pa.array(np.concatenate(files)))
    ids = listing.joined(prefixes, table["name"].combine_chunks())
    num_bytes_N, place_N = table["size"].to_numpy(), table["start"].to_numpy()
    file_N = np.concatenate(files)
    uris = [plain.address(root, name) for name in names]
    labels = _labels(table, data.labelled, file_N, uris)
    class_names, labels_N = classes_of(labels, len(ids))
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
        notes=(*_notes(shared), *note_of_sets(names)),
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
                    label = content.decode("utf-8-sig", "backslashreplace")
                    labels[name[: -len(ending)]] = label.strip()
                else:
                    excluded.add(ending, name)
        except tar.BrokenTarError as error:
            raise DataError(
                "E-DATA-075",
                f"the archive is broken: {error}",
                where=uri,
                todo="restore or remove it; compressed archives (.tar.gz) are not read",
            ) from error
        shared = Excluded()
        if not tar.has_end_mark(file, storage.size_bytes(uri)):
            shared.add(_CUT, item["name"])
    rows = _rows(images.values(), labels, uri, excluded, shared)
    used = [_nearest(entry, labels) for entry in rows]
    for stem in sorted(set(labels).difference(used)):
        excluded.add("labels without an image", f"{stem}.cls")
    found = ["" if stem is None else labels[stem] for stem in used]
    table = pa.table(
        {
            "name": pa.array([entry.name for entry in rows], pa.large_string()),
            "start": pa.array([entry.start for entry in rows], pa.int64()),
            "size": pa.array([entry.num_bytes for entry in rows], pa.int64()),
            "label": pa.array(found, pa.large_string()),
        }
    )
    values = {"excluded": excluded.values(), "rejects": rejects, "shared": shared.values()}
    return Result(values, table)


def _rows(
    samples: Iterable[list[_Entry]],
    labels: Mapping[str, str],
    uri: str,
    excluded: Excluded,
    shared: Excluded,
) -> list[_Entry]:
    """Return the images in the order of the archive; count those that share a sample."""
    rows = []
    for entries in samples:
        taken = _taken(entries, labels, uri, excluded)
        rows += taken
        for entry in taken if len(taken) > 1 else ():
            if entry.stem not in labels:
                shared.add(_SHARED, entry.name)
    return sorted(rows, key=lambda entry: entry.start)


def _taken(
    entries: list[_Entry], labels: Mapping[str, str], uri: str, excluded: Excluded
) -> list[_Entry]:
    """Return the images of one sample that are not another field of one of them."""
    stems = {entry.stem for entry in entries}
    taken: dict[str, _Entry] = {}
    for entry in entries:
        if entry.stem not in labels and not stems.isdisjoint(_shorter(entry)):
            excluded.add("other fields of samples", entry.name)
        elif entry.stem in taken:
            raise DataError(
                "E-DATA-074",
                f"the sample {entry.stem[:200]} has two images",
                where=uri,
                todo="pack one image for each sample",
            )
        else:
            taken[entry.stem] = entry
    return list(taken.values())


def _shorter(entry: _Entry) -> list[str]:
    """Return the names that the stem continues behind a dot, the longest first."""
    dots = range(len(entry.stem) - 1, len(entry.sample) - 1, -1)
    return [entry.stem[:dot] for dot in dots if entry.stem[dot] == "."]


def _nearest(entry: _Entry, labels: Mapping[str, str]) -> str | None:
    """Return the name of the label of an image: its own, else the longest that it continues."""
    return next((stem for stem in (entry.stem, *_shorter(entry)) if stem in labels), None)


def _notes(shared: Excluded) -> tuple[str, ...]:
    kinds = ((_SHARED, ", each of them taken as an image"), (_CUT, ""))
    return tuple(
        f"{shared.counts[kind]} {kind}{more}: {', '.join(shared.values()[kind][1])}"
        for kind, more in kinds
        if kind in shared.counts
    )


def _check_member(member: tar.Member, uri: str) -> None:
    name = member.name.removesuffix("/") if member.kind == "folder" else member.name
    name = name.removeprefix("./")
    problem = None
    if member.kind == "other":
        problem = "is a link or a device"
    elif name.lower().endswith(_PICKLES):
        problem = "is a pickle, which can run code when it is loaded"
    elif name.startswith("/") or ".." in re.split(r"[/\\]", name):
        problem = "leads outside the archive or is not in plain form"
    if problem is not None:
        raise DataError(
            "E-DATA-076",
            f"the archive is refused: its entry {member.name[:200]!r} {problem}",
            where=uri,
            todo="do not use this archive; pack it again without such entries",
        )


def _labels(
    table: pa.Table, wanted: bool | None, file_N: np.ndarray[Any, Any], uris: list[str]
) -> pa.LargeStringArray | None:
    """Return the labels, None when there are none; refuse those on some images only."""
    labels = table["label"].combine_chunks()
    without = np.flatnonzero(pc.equal(labels, "").to_numpy(zero_copy_only=False))
    if wanted is False or (len(without) == len(labels) and not wanted):
        return None
    if len(without):
        first = int(without[0])
        raise DataError(
            "E-DATA-077",
            f"{len(without)} of {len(labels)} images have no .cls entry with a number or a name, "
            f"first: {table['name'][first].as_py()[:200]}",
            where=uris[int(file_N[first])],
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
