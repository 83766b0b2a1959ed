"""Labels of every source are names as they are: none merged, none unreadable, none unremarked."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.refusals import raises
from tests.sources import image_bytes, index_of, write_files, write_table, write_tar

SOURCES = ("list", "parquet", "webdataset")


def labelled(source: str, folder: Path, labels: list[str]) -> tuple[Path, dict[str, str]]:
    """Write one image of each label; return the place and the keys of the source."""
    images = {f"{number}.png": image_bytes(number) for number in range(len(labels))}
    if source == "list":
        write_files(folder, images)
        rows = "".join(f'{name},"{label}"\n' for name, label in zip(images, labels, strict=True))
        (folder / "list.csv").write_bytes(rows.encode())
        return folder / "list.csv", {}
    if source == "parquet":
        table = write_table(folder / "t.parquet", [*images.values()], labels=labels)
        return table, {"label_column": "label"}
    entries = dict(images)
    for number, label in enumerate(labels):
        entries[f"{number}.cls"] = label.encode()
    return write_tar(folder / "t.tar", {**entries}), {}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("label", ["a\nb", "a\x1b[31m", "x" * 1025])
def test_labels_that_are_no_line_of_text_are_refused(
    tmp_path: Path, source: str, label: str
) -> None:
    if source == "webdataset" and len(label) > 256:
        pytest.skip("so long a .cls is counted as no label")
    place, keys = labelled(source, tmp_path, ["a", label])
    with raises("E-DATA-306"):
        index_of(source, place, **keys)
    assert index_of(source, place, labelled=False).class_names is None


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("labels", "alike"),
    [
        (["cat", "Cat"], True),
        (["café", "cafe\u0301"], True),
        (["1", "\uff11"], True),
        (["7", "007"], True),
        (["big cat", "big  cat"], True),
        (["cat", "cats"], False),
        (["10", "100"], False),
        (["0", "1"], False),
    ],
)
def test_classes_that_look_alike_are_kept_apart_and_told(
    tmp_path: Path, source: str, labels: list[str], alike: bool
) -> None:
    place, keys = labelled(source, tmp_path, labels)
    index = index_of(source, place, **keys)
    assert set(index.class_names or ()) == set(labels)
    shown = {repr(labels[1]), ascii(labels[1])}
    assert any(text in note for note in index.notes for text in shown) is alike


def test_folders_that_look_alike_are_told(tmp_path: Path) -> None:
    files = {
        f"{name}/{number}.png": image_bytes(number) for name in ("cat", "Cat") for number in (0, 1)
    }
    index = index_of("folder", write_files(tmp_path / "f", files))
    assert set(index.class_names or ()) == {"cat", "Cat"}
    assert any("'Cat' and 'cat'" in note for note in index.notes)


def test_labels_in_another_encoding_are_not_merged(tmp_path: Path) -> None:
    entries: dict[str, bytes] = {}
    for number, label in enumerate((b"caf\xe8", b"caf\xe9")):
        entries |= {f"{number}.png": image_bytes(number), f"{number}.cls": label}
    index = index_of("webdataset", write_tar(tmp_path / "t.tar", {**entries}))
    assert index.class_names == ("caf\\xe8", "caf\\xe9")


@pytest.mark.parametrize("twice", ["image", "label"])
def test_columns_of_one_name_are_refused(tmp_path: Path, twice: str) -> None:
    columns = {"image": pa.array([image_bytes(1)] * 2), "label": pa.array(["a", "b"])}
    names = [*columns, twice]
    pq.write_table(
        pa.Table.from_arrays([columns[name] for name in names], names), tmp_path / "t.parquet"
    )
    with raises("E-DATA-307"):
        index_of("parquet", tmp_path / "t.parquet", label_column="label")
    write_files(tmp_path, {"0.png": image_bytes(0)})
    heading = {"image": "image,image,label", "label": "image,label,label"}[twice]
    (tmp_path / "l.csv").write_text(f"{heading}\n0.png,0.png,x\n")
    with raises("E-DATA-061"):
        index_of("list", tmp_path / "l.csv")


def test_a_column_of_one_name_beside_two_that_are_not_asked_for(tmp_path: Path) -> None:
    write_files(tmp_path, {"0.png": image_bytes(0), "1.png": image_bytes(1)})
    (tmp_path / "l.csv").write_text("image,note,note,label\n0.png,x,y,a\n1.png,x,y,b\n")
    assert index_of("list", tmp_path / "l.csv").class_names == ("a", "b")
