"""Lists of images: the formats in use, three sets, and lists that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.data import Sets
from pipeline.ingest.sources.list_file import Wanted, table_columns
from tests.loopback_s3 import LoopbackS3
from tests.refusals import raises
from tests.sources import image_bytes, index_of, ingested, names_of, stored, write_files

NAMES = ["n01/a b.png", "n01/c.png", "n02/d.png", "n02/é.png"]
FILES = {name: image_bytes(number) for number, name in enumerate(NAMES)}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("l.txt", "n01/a b.png 3\nn01/c.png 3\r\n\nn02/d.png\t0\nn02/é.png 0"),
        ("l.csv", "n01/a b.png,3\nn01/c.png,3\nn02/d.png,0\nn02/é.png,0\n"),
        ("l.csv", 'path,label\n"n01/a b.png",3\n./n01/c.png,3\nn02/d.png,0\nn02/é.png,0\n'),
        ("l.tsv", "Path\tclass\nn01/a b.png\t3\nn01/c.png\t3\nn02/d.png\t0\nn02/é.png\t0\n"),
    ],
)
def test_numbered_labels_in_every_format(tmp_path: Path, file: str, text: str) -> None:
    write_files(tmp_path, {**FILES, file: text.encode()})
    index = index_of("list", tmp_path / file)
    assert index.ids.to_pylist() == NAMES and index.labels_N.tolist() == [1, 1, 0, 0]
    assert index.class_names == ("0", "3") and set(index.sets) == {"pretrain", "probe"}
    uri, manifest, _ = ingested("list", tmp_path / file, tmp_path / "out")
    assert stored(uri, manifest) == FILES and manifest.sets["probe"].class_counts == (2, 2)


@pytest.mark.parametrize("text", ["n01/a b.png\nn02/d.png\n", "n01/a b.png 1\nn02/d.png 0"])
def test_unlabelled_lists(tmp_path: Path, text: str) -> None:
    write_files(tmp_path, {**FILES, "l.txt": text.encode()})
    index = index_of("list", tmp_path / "l.txt", labelled=False)
    assert sorted(names_of(index)) == ["n01/a b.png", "n02/d.png"]
    assert index.class_names is None and list(index.sets) == ["pretrain"]


def test_three_lists_make_three_sets_with_one_set_of_classes(tmp_path: Path) -> None:
    lists = {"l.csv": "n01/a b.png,cat\nn01/c.png,cat", "v.csv": "n02/d.png,dog"}
    lists["t.csv"] = "n02/é.png,ant"
    write_files(tmp_path, {**FILES, **{name: text.encode() for name, text in lists.items()}})
    val, test = str(tmp_path / "v.csv"), str(tmp_path / "t.csv")
    keys: dict[str, Any] = {"sets": Sets(val=val, test=test)}
    index = index_of("list", tmp_path / "l.csv", **keys)
    assert index.class_names == ("ant", "cat", "dog")
    assert names_of(index, "val") == ["n02/d.png"] and names_of(index, "test") == ["n02/é.png"]
    assert set(names_of(index, "pretrain")) == set(names_of(index, "probe")) == set(NAMES[:2])
    with raises("E-CONFIG-023"):
        index_of("list", tmp_path / "l.csv", **keys, num_test_per_class=1)
    with raises("E-DATA-059"):
        index_of("list", tmp_path / "l.csv", **keys, labelled=False)
    with raises("E-DATA-065", "n02/d.png"):
        index_of("list", tmp_path / "l.csv", sets=Sets(val=val, test=val))


def test_whole_uris_below_the_root_on_s3(s3: LoopbackS3, tmp_path: Path) -> None:
    bucket = s3.buckets["bucket"]
    bucket.update({f"photos/{name}": content for name, content in FILES.items()})
    lines = [f"s3://bucket/photos/{NAMES[0]}", NAMES[2], "gone.png"]
    bucket["lists/l.csv"] = "\n".join(lines).encode()
    keys: dict[str, Any] = {"image_root": "s3://bucket/photos", "ingest": {"max_reject_frac": 1.0}}
    uri, manifest, _ = ingested("list", "s3://bucket/lists/l.csv", "s3://bucket/data", **keys)
    assert stored(uri, manifest) == {NAMES[0]: FILES[NAMES[0]], NAMES[2]: FILES[NAMES[2]]}
    assert manifest.rejects.by_reason == {"missing": 1}


def test_names_with_percent_signs_below_a_file_uri(tmp_path: Path) -> None:
    place, name = write_files(tmp_path / "in", {"a%20b.png": FILES[NAMES[0]]}), "a%20b.png"
    for lines in (name, (place / name).as_uri()):
        (place / "l.txt").write_text(lines)
        uri, manifest, _ = ingested("list", (place / "l.txt").as_uri(), tmp_path / "data")
        assert stored(uri, manifest) == {name: FILES[NAMES[0]]}
        (tmp_path / "data").rename(tmp_path / f"data-{len(lines)}")
    uri, manifest, _ = ingested("folder", place.as_uri(), (tmp_path / "data").as_uri())
    assert stored(uri, manifest) == {name: FILES[NAMES[0]]}


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("", "E-DATA-060"),
        ("a.png,1\nb.png,\n", "E-DATA-062 1 2"),
        ("a.png,1\nb.png\n", "E-DATA-061"),
        ("a.png,1,2\n", "E-DATA-061 3"),
        ("../a.png,1\n", "E-DATA-064 data.image_root"),
        ("x/../../a.png,1\n", "E-DATA-064"),
        ("/etc/passwd,1\n", "E-DATA-064"),
        ("s3://other/a.png,1\n", "E-DATA-064"),
        ("~/a.png,1\n", "E-DATA-064"),
        ("a.png,1\na.png,2\n", "E-DATA-065 1 a.png"),
        ("a.png,-1\n", "E-DATA-068"),
        ("a.png,1\n", "E-DATA-066 1"),
        ("\xff\xfe,1\n", "E-DATA-061"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path: Path, text: str, refusal: str) -> None:
    (tmp_path / "l.csv").write_bytes(text.encode("latin-1"))
    with raises(*refusal.split()) as caught:
        index_of("list", tmp_path / "l.csv")
    assert caught.value.todo


def test_other_endings_and_missing_labels_are_told(tmp_path: Path) -> None:
    write_files(tmp_path, {**FILES, "l.json": b"[]", "l.txt": b"n01/c.png", "u.txt": b"\xff\n"})
    for file in ("l.json", "u.txt"):
        with raises("E-DATA-061"):
            index_of("list", tmp_path / file)
    with raises("E-DATA-063"):
        index_of("list", tmp_path / "l.txt", labelled=True)
    with raises("E-CONFIG-220"):
        index_of("folder", tmp_path, sets=Sets(val="x.txt"))


PATHS = [f"a/{number}.png" for number in range(6)]
ROWS = "".join(f"{path},c{number % 3}\n" for number, path in enumerate(PATHS))


@pytest.mark.parametrize(
    "text",
    [
        "path,label\n" + ROWS,
        ROWS,
        "sep=;\npath;label\n" + ROWS.replace(",", ";"),
        "sep=;\n" + ROWS.replace(",", ";"),
        "SEP=\t\npath\tlabel\n" + ROWS.replace(",", "\t"),
        ",path,label\n" + "".join(f"{n},{row}\n" for n, row in enumerate(ROWS.splitlines())),
    ],
)
def test_what_stands_above_the_images_is_no_image(text: str) -> None:
    found = table_columns(text, ",", Wanted(None, None, needs_label=True), PATHS.__contains__)
    assert found.paths.to_pylist() == PATHS
    assert found.labels is not None and found.labels.to_pylist() == [f"c{n % 3}" for n in range(6)]


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("export,\npath,label\n" + ROWS, "line 2"),
        ("my export\npath,label\n" + ROWS, "line 2"),
        ("# made in June\npath,label\n" + ROWS, "line 2"),
        ("one\ntwo\npath,label\n" + ROWS, "line 3"),
        ("path,\n" + ROWS, "column 2"),
    ],
)
def test_a_heading_that_would_hide_the_labels_is_refused(text: str, fact: str) -> None:
    with pytest.raises(ValueError, match=fact):
        table_columns(text, ",", Wanted(None, None, needs_label=True), PATHS.__contains__)
