"""Exact duplicates: found across names and sets, one winner, shards written again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cluster.jobs import ThreadTasks
from pipeline.config.data import Sets
from pipeline.dataset.manifest import read_manifest, verify_shards
from pipeline.ingest.claim import Claim
from pipeline.ingest.plan import chunks_of, work_of
from pipeline.ingest.sources.open import index_source
from pipeline.ingest.stage import _write_shards
from tests.sources import image_bytes, ingested, rows_of, settings, stored, write_files

SAME = image_bytes(1000)


def photos(root: Path) -> Path:
    files = {f"c{n % 2}/{n:03d}.png": image_bytes(n, (64, 64)) for n in range(24)}
    return write_files(root, {**files, "c0/b.png": SAME, "c1/a.png": SAME, "c1/c.png": SAME})


def test_they_are_reported_and_kept_unless_dropped(tmp_path: Path) -> None:
    source = photos(tmp_path / "in")
    uri, kept, notes = ingested("folder", source, tmp_path / "out")
    assert kept.duplicates is not None and not kept.duplicates.dropped
    assert (kept.duplicates.num_groups, kept.duplicates.num_images) == (1, 2)
    assert kept.duplicates.examples == (("c0/b.png", "c1/a.png", "c1/c.png"),)
    assert kept.sets["pretrain"].rows == 27 and "2 images have the bytes of another" in notes[0]
    uri, manifest, _ = ingested(
        "folder", source, tmp_path / "out", ingest={"drop_duplicates": True}
    )
    assert manifest.duplicates is not None and manifest.duplicates.dropped
    assert manifest.duplicates == replace(kept.duplicates, dropped=True)
    for name in ("pretrain", "probe"):
        found = stored(uri, manifest, name)
        assert len(found) == 25 and "c0/b.png" in found and "c1/a.png" not in found
    assert manifest.sets["probe"].class_counts == (13, 12)
    assert read_manifest(uri) == manifest
    verify_shards(uri, manifest)
    kept_ids = [i for rows in rows_of(uri, manifest) for i in rows.ids]
    assert len(kept_ids) == len(set(kept_ids)) == 25


def test_control_the_same_image_under_one_name_in_two_sets_is_none(tmp_path: Path) -> None:
    files = {f"c{n % 2}/{n:03d}.png": image_bytes(n) for n in range(4)}
    source = write_files(tmp_path / "in", files)
    _, manifest, notes = ingested("folder", source, tmp_path / "out")
    assert manifest.duplicates is not None and manifest.duplicates.num_groups == 0
    assert notes == []


@pytest.mark.promise("R24")
def test_the_image_of_the_test_set_wins(tmp_path: Path) -> None:
    files = {name: image_bytes(n) for n, name in enumerate(("z/0.png", "z/1.png", "y/2.png"))}
    files |= {"a.png": files["z/0.png"], "b.png": files["y/2.png"]}
    write_files(tmp_path, files)
    (tmp_path / "main.csv").write_text("a.png,0\nz/1.png,0\ny/2.png,0\nb.png,0")
    (tmp_path / "test.csv").write_text("z/0.png,0")
    uri, manifest, notes = ingested(
        "list", tmp_path / "main.csv", tmp_path / "out",
        sets=Sets(test=str(tmp_path / "test.csv")), ingest={"drop_duplicates": True},
    )  # fmt: skip
    assert set(stored(uri, manifest)) == {"b.png", "z/1.png"}
    assert set(stored(uri, manifest, "test")) == {"z/0.png"}
    assert manifest.duplicates is not None and manifest.duplicates.num_across_sets == 1
    assert "1 groups across sets: dropped" in notes[0]


@pytest.mark.promise("R24", control=True)
def test_control_without_dropping_the_image_is_in_both_sets(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": SAME, "b.png": SAME, "c.png": image_bytes(1)})
    (tmp_path / "main.csv").write_text("a.png,0\nc.png,0")
    (tmp_path / "test.csv").write_text("b.png,0")
    lists = {"sets": Sets(test=str(tmp_path / "test.csv"))}
    uri, manifest, notes = ingested("list", tmp_path / "main.csv", tmp_path / "out", **lists)
    assert SAME in stored(uri, manifest).values() and SAME in stored(uri, manifest, "test").values()
    assert "1 groups across sets: kept" in notes[0]


def test_dropping_gives_the_same_bytes_every_time(tmp_path: Path) -> None:
    source = photos(tmp_path / "in")
    hashes = {
        ingested("folder", source, tmp_path / name, ingest={"drop_duplicates": True})[1].hash
        for name in ("1", "2")
    }
    assert len(hashes) == 1


def test_a_shard_that_loses_all_its_rows_goes(tmp_path: Path) -> None:
    files = {f"{n:02d}.png": SAME for n in range(200)}
    config = settings("folder", write_files(tmp_path / "in", files), tmp_path / "out",
                      ingest={"drop_duplicates": True})  # fmt: skip
    work = work_of(config, index_source(config.data, ThreadTasks()))
    assert len(list(chunks_of(work, 64 * 1024))) > 1
    with Claim(work.data_uri) as claim:
        made = _write_shards(
            config, work, work.index.sets, claim, ThreadTasks(), lambda done, total: None
        )
    (shard,) = made.shards.values()
    assert shard.rows == 1
    names = [path.name for path in (Path(work.data_uri) / "shards").iterdir()]
    assert names == [shard.name.removeprefix("shards/")]
