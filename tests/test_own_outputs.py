"""Own outputs below a source, left out by their content, and a user's files of such names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline import storage
from tests.loopback_s3 import LoopbackS3
from tests.refusals import raises
from tests.sources import image_bytes, index_of, ingested, write_files, write_table

IMAGE = image_bytes(0)
RUN = json.dumps({"schema_version": 2, "run": "r1", "config_hash": "x", "stages": {}}).encode()


def data_set(root: Path, *, count: int = 6, source: str = "parquet") -> Path:
    """Ingest some images and return the folder of the data set."""
    images = [image_bytes(n, (100, 100)) for n in range(count)]
    if source == "parquet":
        path = write_table(root / "in" / "t.parquet", list(images))
    else:
        path = write_files(root / "in", {f"{n % 2}/{n}.png": i for n, i in enumerate(images)})
    uri, _, _ = ingested(source, path, root / "out")
    return Path(uri)


@pytest.mark.promise("R29")
def test_data_sets_and_runs_below_the_source_are_left_out(tmp_path: Path) -> None:
    write_table(tmp_path / "data" / "photos.parquet", [image_bytes(n) for n in range(12)])
    write_files(tmp_path / "data" / "runs" / "r1", {"run.json": RUN, "config.yaml": b""})
    write_table(tmp_path / "data" / "runs" / "r1" / "mining" / "scores.parquet", [image_bytes(99)])
    for seed in (0, 1, 2):
        _, manifest, _ = ingested("parquet", tmp_path / "data", tmp_path / "data", split_seed=seed)
        assert manifest.sets["pretrain"].rows == 12
    assert manifest.left_out["own outputs"].files > 2
    (home, *_) = (tmp_path / "data").glob("parquet-*")
    for place in (home, home / "shards"):
        with raises("E-DATA-300"):
            index_of("parquet", place)


@pytest.mark.parametrize("names", [
    ["shards/test-00000"], ["shards/val-00000"], ["shards/pretrain-00000-unique"],
    ["shards/test-00000", "x"], ["shards/probe-order"], ["a/shards/train-00000"],
    ["a/shards/test-00000", "a/shards/test-00001", "b/shards/val-00000"],
])  # fmt: skip
@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.promise("R29")
def test_tables_of_a_user_are_taken_whatever_their_names(
    names: list[str], place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path / "in")
    if place == "s3":
        request.getfixturevalue("s3")
        root = "s3://bucket/in"
    for name in names:
        content = write_table(tmp_path / "one", [IMAGE, IMAGE]).read_bytes()
        storage.write_bytes(f"{root}/{name}.parquet", content)
    storage.write_bytes(f"{root}/manifest.json", b"{}")
    index = index_of("parquet", root)
    assert len(index.ids) == 2 * len(names) and "own outputs" not in index.left_out
    if len(names) == 1:
        below = names[0].rpartition("/")[0]
        assert len(index_of("parquet", f"{root}/{below}").ids) == 2


def test_a_copied_data_set_is_left_out_and_the_tables_beside_it_are_not(tmp_path: Path) -> None:
    home, root = data_set(tmp_path), tmp_path / "copy"
    shutil.copytree(home / "shards", root / "shards")  # without its manifest
    write_table(root / "ph.parquet", [IMAGE])
    write_table(root / "shards" / "photos.parquet", [IMAGE])
    index = index_of("parquet", root)
    assert index.ids.to_pylist() == ["ph.parquet/0", "shards/photos.parquet/0"]
    num_shards = len(list((home / "shards").iterdir()))
    assert num_shards > 1 and index.left_out["own outputs"].files == num_shards
    shutil.copy(home / "manifest.json", root)
    index = index_of("parquet", root)
    assert len(index.ids) == 2 and index.left_out["own outputs"].files == num_shards + 1
    write_table(root / "shards" / "val-00000.parquet", [IMAGE])  # a user's among ours
    assert len(index_of("parquet", root).ids) == 3
    assert [name for name in index_of("parquet", root / "shards").ids.to_pylist()] == [
        "photos.parquet/0", "val-00000.parquet/0",
    ]  # fmt: skip


def test_order_files_and_shards_below_folders_of_photos_are_counted(tmp_path: Path) -> None:
    home, root = data_set(tmp_path, source="folder"), tmp_path / "photos"
    shutil.copytree(home, root / "sets" / "one")
    write_files(root, {"cat/1.png": IMAGE, "dog/2.png": IMAGE, "sets/one/shards/me.png": IMAGE})
    index = index_of("folder", root, labelled=False)
    assert index.ids.to_pylist() == ["cat/1.png", "dog/2.png", "sets/one/shards/me.png"]
    assert list((home / "shards").glob("*-order.parquet"))
    num_files = len(list((home / "shards").iterdir())) + 1
    assert index.left_out["own outputs"].files == num_files and ".parquet" not in index.left_out


@pytest.mark.parametrize(
    ("record", "is_run"),
    [(RUN, True), (b"{}", False), (b'{"run": 1}', False), (b"[1]", False), (b"\xff{", False),
     (b"[" * 100_000, False)],
)  # fmt: skip
def test_a_run_is_known_by_its_record(record: bytes, is_run: bool, tmp_path: Path) -> None:
    files = {"r/run.json": record, "r/config.yaml": b"", "r/a/1.png": IMAGE, "b/2.png": IMAGE}
    index = index_of("folder", write_files(tmp_path, files), labelled=False)
    assert index.ids.to_pylist() == ["b/2.png"] + ["r/a/1.png"] * (not is_run)
    assert ("own outputs" in index.left_out) is is_run


def test_broken_tables_of_such_names_are_not_left_out(tmp_path: Path) -> None:
    for content in (
        b"",
        b"PAR1",
        b"PAR1" + b"\0" * 64 + b"\xff\xff\0\0PAR1",
        b"PAR1\0\1\2\3\4\0\0\0PAR1",
    ):
        write_files(tmp_path, {"shards/test-00000.parquet": content})
        with raises("E-DATA-056") as caught:
            index_of("parquet", tmp_path)
        assert "test-00000" in caught.value.where


def test_few_footers_are_read_of_many_shards(s3: LoopbackS3, tmp_path: Path) -> None:
    home = data_set(tmp_path, count=24)
    shards = list((home / "shards").iterdir())
    assert len(shards) > 10
    s3.buckets["bucket"] |= {f"in/shards/{file.name}": file.read_bytes() for file in shards}
    with raises("E-DATA-300"):
        index_of("parquet", "s3://bucket/in")
    read = {line.split()[1] for line in s3.log if line.startswith("GET") and "shards/" in line}
    assert len(read) <= 8
