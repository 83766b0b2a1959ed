"""Inputs that people bring and that look like something else: each is read right or named."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cluster.jobs import ThreadTasks
from pipeline.dataset import formats
from pipeline.ingest.origin import origin_of
from pipeline.ingest.plan import dry_run
from tests.refusals import raises
from tests.sources import (
    image_bytes,
    index_of,
    ingested,
    settings,
    write_files,
    write_table,
    write_tar,
)


@pytest.mark.parametrize("source", ["parquet", "webdataset"])
def test_a_folder_may_be_named_like_a_file(source: str, tmp_path: Path) -> None:
    ending = {"parquet": ".parquet", "webdataset": ".tar"}[source]
    place = tmp_path / f"photos{ending}"
    for n in range(2):
        if source == "parquet":
            write_table(place / f"part-{n}{ending}", [image_bytes(n)])
        else:
            write_tar(place / f"{n}{ending}", {"a.png": image_bytes(n)})
    write_files(place, {"_SUCCESS": b""})
    _, manifest, _ = ingested(source, place, tmp_path / "out")
    assert manifest.sets["pretrain"].rows == 2 and manifest.left_out["sidecars"].files == 1
    again = origin_of(settings(source, place, tmp_path / "out").data, ThreadTasks())
    assert again == manifest.origin


def listed(root: Path, content: str | bytes, ending: str = "csv") -> Path:
    files = {f"i{n}.png": image_bytes(n) for n in range(2)}
    path = write_files(root, {**files, "x/y.png": image_bytes(2)}) / f"l.{ending}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        "path,label\ri0.png,a\ri1.png,b\r",
        "path,label\r\ni0.png,a\r\ni1.png,b",
        "path , label\n i0.png , a \n\n i1.png , b \n\n",
        "path, label,\ni0.png, a,\ni1.png, b,\n",
        "\n\ni0.png,a\ni1.png,b\n",
    ],
    ids=["carriage return", "windows", "blanks", "last comma", "empty lines"],
)
def test_lists_as_programs_write_them(content: str, tmp_path: Path) -> None:
    index = index_of("list", listed(tmp_path, content))
    assert index.ids.to_pylist() == ["i0.png", "i1.png"] and index.class_names == ("a", "b")


def test_blanks_that_some_cells_have_belong_to_them(tmp_path: Path) -> None:
    index = index_of("list", listed(tmp_path, "i0.png,a \ni1.png,a\n"))
    assert index.class_names == ("a", "a ")


@pytest.mark.parametrize(
    ("content", "ending", "refusal"),
    [
        ("path,label\n", "csv", "E-DATA-061 images"),
        ("é.png,a\n".encode("latin-1"), "csv", "E-DATA-061 UTF-8"),
        ("i0.png,a\n".encode("utf-16-le"), "csv", "E-DATA-061 UTF-8"),
        ("i0.png -1\ni1.png 0\n", "txt", "E-DATA-068 -1"),
        ("https://x.org/i0.png,a\n", "csv", "E-DATA-064 https://x.org/i0.png"),
    ],
)
def test_lists_that_cannot_be_used_are_refused_by_cause(
    content: str | bytes, ending: str, refusal: str, tmp_path: Path
) -> None:
    with raises(*refusal.split()):
        index_of("list", listed(tmp_path, content, ending))


@pytest.mark.parametrize(
    ("content", "ending", "word"),
    [
        ("image_id,dx\ni0,a\ni1,b\n", "csv", ".png"),
        ("x\\y.png,a\n", "csv", "/"),
        ("i0.png cat\ni1.png dog\n", "txt", ".csv"),
        ("z0.png,a\n", "csv", "data.image_root"),
    ],
)
def test_names_of_no_file_bring_the_likely_cause(
    content: str, ending: str, word: str, tmp_path: Path
) -> None:
    with raises("E-DATA-066") as caught:
        index_of("list", listed(tmp_path, content, ending))
    assert word in caught.value.todo


LABELS = {
    "dates": [datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)],
    "decimals": [decimal.Decimal("0.0"), decimal.Decimal("1.0")],
}
EMPTY_LABELS: dict[str, list[str | float | None]] = {
    "null": ["a", None], "blank": ["a", ""], "not a number": [0.0, float("nan")],
}  # fmt: skip


def labelled_table(root: Path, labels: list[object]) -> Path:
    content = pa.array([image_bytes(n) for n in range(len(labels))], pa.binary())
    pq.write_table(pa.table({"image": content, "label": pa.array(labels)}), root / "t.parquet")
    return root / "t.parquet"


def test_labels_of_every_plain_type_are_classes(tmp_path: Path) -> None:
    found = {}
    for kind, labels in LABELS.items():
        path = labelled_table(tmp_path, list(labels))
        found[kind] = index_of("parquet", path, label_column="label").class_names
    assert found == {"dates": ("2020-01-01", "2021-01-01"), "decimals": ("0", "1")}


@pytest.mark.parametrize("kind", EMPTY_LABELS)
def test_empty_labels_are_no_class(kind: str, tmp_path: Path) -> None:
    path = labelled_table(tmp_path, list(EMPTY_LABELS[kind]))
    with raises("E-DATA-054", "1"):
        index_of("parquet", path, label_column="label")
    assert len(index_of("parquet", path, label_column="label", labelled=False).ids) == 2


def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path: Path) -> None:
    entries = {"a.png": image_bytes(0), "a.cls": b"\xef\xbb\xbf0\r\n"}
    entries |= {"b.png": image_bytes(1), "b.cls": b"1"}
    path = write_tar(tmp_path / "a.tar", dict(entries))
    assert index_of("webdataset", path).class_names == ("0", "1")


def test_train_and_test_without_classes_are_none(tmp_path: Path) -> None:
    write_files(tmp_path, {"train/1.png": image_bytes(0), "test/2.png": image_bytes(1)})
    index = index_of("folder", tmp_path)
    assert index.class_names is None and any("/train" in note for note in index.notes)
    assert index_of("folder", tmp_path, labelled=True).class_names == ("test", "train")


def test_classes_one_folder_deeper_are_pointed_to(tmp_path: Path) -> None:
    files = {f"photos/{kind}/{n}.png": image_bytes(n) for kind in "ab" for n in range(2)}
    write_files(tmp_path, files)
    index = index_of("folder", tmp_path)
    assert index.class_names is None
    assert any(f"data.path={tmp_path}/photos" in note for note in index.notes)
    assert index_of("folder", tmp_path / "photos").class_names == ("a", "b")
    assert not index_of("folder", tmp_path, labelled=False).notes  # asked for


@pytest.mark.parametrize("kind", ["heic", "text"])
def test_photographs_of_a_phone_bring_the_package_that_reads_them(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "reads_heif", lambda: False)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
    write_files(tmp_path / "in", {"IMG_1.HEIC": heic if kind == "heic" else b"text"})
    with raises("E-DATA-079") as caught:
        dry_run(settings("folder", tmp_path / "in", tmp_path / "out"))
    assert ("pip install pillow-heif" in caught.value.todo) is (kind == "heic")
