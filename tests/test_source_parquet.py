"""Tables: as this and other programs write them, rows in random access, and hostile ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.ingest.sources import parquet
from tests.loopback_s3 import LoopbackS3
from tests.refusals import raises
from tests.sources import image_bytes, index_of, ingested, stored, write_table

IMAGES = [image_bytes(number) for number in range(30)]
ROWS = {f"{file}/{row}": IMAGES[15 * (file == "b/2.parquet") + row]
        for file in ("a.parquet", "b/2.parquet") for row in range(15)}  # fmt: skip


def write_two(root: Path, **options: Any) -> Path:
    write_table(root / "a.parquet", IMAGES[:15], labels=[n % 3 for n in range(15)], **options)
    write_table(root / "b/2.parquet", IMAGES[15:], labels=[n % 3 for n in range(15)], **options)
    return root


@pytest.mark.parametrize(
    "options",
    [
        {"row_group_size": 4}, {"compression": "zstd"}, {"use_dictionary": False},
        {"version": "1.0", "data_page_version": "2.0"}, {"store_schema": False},
    ],
)  # fmt: skip
def test_all_rows_arrive_whatever_the_encoding(tmp_path: Path, options: dict[str, Any]) -> None:
    write_two(tmp_path / "in", **options)
    uri, manifest, _ = ingested("parquet", tmp_path / "in", tmp_path / "out")
    assert stored(uri, manifest) == ROWS and manifest.class_names is None
    assert manifest.source == {
        "kind": "parquet", "labelled": False, "num_files": 2, "num_images": 30
    }  # fmt: skip


def test_labels_by_number_and_by_name(tmp_path: Path) -> None:
    write_two(tmp_path)
    index = index_of("parquet", tmp_path, label_column="label")
    assert index.labels_N.tolist() == [n % 3 for n in range(15)] * 2
    assert index.class_counts("probe") == [10, 10, 10]
    assert index_of("parquet", tmp_path, label_column="label", labelled=False).class_names is None
    names = pa.array(["cat", "dog", "cat"]).dictionary_encode()
    write_table(tmp_path / "named" / "x.parquet", IMAGES[:3], labels=names)
    index = index_of("parquet", tmp_path / "named" / "x.parquet", label_column="label")
    assert index.class_names == ("cat", "dog") and index.labels_N.tolist() == [0, 1, 0]
    assert index.ids.to_pylist() == ["x.parquet/0", "x.parquet/1", "x.parquet/2"]


def test_a_nested_column_on_s3(s3: LoopbackS3, tmp_path: Path) -> None:
    structs = pa.array([{"bytes": image, "path": "p"} for image in IMAGES[:5]])
    pq.write_table(pa.table({"image": structs}), tmp_path / "t.parquet", row_group_size=2)
    s3.buckets["bucket"]["in/t.parquet"] = (tmp_path / "t.parquet").read_bytes()
    uri, manifest, _ = ingested(
        "parquet", "s3://bucket/in", "s3://bucket/out", image_column="image.bytes"
    )
    assert stored(uri, manifest) == {f"t.parquet/{n}": IMAGES[n] for n in range(5)}


def test_rows_come_from_the_row_groups_that_hold_them(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", IMAGES, row_group_size=7)
    wanted = np.array([29, 0, 13, 14, 6])
    found = dict(parquet.read_rows(str(tmp_path / "t.parquet"), "image", wanted))
    assert found == {position: IMAGES[row] for position, row in enumerate(wanted)}


def test_empty_and_null_images_are_rejects(tmp_path: Path) -> None:
    write_table(tmp_path / "in" / "t.parquet", [IMAGES[0], None, b"", b"text"])
    limits = {"max_reject_frac": 1.0}
    _, manifest, _ = ingested("parquet", tmp_path / "in", tmp_path / "out", ingest=limits)
    assert manifest.rejects.by_reason == {"empty": 2, "not_an_image": 1}


class _Extension(pa.ExtensionType):  # type: ignore[misc]
    loaded = False

    def __init__(self) -> None:
        super().__init__(pa.binary(), "sdclr.hostile.source")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> _Extension:
        cls.loaded = True
        return cls()


@pytest.mark.promise("S2")
def test_extension_types_are_refused_before_they_load(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pa.register_extension_type(_Extension())
    try:
        hostile = pa.ExtensionArray.from_storage(_Extension(), pa.array(IMAGES, pa.binary()))
        pq.write_table(pa.table({"image": hostile}), file)
        _Extension.loaded = False
        with raises("E-DATA-055"):
            index_of("parquet", file)
        with raises("E-DATA-055"):
            list(parquet.read_rows(str(file), "image", np.array([0])))
        assert not _Extension.loaded
        pq.read_table(file)
        assert _Extension.loaded  # control: a plain reader does load it
    finally:
        pa.unregister_extension_type("sdclr.hostile.source")


def test_tables_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_two(tmp_path / "in")
    for keys, refusal in (
        ({"image_column": "picture"}, "E-DATA-057 picture image label"),
        ({"image_column": "image.bytes"}, "E-DATA-057 image.bytes"),
        ({"image_column": "label"}, "E-DATA-058 int64"),
        ({"label_column": "image"}, "E-DATA-058 binary"),
    ):
        with raises(*refusal.split()):
            index_of("parquet", tmp_path / "in", **keys)
    (tmp_path / "text.parquet").write_bytes(b"PAR1 no PAR1")
    with raises("E-DATA-056"):
        index_of("parquet", tmp_path / "text.parquet")
    write_table(tmp_path / "null.parquet", IMAGES[:2], labels=[1, None])
    with raises("E-DATA-054", "1"):
        index_of("parquet", tmp_path / "null.parquet", label_column="label")
    write_table(tmp_path / "none.parquet", [])
    with raises("E-DATA-052"):
        index_of("parquet", tmp_path / "none.parquet")
    monkeypatch.setattr(parquet, "_MAX_GROUP_BYTES", 100)
    with raises("E-DATA-053", "0", "100"):
        index_of("parquet", tmp_path / "in")
