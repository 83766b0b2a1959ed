"""Kinds of input that real collections bring, over all sources: names, labels, endings, layouts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DataError
from pipeline.ingest.plan import dry_run
from pipeline.ingest.sources.index import ImageIndex
from tests.refusals import raises
from tests.sources import (
    image_bytes,
    index_of,
    ingested,
    names_of,
    settings,
    stored,
    write_files,
    write_table,
    write_tar,
)

Labelled = Sequence[tuple[str, str]]  # label and name of each image


def as_folder(root: Path, images: Labelled) -> tuple[Path, dict[str, str]]:
    files = {f"{label}/{name}": image_bytes(n) for n, (label, name) in enumerate(images)}
    return write_files(root / "folder", files), {}


def as_list(root: Path, images: Labelled) -> tuple[Path, dict[str, str]]:
    write_files(root, {f"{n}-{name}": image_bytes(n) for n, (_, name) in enumerate(images)})
    lines = [f'"{n}-{name}",{label}' for n, (label, name) in enumerate(images)]
    (root / "list.csv").write_text("\n".join(lines))
    return root / "list.csv", {}


def as_table(root: Path, images: Labelled) -> tuple[Path, dict[str, str]]:
    content: list[bytes | None] = [image_bytes(n) for n in range(len(images))]
    write_table(root / "t.parquet", content, labels=[label for label, _ in images])
    return root / "t.parquet", {"label_column": "label"}


def as_archive(root: Path, images: Labelled) -> tuple[Path, dict[str, str]]:
    entries: dict[str, bytes] = {}
    for n, (label, name) in enumerate(images):
        stem, _dot, _ending = name.rpartition(".")
        entries[f"{n:04d}-{name}"] = image_bytes(n)
        entries[f"{n:04d}-{stem}.cls"] = label.encode()
    return write_tar(root / "a.tar", dict(entries)), {}


Source = tuple[str, Callable[[Path, Labelled], tuple[Path, Mapping[str, str]]]]
SOURCES: list[Source] = [
    ("folder", as_folder), ("list", as_list), ("parquet", as_table), ("webdataset", as_archive),
]  # fmt: skip
NAMED = [source for source in SOURCES if source[0] != "parquet"]  # rows of a table have no names
by_source = pytest.mark.parametrize("source", SOURCES, ids=[name for name, _ in SOURCES])
by_named = pytest.mark.parametrize("source", NAMED, ids=[name for name, _ in NAMED])


def index_as(source: Source, root: Path, images: Labelled) -> ImageIndex:
    path, keys = source[1](root, images)
    return index_of(source[0], path, **keys)


# --- labels ---


@by_source
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["0", "1", "2"], ("0", "1", "2")),
        (["0", "90", "180", "270"], ("0", "90", "180", "270")),
        (["2019", "2020", "2022"], ("2019", "2020", "2022")),
        (["1", "01", "2"], ("01", "1", "2")),
        (["1", "2", "3"], ("1", "2", "3")),
        (["00", "01", "02"], ("00", "01", "02")),
        (["10", "9", "cat"], ("9", "10", "cat")),
        (["a b", "é", "c:d"], ("a b", "c:d", "é")),
        (["0", "900000000"], ("0", "900000000")),
    ],
    ids=lambda value: "-".join(value),
)
@pytest.mark.promise("R29")
def test_no_class_is_invented_merged_or_empty(
    source: Source, labels: list[str], classes: tuple[str, ...], tmp_path: Path
) -> None:
    images = [(label, f"{n}.png") for n, label in enumerate(labels * 4)]
    index = index_as(source, tmp_path, images)
    assert index.class_names == classes
    assert index.class_counts("pretrain") == [4] * len(classes)
    if "list" not in source[0] and source[0] != "folder":
        names = [classes[label] for label in index.labels_N]
        assert names == labels * 4


@pytest.mark.parametrize("source", SOURCES[1:], ids=[name for name, _ in SOURCES[1:]])
def test_a_stray_word_among_class_numbers_is_refused(source: Source, tmp_path: Path) -> None:
    images = [(str(n % 2) if n else "n/a", f"{n}.png") for n in range(40)]
    with pytest.raises(DataError) as caught:
        index_as(source, tmp_path, images)
    assert caught.value.id == "E-DATA-301" and "n/a" in caught.value.what
    mixed = [(str(n % 2) if n % 4 else "other", f"{n}.png") for n in range(40)]  # control
    assert index_as(source, tmp_path / "mixed", mixed).class_names == ("0", "1", "other")


def test_a_folder_may_be_called_anything(tmp_path: Path) -> None:
    images = [(str(n % 2) if n else "-1", f"{n}.png") for n in range(40)]
    assert index_as(SOURCES[0], tmp_path, images).class_names == ("0", "1", "-1")


# --- names ---

NAMES = {
    "narrow no-break space": "Screenshot at 9.41.07\u202fAM.png",
    "no-break space": "obr\u00e1zek\u00a0v 13.05.png",
    "ideographic space": "\u5199\u771f\u3000\u6625.png",
    "joined emoji": "\U0001f468\u200d\U0001f469.png",
    "soft hyphen": "foto\u00adalbum.png",
    "private use": "a\uf022b.png",
    "colons": "2026-01-02T09:41:07.png",
    "combining": "cafe\u0301.png",
    "patterns": "a*b?c[1]#d%20e.png",
    "backslash": "a\\b.png",
    "tilde": "~a.png",
    "dots": "v1..2...png",
    "quotes": "it's.png",
}


@by_named
@pytest.mark.parametrize("kind", NAMES)
def test_any_text_without_control_characters_is_a_name(
    source: Source, kind: str, tmp_path: Path
) -> None:
    images = [("a", NAMES[kind]), ("b", "plain.png"), ("a", "x.png"), ("b", "y.png")]
    path, keys = source[1](tmp_path / "in", images)
    uri, manifest, _ = ingested(source[0], path, tmp_path / "out", **keys)
    assert sorted(stored(uri, manifest).values()) == sorted(image_bytes(n) for n in range(4))
    assert any(name.endswith(NAMES[kind]) for name in stored(uri, manifest))


@by_named
@pytest.mark.parametrize("name", ["bell\x07.png", "c1\x85.png", "x" * 1100 + ".png"])
@pytest.mark.promise("R29")
def test_what_cannot_be_a_name_is_a_counted_reject(
    source: Source, name: str, tmp_path: Path
) -> None:
    if source[0] == "folder" and len(name) > 255:
        pytest.skip("no file system takes it")
    images = [("a", "q.png"), ("b", "plain.png"), ("a", "x.png"), ("b", "y.png")]
    path, keys = source[1](tmp_path / "in", images)
    if source[0] == "folder":
        os.rename(path / "a" / "q.png", path / "a" / name)
    elif source[0] == "list":
        path.write_text(path.read_text().replace("0-q.png", name))
    else:
        entries = {f"{n}.png": image_bytes(n) for n in (1, 2, 3)}
        write_tar(path, {name: image_bytes(0), **entries})
    limits = {"max_reject_frac": 0.5}
    uri, manifest, _ = ingested(source[0], path, tmp_path / "out", ingest=limits, **keys)
    assert manifest.rejects.by_reason == {"unusable_name": 1}
    assert len(stored(uri, manifest)) == 3


def test_a_name_that_is_no_utf8_is_a_counted_reject(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {f"{n}.png": image_bytes(n) for n in range(3)})
    os.rename(tmp_path / "in" / "0.png", os.fsencode(tmp_path / "in") + b"/\xff.png")
    limits = {"max_reject_frac": 0.5}
    uri, manifest, _ = ingested("folder", tmp_path / "in", tmp_path / "out", ingest=limits)
    assert manifest.rejects.by_reason == {"unusable_name": 1} and len(stored(uri, manifest)) == 2


# --- endings ---


@pytest.mark.promise("R29")
def test_formats_are_told_by_content_and_the_rest_is_counted(tmp_path: Path) -> None:
    kinds = {
        "a.jfif": "JPEG", "b.jpe": "JPEG", "c.bmp": "BMP", "d.tif": "TIFF", "e.gif": "GIF",
        "f.AVIF": "AVIF", "g.png": "JPEG", "h": "PNG", "i.photo": "WEBP",
    }  # fmt: skip
    files = {name: image_bytes(n, kind=kind) for n, (name, kind) in enumerate(kinds.items())}
    others = {"notes.txt": b"x", "more.txt": b"y", "model.bin": b"\0" * 99, "README": b"text"}
    del files["h"]  # beside a README: half of the files without an ending are no majority
    write_files(tmp_path / "in", {**files, **others})
    uri, manifest, _ = ingested("folder", tmp_path / "in", tmp_path / "out")
    assert stored(uri, manifest) == files
    counts = {kind: info.files for kind, info in manifest.left_out.items()}
    assert counts == {".txt": 2, ".bin": 1, "no ending": 1}
    assert manifest.left_out[".txt"].examples == ("more.txt", "notes.txt")


def test_files_without_an_ending_are_taken_when_they_are_images(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{n:032x}": image_bytes(n) for n in range(5)})
    assert len(index_of("folder", tmp_path).ids) == 5


SIDECARS = (
    "._a.png", ".DS_Store", "@eaDir/a.png/thumb.jpg", "Thumbs.db", ".ipynb_checkpoints/a.png",
    "__MACOSX/a.png", "#recycle/a.png", "_SUCCESS", "_delta_log/0.parquet", "desktop.ini",
)  # fmt: skip


@pytest.mark.parametrize("source", ["folder", "parquet", "webdataset"])
@pytest.mark.promise("R29")
def test_sidecars_are_left_out_and_counted(source: str, tmp_path: Path) -> None:
    image = image_bytes(0)
    if source == "webdataset":
        write_tar(tmp_path / "a.tar", {"a.png": image, **dict.fromkeys(SIDECARS, image)})
    elif source == "parquet":
        write_table(tmp_path / "part-0.parquet", [image])
        write_files(tmp_path, dict.fromkeys(SIDECARS, image))
    else:
        write_files(tmp_path, {"_DSC01.png": image, **dict.fromkeys(SIDECARS, image)})
    index = index_of(source, tmp_path, labelled=False)
    assert len(index.ids) == 1 and index.left_out["sidecars"].files == len(SIDECARS)


@pytest.mark.promise("R29", control=True)
def test_a_class_that_has_no_image_is_named(tmp_path: Path) -> None:
    files = {f"{kind}/{n}.png": image_bytes(n) for kind in ("cat", "dog") for n in range(2)}
    write_files(tmp_path, {**files, "raw/1.cr2": b"raw", "raw/2.cr2": b"raw"})
    index = index_of("folder", tmp_path)
    assert index.class_names == ("cat", "dog") and index.left_out[".cr2"].files == 2
    assert any("raw" in note for note in index.notes)


# --- layouts ---


@pytest.mark.parametrize(
    ("parts", "sets"),
    [
        (("train", "val"), {"pretrain": "train", "probe": "train", "test": "val"}),
        (("train", "test"), {"pretrain": "train", "probe": "train", "test": "test"}),
        (
            ("Training", "validation", "testing"),
            {"pretrain": "Training", "test": "testing", "val": "validation"},
        ),
        (("train",), {"pretrain": "train", "probe": "train"}),
    ],
)
def test_train_val_and_test_folders_are_sets(
    parts: tuple[str, ...], sets: dict[str, str], tmp_path: Path
) -> None:
    for part in parts:
        images = {f"{kind}/{n}.png": image_bytes(n) for kind in ("cat", "dog") for n in range(3)}
        write_files(tmp_path / part, images)
    index = index_of("folder", tmp_path, num_test_per_class=2 if len(parts) > 1 else None)
    assert index.class_names == ("cat", "dog")
    for name, part in sets.items():
        assert {image.partition("/")[0] for image in names_of(index, name)} == {part}
        assert index.class_counts(name) == [3, 3]
    assert index.notes
    everything = index_of("folder", tmp_path, labelled=False)
    assert everything.class_names is None and len(everything.ids) == 6 * len(parts)


def test_one_folder_beside_images_is_no_class(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{name}.png": image_bytes(n) for n, name in enumerate(("a", "x/b"))})
    assert index_of("folder", tmp_path).class_names is None
    write_files(tmp_path, {"y/c.png": image_bytes(2)})
    with raises("E-DATA-047", "1 beside 2"):
        index_of("folder", tmp_path)


def test_train_beside_other_folders_is_a_class(tmp_path: Path) -> None:
    kinds = ("train", "bus", "test")
    write_files(tmp_path, {f"{k}/{n}.png": image_bytes(n) for k in kinds for n in range(2)})
    assert index_of("folder", tmp_path).class_names == ("bus", "test", "train")


def test_folders_by_date_point_to_the_key(tmp_path: Path) -> None:
    names = [f"{year}/{month:02d}/{month}.jpg" for year in (2021, 2022) for month in (1, 2)]
    write_files(tmp_path, {name: image_bytes(n) for n, name in enumerate(names)})
    index = index_of("folder", tmp_path)
    assert index.class_names == ("2021", "2022")
    assert any("data.labelled=false" in note for note in index.notes)


def test_small_classes_stay_whole_and_are_named(tmp_path: Path) -> None:
    counts = {"Shirt": 12, "Hat": 9, "Blouse": 3}
    files = {f"{k}/{n}.png": image_bytes(n) for k, count in counts.items() for n in range(count)}
    write_files(tmp_path, files)
    index = index_of("folder", tmp_path, num_test_per_class=4)
    assert index.class_counts("test") == [0, 4, 4] and index.class_counts("pretrain") == [3, 5, 8]
    assert any("Blouse (3)" in note for note in index.notes)
    assert not any("most images" in note for note in index.notes)
    index = index_of("folder", tmp_path, num_test_per_class=8)
    assert "classes that have most images in test: Hat (8 of 9), Shirt (8 of 12)" in index.notes
    # All that is held out counts: 3 + 3 of 9 and 12, and a half is not most.
    index = index_of("folder", tmp_path, num_test_per_class=3, num_val_per_class=3)
    assert "classes that have most images in test and val: Hat (6 of 9)" in index.notes


def test_a_class_without_test_images_is_named_with_all_that_it_has(tmp_path: Path) -> None:
    counts = {"ant": 40, "brain": 8}
    files = {f"{k}/{n}.png": image_bytes(n) for k, count in counts.items() for n in range(count)}
    write_files(tmp_path, files)
    index = index_of("folder", tmp_path, num_test_per_class=10, num_val_per_class=5)
    assert index.class_counts("val") == [5, 5] and index.class_counts("pretrain") == [25, 3]
    (note,) = (note for note in index.notes if "without" in note)
    assert "brain (8)" in note and "3" not in note and "ant" not in note


# --- lists ---

ROWS = [(f"i{n:02d}.png", n % 3) for n in range(12)]


@pytest.mark.parametrize(
    "heading",
    [
        "",
        "path,label",
        "filename,label",
        "image_id,dx",
        "Path,Label",
        "img,class",
        "a,b",
        ",path,y",
    ],
)
@pytest.mark.parametrize("form", ["plain", "semicolon", "tab", "utf16", "bom", "quoted"])
def test_headings_delimiters_and_encodings(heading: str, form: str, tmp_path: Path) -> None:
    write_files(tmp_path, {name: image_bytes(n) for n, (name, _) in enumerate(ROWS)})
    with_index = heading.startswith(",")
    lines = [heading] if heading else []
    for n, (name, label) in enumerate(ROWS):
        shown = f'"{name}"' if form == "quoted" else name
        lines.append(f"{n},{shown},{label}" if with_index else f"{shown},{label}")
    text = "\n".join(lines) + "\n"
    delimiter = {"semicolon": ";", "tab": "\t"}.get(form, ",")
    text = text.replace(",", delimiter)
    encoding = {"utf16": "utf-16", "bom": "utf-8-sig"}.get(form, "utf-8")
    if form == "bom":
        text = text.replace("\n", "\r\n")
    (tmp_path / "l.csv").write_bytes(text.encode(encoding))
    index = index_of("list", tmp_path / "l.csv")
    assert index.ids.to_pylist() == [name for name, _ in ROWS]
    assert index.class_names == ("0", "1", "2") and not index.rejects
    assert index.labels_N.tolist() == [label for _, label in ROWS]


def test_columns_of_a_list_by_name(tmp_path: Path) -> None:
    write_files(tmp_path, {name: image_bytes(n) for n, (name, _) in enumerate(ROWS)})
    lines = ["who,photo,kind,kids"]
    lines += [f"u{n},{name},{'cat' if label else 'dog'},0" for n, (name, label) in enumerate(ROWS)]
    path = tmp_path / "l.csv"
    path.write_text("\n".join(lines))
    keys = {"image_column": "photo", "label_column": "kind"}
    assert index_of("list", path, **keys).class_names == ("cat", "dog")
    unlabelled = index_of("list", path, image_column="photo", labelled=False)
    assert unlabelled.class_names is None and len(unlabelled.ids) == 12
    for wrong in ({}, {"image_column": "photo"}, {**keys, "label_column": "class"}):
        with pytest.raises(DataError) as caught:
            index_of("list", path, **wrong)
        assert caught.value.id == "E-DATA-061" and "kids" in caught.value.what
    path.write_text("\n".join(["image,sender,label,kids", *lines[1:]]).replace("u", ""))
    path.write_text("sender,image,label,kids\n" + "\n".join(lines[1:]))
    assert index_of("list", path).class_names == ("cat", "dog")  # usual names are recognised


def test_an_image_may_be_called_like_a_heading(tmp_path: Path) -> None:
    write_files(tmp_path, {"path": image_bytes(0), "b": image_bytes(1)})
    (tmp_path / "l.csv").write_text("path\nb\n")
    assert index_of("list", tmp_path / "l.csv").ids.to_pylist() == ["path", "b"]


# --- tables and archives ---


def typed_columns() -> dict[str, tuple[pa.Array, pa.Array]]:
    content = [image_bytes(n) for n in range(6)]
    numbers = pa.array([n % 2 for n in range(6)])
    plain = pa.array(content, pa.binary())
    words = ["cat" if n % 2 else "dog" for n in range(6)]
    return {
        "large": (pa.array(content, pa.large_binary()), numbers),
        "view": (pa.array(content, pa.binary_view()), numbers),
        "dictionary": (plain.dictionary_encode(), numbers),
        "list": (pa.array([list(data) for data in content], pa.list_(pa.uint8())), numbers),
        "list of numbers": (pa.array([list(data) for data in content]), numbers),
        "list of Java's bytes": (
            pa.array([np.frombuffer(data, np.int8) for data in content], pa.list_(pa.int8())),
            numbers,
        ),
        "words": (plain, pa.array(words, pa.string_view())),
        "categories": (plain, pa.array(words).dictionary_encode()),
        "doubles": (plain, pa.array([float(n % 2) for n in range(6)])),
        "booleans": (plain, pa.array([bool(n % 2) for n in range(6)])),
    }


@pytest.mark.parametrize("kind", typed_columns())
@pytest.mark.parametrize("name", ["image", "image.bytes"])
def test_columns_of_every_type_of_bytes_and_labels(kind: str, name: str, tmp_path: Path) -> None:
    image, label = typed_columns()[kind]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({name: image, f"{name}.label": label}), path)
    keys = {"image_column": name, "label_column": f"{name}.label"}
    uri, manifest, _ = ingested("parquet", path, tmp_path / "out", **keys)
    assert sorted(stored(uri, manifest).values()) == sorted(image_bytes(n) for n in range(6))
    assert manifest.sets["probe"].class_counts == (3, 3)


@pytest.mark.parametrize("numbers", [[0, 256], [-129], [1, None]])
def test_lists_of_numbers_that_are_no_bytes_are_refused(
    numbers: list[int | None], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"image": pa.array([numbers])}), tmp_path / "t.parquet")
    with raises("E-DATA-810"):
        ingested("parquet", tmp_path / "t.parquet", tmp_path / "out")


def test_labels_with_a_fraction_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", [image_bytes(0), image_bytes(1)], labels=[0.5, 1.0])
    with pytest.raises(DataError) as caught:
        index_of("parquet", tmp_path / "t.parquet", label_column="label")
    assert caught.value.id == "E-DATA-302"


@pytest.mark.parametrize(
    ("entries", "taken", "left_out", "noted"),
    [
        ("p.v0.jpg p.v0.mask.png p.v0.cls=a p.v1.jpg p.v1.mask.png p.v1.cls=b",
         {"p.v0.jpg": "a", "p.v1.jpg": "b"}, {"other fields of samples": 2}, False),
        ("p.v0.jpg p.v0.mask.png p.v1.jpg p.v1.depth.16.png",
         {"p.v0.jpg": "", "p.v1.jpg": ""}, {"other fields of samples": 2}, True),
        ("d/q.2024.05.1.png d/q.2024.05.1.seg.left.png d/q.2024.05.1.cls=a r.png r.cls=b",
         {"d/q.2024.05.1.png": "a", "r.png": "b"}, {"other fields of samples": 1}, False),
        ("p.v0.rgb.png p.v0.nir.png p.v0.cls=a p.v1.rgb.png p.v1.cls=b",
         {"p.v0.rgb.png": "a", "p.v0.nir.png": "a", "p.v1.rgb.png": "b"}, {}, True),
        ("v1.png v1.cls=a v1.2.png v1.2.cls=b",
         {"v1.png": "a", "v1.2.png": "b"}, {}, False),
        ("a.png a.cls=a b.png b.cls=b c.cls=a",
         {"a.png": "a", "b.png": "b"}, {"labels without an image": 1}, False),
    ],
)  # fmt: skip
def test_samples_of_archives_with_several_fields(
    entries: str, taken: dict[str, str], left_out: dict[str, int], noted: bool, tmp_path: Path
) -> None:
    pairs = [entry.partition("=") for entry in entries.split()]
    files = {name: text.encode() if text else image_bytes(0) for name, _, text in pairs}
    path = write_tar(tmp_path / "a.tar", dict(files))
    index = index_of("webdataset", path)
    labels = [index.class_names[n] if index.class_names else "" for n in index.labels_N.tolist()]
    names = [name.partition("/")[2] for name in index.ids.to_pylist()]
    assert dict(zip(names, labels, strict=True)) == taken
    assert {kind: info.files for kind, info in index.left_out.items()} == left_out
    assert bool(index.notes) is noted


def test_the_archive_of_a_sample_without_a_label_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "a.tar", {"a.png": image_bytes(0), "a.cls": b"x"})
    write_tar(tmp_path / "in" / "b.tar", {"b.png": image_bytes(0)})
    with raises("E-DATA-077", "b.png") as caught:
        index_of("webdataset", tmp_path / "in")
    assert caught.value.where == str(tmp_path / "in" / "b.tar")


def test_dotted_stems_and_fields_of_archives(tmp_path: Path) -> None:
    image = image_bytes(0)
    entries = {
        "cam1_2024.05.10.jpg": image, "cam1_2024.05.10.cls": b"cat",  # dots in the stem
        "cam1_2024.05.11.jpg": image, "cam1_2024.05.11.cls": b"dog",
        "s1.left.png": image, "s1.right.png": image, "s1.cls": b"cat",  # two fields, one label
        "s2.png": image, "s2.seg.png": image, "s2.cls": b"dog",  # a mask beside the image
        "s2.json": b"{}",
    }  # fmt: skip
    index = index_of("webdataset", write_tar(tmp_path / "a.tar", dict(entries)))
    labels = [(index.class_names or ())[label] for label in index.labels_N]
    names = [name.partition("/")[2] for name in index.ids.to_pylist()]
    assert dict(zip(names, labels, strict=True)) == {
        "cam1_2024.05.10.jpg": "cat", "cam1_2024.05.11.jpg": "dog",
        "s1.left.png": "cat", "s1.right.png": "cat", "s2.png": "dog",
    }  # fmt: skip
    counts = {kind: info.files for kind, info in index.left_out.items()}
    assert counts == {"other fields of samples": 1, ".json": 1}


# --- losses ---


def tail(root: Path, broken: int) -> Path:
    files = {f"common/{n}.png": image_bytes(n) for n in range(40)}
    files |= {f"other/{n}.png": image_bytes(100 + n) for n in range(20)}
    files |= {f"rare/{n}.png": image_bytes(200 + n)[: 60 if n < broken else None] for n in range(3)}
    return write_files(root, files)


@pytest.mark.promise("R29")
def test_a_class_of_the_tail_that_lost_most_images_fails_the_stage(tmp_path: Path) -> None:
    limits = {"max_reject_frac": 0.1}
    with pytest.raises(DataError) as caught:
        ingested("folder", tail(tmp_path / "3", 3), tmp_path / "out", ingest=limits)
    assert caught.value.id == "E-DATA-303" and "'rare' (3 of 3)" in caught.value.what
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.parquet"))
    _, manifest, _ = ingested("folder", tail(tmp_path / "1", 1), tmp_path / "out", ingest=limits)
    assert manifest.sets["pretrain"].class_counts == (40, 20, 2)  # control: most of it is left
    allowed = {"max_reject_frac": 1.0}
    _, _, notes = ingested("folder", tmp_path / "3", tmp_path / "out", ingest=allowed)
    assert any("'rare' (3 of 3)" in note for note in notes)


def test_the_dry_run_reads_the_smallest_classes_whole(tmp_path: Path) -> None:
    write_files(tail(tmp_path / "in", 3), {f"common/{n}.png": image_bytes(n) for n in range(900)})
    limits = {"max_reject_frac": 0.02}
    with raises("E-DATA-303", "'rare' (3 of 3)"):
        dry_run(settings("folder", tmp_path / "in", tmp_path / "out", ingest=limits))
    allowed = settings("folder", tmp_path / "in", tmp_path / "out", ingest={"max_reject_frac": 1.0})
    assert any("'rare' (3 of 3)" in note for note in dry_run(allowed).notes)
    tail(tmp_path / "in", 1)  # control: most of it is left
    assert not dry_run(settings("folder", tmp_path / "in", tmp_path / "out", ingest=limits)).notes
