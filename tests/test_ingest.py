"""Ingest: the same shards every time, rejects counted, and never half a data set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import storage
from pipeline.cluster.jobs import RayTasks, ThreadTasks
from pipeline.config import Config
from pipeline.dataset.manifest import canonical_hash, read_manifest, verify_shards
from pipeline.dataset.shards import read_shard
from pipeline.ingest.plan import chunks_of, cut, data_set_name, data_set_uri, dry_run, work_of
from pipeline.ingest.sources import listing
from pipeline.ingest.sources.open import index_source
from pipeline.ingest.stage import ingest
from pipeline.ingest.task import run_chunk, write_chunk
from tests import sources
from tests.refusals import raises

KIB = 1024


def config(root: Path, *, ingest: dict[str, Any] | None = None, **data: Any) -> Config:
    sections = {"data": {"root": str(root), **data}}
    sections["ingest"] = {"shard_bytes": 64 * KIB, **(ingest or {})}
    return Config.model_validate(sections)


def quiet(done: int, total: int) -> None:
    pass


def files(uri: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(storage.join(uri, name)) for name in storage.list_tree(uri)}


def make_photos(root: Path, num_good: int, bad: dict[str, bytes]) -> Path:
    for number in range(num_good):
        path = root / f"c{number % 2}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    for name, content in bad.items():
        (root / name).write_bytes(content)
    return root


def photos(root: Path, source: Path, max_reject_frac: float = 0.0) -> Config:
    limits = {"max_reject_frac": max_reject_frac}
    return config(root, ingest=limits, source="folder", path=str(source), imbalance_ratio=None)


# --- without Ray ---


@pytest.mark.parametrize("shard_bytes", [1, 100, 1000, 10**9])
def test_cuts_cover_all_rows_in_order_and_bound_the_size(shard_bytes: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 300, 100)
    ranges = cut(sizes, shard_bytes)
    assert [row for rows in ranges for row in rows] == list(range(100))
    totals = [int(sizes[rows.start : rows.stop].sum()) for rows in ranges]
    assert all(0 < total <= shard_bytes + 300 for total in totals)
    assert len(cut(sizes[:0], shard_bytes)) == 0


def test_cuts_of_equal_rows_are_even() -> None:
    lengths = [len(rows) for rows in cut(np.full(1000, 100), 30_000)]
    assert len(lengths) == 4 and set(lengths) == {250}


def test_the_name_depends_on_content_only(tmp_path: Path) -> None:
    name = data_set_name(config(tmp_path))
    assert name.startswith("digits-") and len(name) == len("digits-") + 8
    assert name == data_set_name(config(tmp_path / "elsewhere"))
    assert name != data_set_name(config(tmp_path, split_seed=1))
    assert name != data_set_name(config(tmp_path, ingest={"shard_bytes": 128 * KIB}))


def test_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    plan = dry_run(config(tmp_path / "data"))
    assert not plan.exists and not (tmp_path / "data").exists()
    assert list(plan.sets) == ["pretrain", "probe", "test"]
    assert plan.sets["test"].rows == 400 and plan.sets["test"].class_counts == [40] * 10
    test = plan.sets["test"]
    assert 400 * 768 < test.num_bytes < 400 * 900
    assert test.num_shards == -(-test.num_bytes // (64 * KIB))


@pytest.mark.ray
def test_digits_become_a_data_set(tmp_path: Path, ray_cluster: None) -> None:
    calls: list[tuple[int, int]] = []
    settings = config(tmp_path)
    uri, manifest = ingest(settings, lambda done, total: calls.append((done, total)))
    assert uri == data_set_uri(settings) and read_manifest(uri) == manifest
    verify_shards(uri, manifest)
    index = index_source(settings.data, ThreadTasks())
    assert calls[0] == (0, calls[0][1]) and calls[-1] == (calls[0][1], calls[0][1])
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert index.pixels is not None
    for name, rows in index.sets.items():
        info = manifest.sets[name]  # type: ignore[index]
        if info.order is None:  # of the others: tests/test_sets.py
            parts = [read_shard(uri, shard) for shard in info.shards]
            assert [row for part in parts for row in part.ids] == index.ids_of(rows)
            labels = np.concatenate([part.labels for part in parts])
            assert labels.tolist() == index.labels_N[rows].tolist()
            pixels = np.concatenate([part.raw_pixels(16, 16) for part in parts])
            np.testing.assert_array_equal(pixels, index.pixels[rows])
        assert list(info.class_counts or ()) == index.class_counts(name)
        assert info.rows == len(rows)
    assert len(manifest.sets["probe"].shards) > 10
    assert manifest.image.encoding == "raw" and manifest.image.height_px == 16
    assert manifest.rejects.total == 0 and "root" not in manifest.config["data"]


@pytest.mark.ray
@pytest.mark.promise("R27")
def test_twice_gives_the_same_bytes_whatever_the_parallelism(
    tmp_path: Path, ray_cluster: None
) -> None:
    first_uri, first = ingest(config(tmp_path / "1"), quiet)
    second_uri, second = ingest(config(tmp_path / "2"), quiet)
    assert first.hash == second.hash and files(first_uri) == files(second_uri)
    settings = config(tmp_path / "3")
    alone = work_of(settings, index_source(settings.data, ThreadTasks()))
    for chunk in reversed(list(chunks_of(alone, 64 * KIB))):  # one by one, last first
        write_chunk(chunk, alone)
    made = files(first_uri)  # the driver writes two of them
    driver = {"manifest.json": made["manifest.json"]}
    driver["shards/probe-order.parquet"] = made["shards/probe-order.parquet"]
    assert {**files(alone.data_uri), **driver} == made
    _, other = ingest(config(tmp_path / "1", split_seed=1), quiet)  # control
    assert other.hash != first.hash


@pytest.mark.ray
def test_a_second_ingest_reuses_the_data_set(tmp_path: Path, ray_cluster: None) -> None:
    settings = config(tmp_path)
    uri, manifest = ingest(settings, quiet)
    file = Path(uri) / "manifest.json"
    written_ns = file.stat().st_mtime_ns

    def never(done: int, total: int) -> None:
        raise AssertionError("ingested again")

    assert ingest(settings, never) == (uri, manifest)
    assert file.stat().st_mtime_ns == written_ns and dry_run(settings).exists
    shard = Path(uri) / manifest.sets["test"].shards[0].name
    shard.rename(shard.with_suffix(".moved"))
    with raises("E-DATA-013", "1"):
        ingest(settings, never)
    shard.with_suffix(".moved").rename(shard)
    content = json.loads(file.read_text())
    content["config"]["data"]["split_seed"] = 7
    content["hash"] = canonical_hash(content)
    file.write_text(json.dumps(content))
    with raises("E-DATA-078"):
        ingest(settings, never)


@pytest.mark.ray
@pytest.mark.promise("R27")
def test_an_interrupted_ingest_starts_again_and_mixes_nothing(
    tmp_path: Path, ray_cluster: None
) -> None:
    settings = config(tmp_path / "interrupted")

    def interrupt(done: int, total: int) -> None:
        if done > total // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(settings, interrupt)
    uri = data_set_uri(settings)
    assert storage.list_names(storage.join(uri, "shards"))
    with raises("E-DATA-006"):
        read_manifest(uri)
    storage.write_bytes(storage.join(uri, "shards", "pretrain-99999.parquet"), b"old")
    _, manifest = ingest(settings, quiet)
    clean_uri, clean = ingest(config(tmp_path / "clean"), quiet)
    assert manifest.hash == clean.hash and files(uri) == files(clean_uri)


@pytest.mark.ray
@pytest.mark.promise("R26")
def test_rejects_are_counted_once_and_listed(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {"c0/x.jpg": b"text", "c1/y.png": b"", "c1/z.png": b""}
    make_photos(tmp_path / "in", 27, bad)
    monkeypatch.chdir(tmp_path)  # relative paths mean the same in the worker processes
    _, manifest = ingest(photos(Path("out"), Path("in"), max_reject_frac=0.1), quiet)
    # Every image is in pretrain and in probe; a reject counts once all the same.
    assert manifest.rejects.total == 3
    assert manifest.rejects.by_reason == {"empty": 2, "not_an_image": 1}
    assert [reject.id for reject in manifest.rejects.examples] == sorted(bad)
    assert manifest.sets["pretrain"].rows == manifest.sets["probe"].rows == 27
    assert manifest.sets["probe"].class_counts == (14, 13)
    assert manifest.image.encoding == "original" and manifest.image.height_px is None


@pytest.mark.ray
@pytest.mark.promise("R26")
def test_too_many_rejects_fail_and_leave_nothing(tmp_path: Path, ray_cluster: None) -> None:
    source = make_photos(tmp_path / "in", 27, {"c0/x.jpg": b"text", "c1/y.png": b""})
    settings = photos(tmp_path / "out", source, max_reject_frac=0.05)
    with raises("E-DATA-079", "2", "29") as caught:
        ingest(settings, quiet)
    assert "1 empty, 1 not_an_image" in caught.value.what and "c0/x.jpg" in caught.value.what
    assert "ingest.max_reject_frac" in caught.value.todo
    assert not storage.exists(data_set_uri(settings))


@pytest.mark.ray
def test_all_rejected_is_no_data_set(tmp_path: Path, ray_cluster: None) -> None:
    source = make_photos(tmp_path / "in", 2, {})
    for name in ("c0/000.png", "c1/001.png"):
        (source / name).write_bytes(b"text")
    with raises("E-DATA-080"):
        ingest(photos(tmp_path / "out", source, max_reject_frac=1.0), quiet)


@pytest.mark.ray
def test_a_failed_write_in_a_task_arrives_as_it_was(ray_cluster: None) -> None:
    settings = config(Path("/proc/sdclr-data"))
    with raises("E-STORAGE-370") as caught:
        ingest(settings, quiet)
    assert "/proc/sdclr-data" in caught.value.where


@pytest.mark.ray
def test_a_bug_in_a_task_is_a_cluster_error(tmp_path: Path, ray_cluster: None) -> None:
    settings = config(tmp_path)
    broken = replace(work_of(settings, index_source(settings.data, ThreadTasks())), index=None)
    item = {"set_name": "pretrain", "number": 0, "start": 0, "stop": 1}
    with raises("E-CLUSTER-008"):
        list(RayTasks("here").map(run_chunk, [item], broken))


@pytest.mark.ray
@pytest.mark.promise("R27")
def test_ray_tasks_and_threads_make_the_same_data_sets(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {f"a/{n:02d}.png": sources.image_bytes(n % 25) for n in range(30)}
    sources.write_files(tmp_path / "in", images)
    (tmp_path / "l.csv").write_text("".join(f"{name},{name[3]}\n" for name in images))
    sources.write_table(tmp_path / "tables" / "t.parquet", list(images.values()), row_group_size=7)
    sources.write_tar(tmp_path / "tars" / "t.tar", dict(images))
    monkeypatch.setattr(listing, "_NAMES_PER_TASK", 5)
    for source, path, keys in (
        ("folder", tmp_path / "in", {"labelled": False}),
        ("list", tmp_path / "l.csv", {"image_root": str(tmp_path / "in")}),
        ("parquet", tmp_path / "tables", {}),
        ("webdataset", tmp_path / "tars", {"labelled": False}),
    ):
        dropped = {"ingest": {"drop_duplicates": True}}
        config = sources.settings(source, path, tmp_path / "ray", **keys, **dropped)
        uri, manifest = ingest(config, quiet)
        other_uri, other, _ = sources.ingested(source, path, tmp_path / "t", **keys, **dropped)
        assert manifest.hash == other.hash and files(uri) == files(other_uri)
        assert manifest.sets["pretrain"].rows == 25
        assert manifest.duplicates is not None and manifest.duplicates.num_images == 5
