"""Plain names: empty parts, dots in front and paths that lead elsewhere, over all sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import storage
from tests.loopback_s3 import LoopbackS3
from tests.refusals import raises
from tests.sources import (
    image_bytes,
    index_of,
    ingested,
    stored,
    write_files,
    write_table,
    write_tar,
)

KEYS = {"/x.png": 0, "x//y.png": 1, "x/y.png": 2, "x///y.png": 3, "..a.png": 4, "a..b/c.png": 5}
NAMES_OF_KEYS = [".//x.png", *list(KEYS)[1:]]


def on_s3(source: str, s3: LoopbackS3, tmp_path: Path) -> str:
    """Write an image for each of the keys, in files of the kind of the source, and return where."""
    bucket = s3.buckets["bucket"]
    for key, n in KEYS.items():
        if source in ("folder", "list"):
            bucket[f"in/{key}"] = image_bytes(n)
            continue
        path, stem = tmp_path / "one", key.removesuffix(".png")
        if source == "parquet":
            write_table(path, [image_bytes(n)])
        else:
            write_tar(path, {"i.png": image_bytes(n)})
        ending = ".parquet" if source == "parquet" else ".tar"
        bucket[f"in/{stem}{ending}"] = path.read_bytes()
    whole = [f"s3://bucket/in/{key}" for key in list(KEYS)[:2]]
    bucket["in/l.csv"] = "\n".join([*whole, *NAMES_OF_KEYS[2:]]).encode()
    return "s3://bucket/in/l.csv" if source == "list" else "s3://bucket/in"


@pytest.mark.promise("R29")
@pytest.mark.parametrize("source", ["folder", "list", "parquet", "webdataset"])
def test_empty_parts_of_keys_are_part_of_the_name(
    source: str, s3: LoopbackS3, tmp_path: Path
) -> None:
    path = on_s3(source, s3, tmp_path)
    uri, manifest, _ = ingested(source, path, tmp_path / "out", labelled=False)
    found = stored(uri, manifest)
    assert sorted(found.values()) == sorted(image_bytes(n) for n in KEYS.values())
    assert not manifest.rejects.total
    if source in ("folder", "list"):
        assert found == {name: image_bytes(n) for n, name in enumerate(NAMES_OF_KEYS)}
    assert not any(name.startswith("/") for name in found)


def test_a_list_may_hold_the_names_of_a_folder_on_s3(s3: LoopbackS3, tmp_path: Path) -> None:
    on_s3("folder", s3, tmp_path)
    names = index_of("folder", "s3://bucket/in", labelled=False).ids.to_pylist()
    s3.buckets["bucket"]["l.csv"] = "\n".join(names).encode()
    keys = {"image_root": "s3://bucket/in", "labelled": False}
    assert index_of("list", "s3://bucket/l.csv", **keys).ids.to_pylist() == names


@pytest.mark.parametrize("path", ["s3://bucket/in//t.parquet", "s3://bucket//in/t.parquet"])
def test_a_table_below_an_empty_part_is_found(path: str, s3: LoopbackS3, tmp_path: Path) -> None:
    write_table(tmp_path / "t", [image_bytes(7)])
    s3.buckets["bucket"] |= {path.removeprefix("s3://bucket/"): (tmp_path / "t").read_bytes()}
    uri, manifest, _ = ingested("parquet", path, tmp_path / "out")
    assert list(stored(uri, manifest).values()) == [image_bytes(7)]


@pytest.mark.promise("R29")
def test_keys_that_clients_read_differently_are_counted_rejects(s3: LoopbackS3) -> None:
    keys = ("x/../y.png", "x/./y.png", "./y.png", "../y.png")
    s3.buckets["bucket"] |= {f"in/{key}": image_bytes(n) for n, key in enumerate((*keys, "y.png"))}
    index = index_of("folder", "s3://bucket/in", labelled=False)
    assert index.ids.to_pylist() == ["y.png"]
    assert {reject.id for reject in index.rejects} == set(keys)


ELSEWHERE = (
    "/y.png", "//y.png", "x/../y.png", "..", "x/", ".", "~/y.png", "s3://other/y.png", "C:\\y.png",
)  # fmt: skip


@pytest.mark.parametrize("place", ["local", "s3"])
def test_paths_of_a_list_that_lead_elsewhere_are_refused(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path)
    if place == "s3":
        request.getfixturevalue("s3")
        root = "s3://bucket"
    storage.write_bytes(f"{root}/y.png", image_bytes(0))
    for line in (*ELSEWHERE, *(["x/./y.png"] if place == "s3" else [])):
        storage.write_bytes(f"{root}/l.csv", f"y.png\n{line}\n".encode())
        with raises("E-DATA-064"):
            index_of("list", f"{root}/l.csv")
    storage.write_bytes(f"{root}/l.csv", b"y.png\n")  # control
    assert index_of("list", f"{root}/l.csv").ids.to_pylist() == ["y.png"]


def test_empty_parts_of_paths_are_nothing(tmp_path: Path) -> None:
    write_files(tmp_path, {"x/y.png": image_bytes(0), "x/z.png": image_bytes(1)})
    for lines in ("x//y.png\n./x/z.png", f".//x/./y.png\n{tmp_path}//x///z.png"):
        (tmp_path / "l.csv").write_text(lines)
        assert index_of("list", tmp_path / "l.csv").ids.to_pylist() == ["x/y.png", "x/z.png"]
    (tmp_path / "l.csv").write_text("x/y.png\nx//y.png")
    with raises("E-DATA-065"):  # one file twice
        index_of("list", tmp_path / "l.csv")
    path = write_tar(
        tmp_path / "a.tar", {"x//y.png": image_bytes(0), "./x/y.cls": b"cat", "x/./z.png": b"z"}
    )
    index = index_of("webdataset", path, labelled=False)
    assert index.ids.to_pylist() == ["a.tar/x/y.png", "a.tar/x/z.png"]


def test_folders_behind_empty_parts_are_classes(s3: LoopbackS3) -> None:
    keys = ["/cat/1.png", "cat//2.png", "dog/3.png", "//dog/4.png"]
    s3.buckets["bucket"] |= {f"in/{key}": image_bytes(n) for n, key in enumerate(keys)}
    index = index_of("folder", "s3://bucket/in")
    assert index.class_names == ("cat", "dog") and index.class_counts("pretrain") == [2, 2]
    s3.buckets["bucket"] |= {
        f"split/{part}{key}": image_bytes(n)
        for n, (part, key) in enumerate((p, k) for p in ("train/", "val//") for k in keys)
    }
    index = index_of("folder", "s3://bucket/split")
    assert index.class_names == ("cat", "dog") and index.class_counts("test") == [2, 2]


@pytest.mark.parametrize(
    ("name", "is_sidecar"),
    [
        ("..a.png", False), ("...png", False), ("..a/b.png", False), ("a.png", False),
        (".a.png", True), ("._a.png", True), ("x/.a/b.png", True), ("..data/a.png", True),
        ("..2026_11_29_13_52_10.123456789/a.png", True),
    ],
)  # fmt: skip
def test_one_dot_in_front_hides_a_file_two_do_not(
    name: str, is_sidecar: bool, tmp_path: Path
) -> None:
    write_files(tmp_path / "in", {name: image_bytes(0), "b.png": image_bytes(1)})
    index = index_of("folder", tmp_path / "in", labelled=False)
    assert (name in index.ids.to_pylist()) is not is_sidecar
    assert ("sidecars" in index.left_out) is is_sidecar
    path = write_tar(tmp_path / "a.tar", {name: image_bytes(0), "b.png": image_bytes(1)})
    assert len(index_of("webdataset", path).ids) == 1 + (not is_sidecar)


FIRST = "~-+#@%$&=;!'^,(_ "


@pytest.mark.promise("R29")
@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("source", ["folder", "list", "txt", "parquet", "webdataset"])
def test_a_name_may_begin_with_any_character(
    source: str, place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path / "in")
    if place == "s3":
        request.getfixturevalue("s3")
        root = "s3://bucket/in"
    names = [f"{first}x{n}.png" for n, first in enumerate(FIRST)]
    images = {f"{folder}{name}": image_bytes(n) for n, name in enumerate(names)
              for folder in ("", "~d/")}  # fmt: skip
    path, kind = root, source
    if source == "webdataset":
        content = write_tar(tmp_path / "one", dict(images)).read_bytes()
        storage.write_bytes(f"{root}/~a.tar", content)
    elif source == "parquet":
        for name, image in images.items():
            content = write_table(tmp_path / "one", [image]).read_bytes()
            stem = name.removesuffix(".png").replace("_", "~_")  # Spark's sidecars begin with _
            storage.write_bytes(f"{root}/{stem}.parquet", content)
    else:
        for name, image in images.items():
            storage.write_bytes(f"{root}/{name}", image)
        if source != "folder":
            path, kind = f"{root}/l.{'txt' if source == 'txt' else 'csv'}", "list"
            quoted = [f'"{name}"' if source == "list" else name for name in images]
            storage.write_bytes(path, "\n".join(quoted).encode())
    uri, manifest, _ = ingested(kind, path, tmp_path / "out", labelled=False)
    found = stored(uri, manifest)
    assert sorted(found.values()) == sorted(images.values()) and not manifest.rejects.total
    if source != "parquet":
        assert {name.removeprefix("~a.tar/") for name in found} == set(images)


def test_blanks_that_begin_every_line_are_no_part_of_the_names(tmp_path: Path) -> None:
    write_files(tmp_path, {"x.png": image_bytes(0), "y.png": image_bytes(1)})
    for name in ("l.txt", "l.csv"):
        (tmp_path / name).write_text(" x.png\n y.png\n")
        assert index_of("list", tmp_path / name).ids.to_pylist() == ["x.png", "y.png"]
    write_files(tmp_path, {" x.png": image_bytes(2), " y.png": image_bytes(3)})
    for name in ("l.txt", "l.csv"):  # control: there are images with such names
        assert index_of("list", tmp_path / name).ids.to_pylist() == [" x.png", " y.png"]
