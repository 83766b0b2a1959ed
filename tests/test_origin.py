"""Which source a data set is of: two projects never share one, and what changed is not reused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.cluster.jobs import ThreadTasks
from pipeline.dataset.manifest import canonical_hash, read_manifest, write_manifest
from pipeline.errors import DataError
from pipeline.ingest import origin
from pipeline.ingest.plan import data_set_name, dry_run
from tests.sources import (
    image_bytes,
    ingested,
    settings,
    stored,
    write_files,
    write_table,
    write_tar,
)

IMAGES = [image_bytes(n) for n in range(9)]


def make_folder(root: Path, count: int) -> Path:
    return write_files(root / "images", {f"{n}.png": IMAGES[n] for n in range(count)})


def make_list(root: Path, count: int) -> Path:
    write_files(root, {f"{n}.png": IMAGES[n] for n in range(count)})
    (root / "images.txt").write_text("".join(f"{n}.png\n" for n in range(count)))
    return root / "images.txt"


def make_tables(root: Path, count: int) -> Path:
    for n in range(count):
        write_table(root / "images" / f"{n}.parquet", [IMAGES[n]])
    return root / "images"


def make_archives(root: Path, count: int) -> Path:
    for n in range(count):
        write_tar(root / "images" / f"{n}.tar", {"a.png": IMAGES[n]})
    return root / "images"


Maker = Callable[[Path, int], Path]
SOURCES: dict[str, Maker] = {
    "folder": make_folder, "list": make_list, "parquet": make_tables, "webdataset": make_archives,
}  # fmt: skip
by_source = pytest.mark.parametrize("source", SOURCES)


@by_source
@pytest.mark.promise("R30")
def test_two_projects_with_one_relative_path_do_not_share_a_data_set(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for team, count in (("a", 3), ("b", 5)):
        path = SOURCES[source](tmp_path / team, count)
        monkeypatch.chdir(tmp_path / team)
        uri, manifest, _ = ingested(source, path.name, tmp_path / "shared", labelled=False)
        found[team] = uri, len(stored(uri, manifest))
    assert found["a"][0] != found["b"][0] and (found["a"][1], found["b"][1]) == (3, 5)


@by_source
def test_one_place_written_in_several_ways_is_one_data_set(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = SOURCES[source](tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    ways = (path.name, f"./{path.name}", str(path), path.as_uri())
    assert len({data_set_name(settings(source, way, "data")) for way in ways}) == 1


@by_source
@pytest.mark.promise("R30")
def test_a_source_that_has_grown_is_not_reused_in_silence(source: str, tmp_path: Path) -> None:
    path, root = SOURCES[source](tmp_path, 3), tmp_path / "out"
    uri, manifest, _ = ingested(source, path, root, labelled=False)
    again, _, notes = ingested(source, path, root, labelled=False)  # control
    assert again == uri and notes
    SOURCES[source](tmp_path, 4)
    for use in (
        lambda: ingested(source, path, root, labelled=False),
        lambda: dry_run(settings(source, path, root, labelled=False)),
    ):
        with pytest.raises(DataError) as caught:
            use()
        assert caught.value.id == "E-DATA-304" and uri in caught.value.todo
    shutil.rmtree(uri)
    _, manifest, _ = ingested(source, path, root, labelled=False)
    assert manifest.sets["pretrain"].rows == 4


@by_source
def test_a_source_that_is_gone_is_no_loss(source: str, tmp_path: Path) -> None:
    path, root = SOURCES[source](tmp_path, 3), tmp_path / "out"
    uri, manifest, _ = ingested(source, path, root, labelled=False)
    path.rename(tmp_path / "elsewhere")
    again, same, notes = ingested(source, path, root, labelled=False)
    assert (again, same) == (uri, manifest) and any("used as it was made" in n for n in notes)


def test_images_below_the_root_of_a_list_that_changed_are_seen(tmp_path: Path) -> None:
    path = make_list(tmp_path, 3)
    ingested("list", path, tmp_path / "out")
    (tmp_path / "1.png").write_bytes(image_bytes(99, (40, 40)))
    with pytest.raises(DataError) as caught:
        ingested("list", path, tmp_path / "out")
    assert caught.value.id == "E-DATA-304" and "image_root" in caught.value.what


def test_index_lists_are_part_of_what_a_data_set_is_made_of(tmp_path: Path) -> None:
    data = settings("cifar10", tmp_path, tmp_path / "out").data
    data = data.model_copy(
        update={"sets": data.sets.model_copy(update={"probe": str(tmp_path / "p.npy")})}
    )
    np.save(tmp_path / "p.npy", np.arange(3))
    then = origin.origin_of(data, ThreadTasks())
    assert origin.check_origin(then, data, ThreadTasks(), data_uri="d") == []
    np.save(tmp_path / "p.npy", np.arange(1, 4))
    with pytest.raises(DataError) as caught:
        origin.check_origin({"sets.probe": then["sets.probe"]}, data, ThreadTasks(), data_uri="d")
    assert "sets.probe" in caught.value.what


def test_another_host_is_named_when_its_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, root = make_folder(tmp_path, 3), tmp_path / "out"
    uri, manifest, _ = ingested("folder", path, root)
    place = replace(manifest.origin["path"], host="elsewhere")
    write_manifest(uri, replace(manifest, origin={"path": place}))
    assert read_manifest(uri).hash == manifest.hash  # where it came from is no content
    ingested("folder", path, root)  # the same files on a shared disk
    make_folder(tmp_path, 4)
    with pytest.raises(DataError) as caught:
        ingested("folder", path, root)
    assert "on elsewhere, now on" in caught.value.what


@pytest.mark.promise("R30", control=True)
def test_touched_files_are_named_and_reused(tmp_path: Path) -> None:
    path, root = make_folder(tmp_path, 3), tmp_path / "out"
    uri, _, _ = ingested("folder", path, root)
    os.utime(path / "1.png", (4e9, 4e9))
    again, _, notes = ingested("folder", path, root)
    assert again == uri and any("2096" in note for note in notes)


def test_other_files_of_the_same_sizes_with_older_dates_are_named(tmp_path: Path) -> None:
    path, root = make_folder(tmp_path, 3), tmp_path / "out"
    ingested("folder", path, root)
    assert not any("1987" in note for note in ingested("folder", path, root)[2])
    for file in path.iterdir():
        os.utime(file, (5.5e8, 5.5e8))
    assert any("1987" in note for note in ingested("folder", path, root)[2])


def test_the_dry_run_shows_what_will_be_used(tmp_path: Path) -> None:
    files = {f"{n}.png": IMAGES[n] for n in range(8)} | {"bad.png": IMAGES[8][:70]}
    path, limits = write_files(tmp_path / "in", files), {"max_reject_frac": 0.5}
    before = dry_run(settings("folder", path, tmp_path / "out", ingest=limits))
    assert before.sets["pretrain"].rows == 9 and not before.exists
    _, manifest, _ = ingested("folder", path, tmp_path / "out", ingest=limits)
    after = dry_run(settings("folder", path, tmp_path / "out", ingest=limits))
    assert after.exists and after.sets["pretrain"].rows == 8 and after.manifest == manifest


def test_the_hash_leaves_out_the_origin_and_nothing_else(tmp_path: Path) -> None:
    _, manifest, _ = ingested("folder", make_folder(tmp_path, 3), tmp_path / "out")
    content = {"a": 1, "hash": "x", "origin": {"path": 1}}
    assert canonical_hash(content) == canonical_hash({"a": 1})
    assert canonical_hash(content) != canonical_hash({"a": 2})
    assert manifest.origin["path"].files == 3


@pytest.mark.parametrize("kind", ["list", "table", "archive"])
def test_one_file_of_equal_size_and_other_content_is_named_so(kind: str, tmp_path: Path) -> None:
    write_files(tmp_path, {f"{n}.png": IMAGES[n] for n in range(3)})
    path = tmp_path / {"list": "l.txt", "table": "t.parquet", "archive": "a.tar"}[kind]
    source = {"list": "list", "table": "parquet", "archive": "webdataset"}[kind]

    def write(first: int, second: int) -> int:
        assert len(IMAGES[first]) == len(IMAGES[second])
        if kind == "list":
            path.write_text(f"{first}.png\n{second}.png\n")
        elif kind == "table":
            write_table(path, [IMAGES[first], IMAGES[second]], use_dictionary=False)
        else:
            write_tar(path, {"a.png": IMAGES[first], "b.png": IMAGES[second]})
        return path.stat().st_size

    size = write(0, 1)
    data = settings(source, path, tmp_path / "out").data
    then = {"path": origin.origin_of(data, ThreadTasks())["path"]}
    assert origin.check_origin(then, data, ThreadTasks(), data_uri="d") == []
    assert write(1, 2) == size
    with pytest.raises(DataError) as caught:
        origin.check_origin(then, data, ThreadTasks(), data_uri="d")
    had, _, has = caught.value.what.partition(", it has ")
    assert caught.value.id == "E-DATA-304" and not had.endswith(has)
