"""Origin of a data set: recorded with it, and compared before it is used again."""

from __future__ import annotations

import hashlib
import socket
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.cluster.jobs import Tasks
from pipeline.config.data import Data
from pipeline.console import counted
from pipeline.dataset.manifest import Place
from pipeline.errors import DataError, StorageError
from pipeline.ingest.sources import listing, path_list
from pipeline.ingest.sources.listing import Listing

_NUM_SAMPLED = 64
_NUM_STRETCHES, _STRETCH_BYTES = 8, 64 * 1024
_ENDINGS = {
    "folder": listing.IMAGE_ENDINGS, "parquet": (".parquet",), "webdataset": (".tar",)
}  # fmt: skip


def absolute_places(data: Data) -> dict[str, str]:
    """Return the absolute place of every key of `data` that names one, but for `data.root`."""
    named = {"path": data.path, "image_root": data.image_root}
    if data.source == "list":
        named["image_root"] = path_list.root_of(data)
    for name in data.sets.given:
        value = getattr(data.sets, name)
        uris = value if isinstance(value, tuple) else (value,)
        for number, uri in enumerate(uris):
            named[f"sets.{name}" if len(uris) == 1 else f"sets.{name}.{number}"] = uri
    return {key: storage.absolute(uri) for key, uri in named.items() if uri is not None}


def origin_of(data: Data, tasks: Tasks, found: Listing | None = None) -> dict[str, Place]:
    """Return the places that a data set is made of, each with a cheap fingerprint.

    Folders are listed, lists are hashed, no image is opened.

    Args:
        data: the section of the configuration.
        tasks: what listing large places is shared out to.
        found: the listing of `data.path`, if it was made already.

    Raises:
        StorageError: a place is not there, or the storage does not answer.
        DataError: the folder is empty or holds nothing of the kind.
    """
    origin = {}
    for key, uri in absolute_places(data).items():
        host = "" if "://" in uri else socket.gethostname()
        if key == "path" and data.source in _ENDINGS:
            endings = _ENDINGS[data.source]
            if data.source == "folder" or not listing.is_one_file(uri, endings[0]):
                found = found or listing.list_files(uri, endings, tasks)
                origin[key] = _listed(uri, host, found)
                continue
        if key == "image_root":
            origin[key] = _sampled(uri, host, data)
        elif key == "path" and data.source in ("cifar10", "cifar100"):
            sizes = storage.list_tree(uri)
            origin[key] = Place(uri, host, len(sizes), sum(sizes.values()), "", _hash(str(sizes)))
        elif key == "path" and data.source in _ENDINGS:
            origin[key] = _one_file(uri, host)
        else:
            content = storage.read_bytes(uri)
            digest = hashlib.sha256(content).hexdigest()
            origin[key] = Place(uri, host, 1, len(content), "", digest)
    return origin


def check_origin(
    recorded: dict[str, Place], data: Data, tasks: Tasks, *, data_uri: str
) -> list[str]:
    """Refuse a data set whose source is not what it was made of; return what should be said.

    A source that is gone is no reason to refuse: the data set holds its images.

    Raises:
        DataError: a place has other files than then, naming it and what differs.
        StorageError: the storage does not answer or denies access.
    """
    try:
        now = origin_of(data, tasks)
    except StorageError as error:
        if not storage.is_missing(error):
            raise
        return ["the source is not there any more: the data set is used as it was made"]
    except DataError as error:
        if error.id not in ("E-DATA-048", "E-DATA-049"):
            raise
        return ["the source holds no images any more: the data set is used as it was made"]
    notes = []
    for key, then in recorded.items():
        place = now.get(key)
        if place is None or _same(then, place):
            if place is not None and place.newest != then.newest and place.newest and then.newest:
                notes.append(
                    f"data.{key}: the newest file was of {then.newest} and is of {place.newest}, "
                    "with the same sizes"
                )
            continue
        hosts = f" on {then.host}, now on {place.host}" if then.host != place.host else ""
        raise DataError(
            "E-DATA-304",
            f"the data set was made of other images: data.{key} had {_words(then)}{hosts}, it has "
            f"{_difference(then, place)}",
            where=place.uri,
            todo=f"delete {data_uri} to ingest anew, set data.root to another folder, or restore "
            "the images",
        )
    return notes


def _listed(uri: str, host: str, found: Listing) -> Place:
    digest = hashlib.sha256(found.num_bytes_N.tobytes())
    for buffer in found.names.buffers():
        if buffer is not None:
            digest.update(buffer)
    newest = datetime.fromtimestamp(found.newest_s, UTC).isoformat(timespec="seconds")
    num_bytes = int(found.num_bytes_N.sum())
    return Place(
        uri, host, len(found.names), num_bytes, newest if found.newest_s else "",
        digest.hexdigest(),
    )  # fmt: skip


def _one_file(uri: str, host: str) -> Place:
    """Return size and hash of some stretches of a table or an archive, which may be large."""
    num_bytes = storage.size_bytes(uri)
    starts = np.linspace(0, max(0, num_bytes - _STRETCH_BYTES), _NUM_STRETCHES).astype(np.int64)
    digest = hashlib.sha256()
    for start in np.unique(starts).tolist() if num_bytes else ():
        digest.update(storage.read_range(uri, start, start + _STRETCH_BYTES))
    return Place(uri, host, 1, num_bytes, "", digest.hexdigest())


def _sampled(uri: str, host: str, data: Data) -> Place:
    """Return sizes of some of the files that a list names; missing ones count as empty."""
    assert data.path is not None
    paths = path_list.read_list(data.path, path_list.root_of(data), data).paths
    rows = np.unique(np.linspace(0, len(paths) - 1, _NUM_SAMPLED).astype(np.int64))
    sizes = path_list.sizes_of(uri, paths.take(pa.array(rows)).to_pylist())
    known = [size or 0 for size in sizes]
    return Place(uri, host, len(known), sum(known), "", _hash(str(known)))


def _same(then: Place, now: Place) -> bool:
    return (then.files, then.bytes, then.sha256) == (now.files, now.bytes, now.sha256)


def _difference(then: Place, now: Place) -> str:
    """Return what is there now, and what else differs when number, size and date do not."""
    if _words(then) != _words(now):
        return _words(now)
    kind = "content" if now.files == 1 else "names or sizes"
    return f"as many and as large ones now, but other {kind}"


def _words(place: Place) -> str:
    newest = f", the newest of {place.newest}" if place.newest else ""
    files = "1 file" if place.files == 1 else f"{counted(place.files, 'file')}"
    return f"{files} of {place.bytes} bytes{newest}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
