"""The manifest of a data set: what was ingested, shard by shard, with hashes.

It is written last, so its presence says that the set is complete; its own hash covers every other
field. Reading checks, in this order: JSON, schema version, hash, types, names, sums.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, with_config

from pipeline import storage
from pipeline.errors import DataError

SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"
_STRICT = ConfigDict(extra="forbid", strict=True)
_AGAIN = "delete the data set's folder and run the ingest stage again"

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SetName = Literal["pretrain", "probe", "val", "test", "fewshot"]
SET_NAMES: tuple[SetName, ...] = get_args(SetName)


@with_config(_STRICT)
@dataclass(frozen=True)
class ShardInfo:
    """One Parquet file: name relative to the data set, rows, size in bytes, hash of the file."""

    name: str
    rows: Annotated[int, Field(ge=1)]
    bytes: Count
    sha256: Sha256


@with_config(_STRICT)
@dataclass(frozen=True)
class SetInfo:
    """One set of images; `class_counts` per class index, None when unlabelled."""

    rows: Count
    class_counts: tuple[Count, ...] | None
    shards: tuple[ShardInfo, ...]
    # Where images that a set before this one stores are; see `pipeline.dataset.sets`.
    order: ShardInfo | None = None


@with_config(_STRICT)
@dataclass(frozen=True)
class ImageInfo:
    """Storage format of the `image` column.

    raw: uint8 RGB, row by row, height_px x width_px x channels. original: the file's own bytes, or
    those of its reduced copy, of any size (height_px and width_px are None).
    """

    encoding: Literal["raw", "original"]
    height_px: Annotated[int, Field(ge=1)] | None
    width_px: Annotated[int, Field(ge=1)] | None
    channels: Literal[3] = 3


@with_config(_STRICT)
@dataclass(frozen=True)
class RejectExample:
    """One image that was left out."""

    id: str
    reason: str
    detail: str


@with_config(_STRICT)
@dataclass(frozen=True)
class Rejects:
    """Images that were left out, each counted once; `examples` are the first 100 by id."""

    total: Count
    by_reason: dict[str, Count]
    examples: tuple[RejectExample, ...]


@with_config(_STRICT)
@dataclass(frozen=True)
class LeftOut:
    """Files that a source does not take for one reason: how many, and the first names."""

    files: Count
    examples: tuple[str, ...]


@with_config(_STRICT)
@dataclass(frozen=True)
class Place:
    """A place that a data set was made of, with a cheap fingerprint of its files.

    Attributes:
        uri: absolute.
        host: of a local place; empty for an object store.
        files, bytes: how many files of the kind, and their size.
        newest: latest change in UTC; empty where it is not known.
        sha256: of a list's content, a folder's names and sizes, parts of one table or archive.
    """

    uri: str
    host: str
    files: Count
    bytes: Count
    newest: str
    sha256: str


@with_config(_STRICT)
@dataclass(frozen=True)
class Duplicates:
    """Images stored under different names with identical bytes.

    Attributes:
        num_groups: sets of images of the same bytes.
        num_images: images beyond the first of each group.
        num_across_sets: groups with images of test or val and of another set.
        dropped: whether only the first of each group was kept.
        examples: names of the first 100 groups, the winner first.
    """

    num_groups: Count
    num_images: Count
    num_across_sets: Count
    dropped: bool
    examples: tuple[tuple[str, ...], ...]


@with_config(_STRICT)
@dataclass(frozen=True)
class Manifest:
    """A whole data set; `sets` always holds "pretrain". Build it with `hash=""`, then `sealed`."""

    name: str
    source: dict[str, JsonValue]
    image: ImageInfo
    class_names: tuple[str, ...] | None
    sets: dict[SetName, SetInfo]
    fewshot: tuple[tuple[str, ...], ...]
    rejects: Rejects
    config: dict[str, dict[str, JsonValue]]
    hash: str
    left_out: dict[str, LeftOut] = field(default_factory=dict)  # by ending, or as what they are
    # By key of `data`; no part of the hash: the same images may come from another place.
    origin: dict[str, Place] = field(default_factory=dict)
    schema_version: Literal[2] = 2
    duplicates: Duplicates | None = None  # None: not looked for

    def has_labels(self, set_name: SetName = "pretrain") -> bool:
        """Return whether every image of a set has a class."""
        return self.class_names is not None and self.sets[set_name].class_counts is not None

    def files(self) -> Iterator[ShardInfo]:
        """Return all shards and the order files of sets."""
        yield from self.shards()
        for info in self.sets.values():
            if info.order is not None:
                yield info.order

    def shards(self) -> Iterator[ShardInfo]:
        """Yield all shards of all sets."""
        for info in self.sets.values():
            yield from info.shards


_ADAPTER: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def canonical_hash(content: Mapping[str, object]) -> str:
    """Hash a JSON object without its "hash" by SHA-256: keys sorted, no spaces, ASCII."""
    rest = {key: value for key, value in content.items() if key not in ("hash", "origin")}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(manifest: Manifest) -> Manifest:
    """Return the manifest with its hash filled in."""
    return replace(manifest, hash=canonical_hash(asdict(manifest)))


def write_manifest(data_uri: str, manifest: Manifest) -> None:
    """Publish the manifest; from here on the data set exists. Call it last."""
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True, allow_nan=False)
    storage.write_bytes(storage.join(data_uri, MANIFEST_NAME), text.encode() + b"\n")


def read_manifest(data_uri: str) -> Manifest:
    """Read and check the manifest of the data set at `data_uri`.

    Raises:
        DataError: missing, torn, of another schema version, altered, inconsistent, or with names
            that lead outside the data set.
        StorageError: the storage does not answer or denies access.
    """
    uri = storage.join(data_uri, MANIFEST_NAME)
    if not storage.exists(uri):
        raise DataError(
            "E-DATA-006", "there is no ingested data set", where=uri, todo="run the ingest stage"
        )
    try:
        content = json.loads(storage.read_bytes(uri))
    except (ValueError, RecursionError) as error:
        raise DataError(
            "E-DATA-007", "the manifest is torn: not JSON", where=uri, todo=_AGAIN
        ) from error
    if not isinstance(content, dict):
        raise DataError("E-DATA-008", "the manifest is not a JSON object", where=uri, todo=_AGAIN)
    version = content.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise DataError(
            "E-DATA-009",
            f"the manifest has schema version {version!r:.40}, this program reads {SCHEMA_VERSION}",
            where=uri,
            todo="use the program version that made the data set, or ingest it again",
        )
    try:
        expected = canonical_hash(content)
    except ValueError as error:  # NaN is no JSON, though Python reads it
        raise DataError(
            "E-DATA-010", "the manifest is not strict JSON", where=uri, todo=_AGAIN
        ) from error
    if content.get("hash") != expected:
        raise DataError(
            "E-DATA-011", "the manifest was altered: its hash differs", where=uri, todo=_AGAIN
        )
    try:
        manifest = _ADAPTER.validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"the manifest is malformed at {place}: {first['msg']}"
        raise DataError("E-DATA-012", what, where=uri, todo=_AGAIN) from error
    _check_names(manifest)
    _check_sums(manifest, uri)
    return manifest


def verify_shards(data_uri: str, manifest: Manifest) -> None:
    """Refuse a data set whose folder has missing, extra or short shards; reads no shard.

    Raises:
        DataError: naming the first shards concerned.
    """
    folder = storage.join(data_uri, "shards")
    found = {f"shards/{name}": size for name, size in storage.list_sizes(folder).items()}
    expected = {file.name: file.bytes for file in manifest.files()}
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    wrong = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    for kind, names in (("missing", missing), ("extra", extra), ("of the wrong size", wrong)):
        if names:
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise DataError(
                "E-DATA-013", f"{len(names)} shards {kind}: {listed}", where=data_uri, todo=_AGAIN
            )


def _check_names(manifest: Manifest) -> None:
    for shard in manifest.files():
        storage.safe_name(shard.name)
        folder, _, name = shard.name.partition("/")
        if folder != "shards" or not name or "/" in name:
            raise DataError(
                "E-DATA-014", "a shard is outside shards/", where=shard.name[:200], todo=_AGAIN
            )


def _check_sums(manifest: Manifest, uri: str) -> None:
    problems = []
    names = [file.name for file in manifest.files()]
    if len(set(names)) != len(names):
        problems.append("a shard is listed twice")
    if "pretrain" not in manifest.sets:
        problems.append("there is no pretrain set")
    image = manifest.image
    if (image.encoding == "raw") != (image.height_px is not None and image.width_px is not None):
        problems.append("image sizes do not fit the encoding")
    for name, info in manifest.sets.items():
        stored_rows = sum(shard.rows for shard in info.shards)
        listed_rows = stored_rows if info.order is None else info.order.rows
        if listed_rows != info.rows or stored_rows > info.rows:
            problems.append(f"rows of {name} do not add up")
        if info.class_counts is not None:
            if manifest.class_names is None or len(info.class_counts) != len(manifest.class_names):
                problems.append(f"class counts of {name} do not fit the class names")
            elif sum(info.class_counts) != info.rows:
                problems.append(f"class counts of {name} do not add up")
    if problems:
        what = "the manifest is inconsistent: " + "; ".join(problems)
        raise DataError("E-DATA-015", what, where=uri, todo=_AGAIN)
