"""Shards: the same rows give the same bytes, and every flipped byte is refused."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.manifest import (
    ShardInfo,
)
from pipeline.dataset.shards import read_hashes, read_shard, whole_column, write_shard
from pipeline.errors import DataError
from tests.refusals import raises

NAME = "shards/pretrain-00000.parquet"
IDS = ["a/1.png", "b/ü.png", "c"]
IMAGES = [bytes([row]) * 12 for row in range(3)]


def one_shard(root: Path, labels: list[int | None] | None = None, name: str = NAME) -> ShardInfo:
    labels = [2, 0, 1] if labels is None else labels
    return write_shard(str(root), name, ids=IDS, images=IMAGES, labels=labels)


def described(shard_file: Path, rows: int = 3) -> ShardInfo:
    """What a manifest would say of any file: hash and size are right."""
    data = shard_file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return ShardInfo(name=NAME, rows=rows, bytes=len(data), sha256=digest)


def test_rows_come_back(tmp_path: Path) -> None:
    rows = read_shard(str(tmp_path), one_shard(tmp_path))
    assert rows.ids == tuple(IDS) and rows.images == tuple(IMAGES) and len(rows) == 3
    assert rows.labels.tolist() == [2, 0, 1] and rows.labels.dtype == np.int64
    pixels = rows.raw_pixels(2, 2)
    assert pixels.shape == (3, 2, 2, 3) and (pixels[2] == 2).all()
    with raises("E-DATA-023", "12") as caught:
        rows.raw_pixels(2, 3)
    assert "a/1.png" in caught.value.where


def test_unlabelled_rows_have_label_minus_one(tmp_path: Path) -> None:
    info = one_shard(tmp_path, labels=[None, None, None])
    assert read_shard(str(tmp_path), info).labels.tolist() == [-1, -1, -1]


def test_columns_are_exactly_the_promised_ones(tmp_path: Path) -> None:
    one_shard(tmp_path)
    schema = pq.read_schema(tmp_path / NAME)
    assert [(field.name, str(field.type)) for field in schema] == [
        ("id", "string"),
        ("image", "binary"),
        ("label", "int32"),
        ("sha256", "string"),
    ]
    table = pq.read_table(tmp_path / NAME)
    expected = [hashlib.sha256(image).hexdigest() for image in IMAGES]
    assert table["sha256"].to_pylist() == expected


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    first, second = one_shard(tmp_path / "1"), one_shard(tmp_path / "2")
    assert first == second
    assert (tmp_path / "1" / NAME).read_bytes() == (tmp_path / "2" / NAME).read_bytes()
    assert one_shard(tmp_path / "3", labels=[2, 0, 0]).sha256 != first.sha256


@pytest.mark.promise("R11", "R28")
def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    info = one_shard(tmp_path)
    file = tmp_path / NAME
    good = file.read_bytes()
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 1
        file.write_bytes(bytes(bad))
        with raises("E-DATA-016") as caught:
            read_shard(str(tmp_path), info)
        assert str(file) in caught.value.where
    file.write_bytes(good[:-1])
    with raises("E-DATA-016"):
        read_shard(str(tmp_path), info)
    file.write_bytes(good)
    read_shard(str(tmp_path), info)  # control: untouched bytes pass
    file.unlink()
    with raises("E-STORAGE-370"):
        read_shard(str(tmp_path), info)


@pytest.mark.promise("R11", "R28", control=True)
def test_control_a_plain_reader_does_not_notice_a_changed_image(tmp_path: Path) -> None:
    one_shard(tmp_path)
    file = tmp_path / NAME
    content = file.read_bytes()
    file.write_bytes(content.replace(IMAGES[1], IMAGES[1][:-1] + b"x"))
    assert pq.read_table(file)["image"].to_pylist()[1] == IMAGES[1][:-1] + b"x"


@pytest.mark.promise("R28")
def test_a_wrong_row_is_named_even_in_a_file_whose_hash_fits(tmp_path: Path) -> None:
    one_shard(tmp_path)
    file = tmp_path / NAME
    file.write_bytes(file.read_bytes().replace(IMAGES[1], b"\xff" * 12))
    with raises("E-DATA-018", "b/ü.png"):
        read_shard(str(tmp_path), described(file))


class _Extension(pa.ExtensionType):  # type: ignore[misc]
    loaded = False

    def __init__(self) -> None:
        super().__init__(pa.binary(), "sdclr.hostile")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> _Extension:
        cls.loaded = True
        return cls()


@pytest.mark.promise("S2")
def test_extension_types_are_refused_before_they_load(tmp_path: Path) -> None:
    file = tmp_path / NAME
    file.parent.mkdir()
    pa.register_extension_type(_Extension())
    try:
        hostile = pa.ExtensionArray.from_storage(_Extension(), pa.array(IMAGES, pa.binary()))
        table = pa.table({"id": IDS, "image": hostile})
        pq.write_table(table, file)
        _Extension.loaded = False
        with raises("E-DATA-020"):
            read_shard(str(tmp_path), described(file))
        assert not _Extension.loaded
        pq.read_table(file)
        assert _Extension.loaded  # control: a plain reader does load it
    finally:
        pa.unregister_extension_type("sdclr.hostile")


def _table(**changes: Any) -> pa.Table:
    columns = {
        "id": pa.array(IDS),
        "image": pa.array(IMAGES),
        "label": pa.array([0, 1, 2], pa.int32()),
        "sha256": pa.array([hashlib.sha256(image).hexdigest() for image in IMAGES]),
    }
    columns.update(changes)
    required = {"id", "image", "sha256"}
    fields = [
        pa.field(name, column.type, nullable=name not in required)
        for name, column in columns.items()
    ]
    return pa.table(list(columns.values()), schema=pa.schema(fields))


_PLAIN = {"compression": "NONE", "use_dictionary": False, "store_schema": False}


@pytest.mark.parametrize(
    ("table", "options", "refusal"),
    [
        (_table(), {**_PLAIN, "compression": "zstd"}, "E-DATA-026"),
        (_table(), {**_PLAIN, "use_dictionary": True}, "E-DATA-026"),
        (_table(extra=pa.array([1, 2, 3])), _PLAIN, "E-DATA-024"),
        (_table(label=pa.array([0, 1, 2], pa.int64())), _PLAIN, "E-DATA-024"),
        (_table().select(["image", "id", "label", "sha256"]), _PLAIN, "E-DATA-024"),
        (_table().slice(0, 2), _PLAIN, "E-DATA-017 2 3"),
    ],
)
@pytest.mark.promise("S2")
def test_foreign_parquet_is_refused(
    tmp_path: Path, table: pa.Table, options: dict[str, Any], refusal: str
) -> None:
    file = tmp_path / NAME
    file.parent.mkdir()
    pq.write_table(table, file, **options)
    with raises(*refusal.split()):
        read_shard(str(tmp_path), described(file))


@pytest.mark.promise("S2", control=True)
def test_control_the_same_table_written_plainly_is_read(tmp_path: Path) -> None:
    file = tmp_path / NAME
    file.parent.mkdir()
    pq.write_table(_table(), file, **_PLAIN)
    assert read_shard(str(tmp_path), described(file)).ids == tuple(IDS)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 8 + b"PAR1", b"x" * 100])
def test_files_that_are_not_parquet_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / NAME
    file.parent.mkdir()
    file.write_bytes(content)
    with raises("E-DATA-019"):
        read_shard(str(tmp_path), described(file))


@pytest.mark.promise("S10")
def test_names_that_lead_outside_are_refused(tmp_path: Path) -> None:
    info = dataclasses.replace(one_shard(tmp_path), name="../secret.parquet")
    with raises("E-DATA-089"):
        read_shard(str(tmp_path / "shards"), info)


def test_hashes_are_read_without_the_images(tmp_path: Path) -> None:
    info = one_shard(tmp_path)
    ids, digests = read_hashes(str(tmp_path), info)
    assert ids == IDS and digests == [hashlib.sha256(image).hexdigest() for image in IMAGES]
    with raises("E-DATA-022", "3", "4"):
        read_hashes(str(tmp_path), dataclasses.replace(info, rows=4))
    content = (tmp_path / NAME).read_bytes()
    for broken in (b"", b"PAR1" + bytes(20), content[:-1], content[:-8] + b"\xff\xff\xff\x7fPAR1"):
        (tmp_path / NAME).write_bytes(broken)
        with pytest.raises(DataError):
            read_hashes(str(tmp_path), info)
    table = pa.table({"id": ["a"], "sha256": ["b"]})
    pq.write_table(table, tmp_path / NAME)
    with raises("E-DATA-020"):
        read_hashes(str(tmp_path), dataclasses.replace(info, rows=1))


def test_a_column_of_one_chunk_is_not_copied() -> None:
    table = pa.table({"image": pa.array([b"ab", b"cde"], pa.binary())})
    column = whole_column(table, "image")
    assert column.buffers()[2].address == table["image"].chunk(0).buffers()[2].address
    twice = pa.concat_tables([table, table])
    assert whole_column(twice, "image").to_pylist() == [b"ab", b"cde"] * 2
    copied = table["image"].combine_chunks()  # control: what this avoids
    assert copied.buffers()[2].address != column.buffers()[2].address
