"""One ingest task: bad images are left out and told, failures travel as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import storage
from pipeline.cluster.jobs import ThreadTasks
from pipeline.dataset.image import ImageLimits, decode_rgb
from pipeline.dataset.manifest import ShardInfo
from pipeline.dataset.shards import read_shard
from pipeline.ingest.plan import chunks_of, work_of
from pipeline.ingest.sources.index import ImageIndex
from pipeline.ingest.sources.listing import as_strings
from pipeline.ingest.sources.open import index_source
from pipeline.ingest.task import (
    Chunk,
    Work,
    drop_rows,
    parse_outcome,
    run_chunk,
    write_chunk,
)
from tests import sources
from tests.loopback_s3 import LoopbackS3
from tests.refusals import raises
from tests.sources import image_bytes, write_files
from tests.test_ingest import config, make_photos

KIB = 1024


def photo_work(
    out: Path, source: Path, names: list[str], sizes: list[int] | None = None, **options: Any
) -> Work:
    """These files, unlabelled, in this order."""
    sizes = [(source / name).stat().st_size for name in names] if sizes is None else sizes
    index = ImageIndex(
        source={"kind": "folder"},
        ids=as_strings(names),
        num_bytes_N=np.array(sizes, np.int64),
        labels_N=np.full(len(names), -1, np.int32),
        sets={"pretrain": np.arange(len(names))},
        class_names=None,
        root=str(source),
        may_be_missing=options.pop("may_be_missing", False),
    )
    return Work(str(out), index, ImageLimits(), **options)


def test_a_chunk_leaves_bad_images_out_and_says_why(tmp_path: Path) -> None:
    source = make_photos(tmp_path / "in", 4, {"c0/a.jpg": b"text", "c1/b.jpg": b""})
    names = ["c0/a.jpg", "c0/000.png", "c1/b.jpg", "c1/001.png"]
    work = photo_work(tmp_path / "out", source, names)
    outcome = write_chunk(Chunk("pretrain", 3, 0, 4), work)
    assert [(reject.id, reject.reason) for reject in outcome.rejects] == [
        ("c0/a.jpg", "not_an_image"),
        ("c1/b.jpg", "empty"),
    ]
    assert outcome.kept.tolist() == [1, 3] and outcome.hashes.shape == (2, 2)
    assert outcome.shard is not None and outcome.shard.name == "shards/pretrain-00003.parquet"
    rows = read_shard(work.data_uri, outcome.shard)
    assert rows.ids == ("c0/000.png", "c1/001.png")
    assert rows.images[0] == (source / "c0/000.png").read_bytes()  # stored as they were


def test_a_chunk_of_bad_images_writes_no_shard(tmp_path: Path) -> None:
    source = make_photos(tmp_path / "in", 1, {"c0/a.jpg": b"text"})
    outcome = write_chunk(
        Chunk("pretrain", 0, 0, 1), photo_work(tmp_path / "out", source, ["c0/a.jpg"])
    )
    assert outcome.shard is None and not (tmp_path / "out").exists()


def test_a_file_that_is_too_large_is_not_even_read(tmp_path: Path) -> None:
    work = photo_work(tmp_path / "out", tmp_path, ["no/such/file.png"], [10**12])
    outcome = write_chunk(Chunk("pretrain", 0, 0, 1), work)
    assert outcome.rejects[0].reason == "too_many_bytes"


def test_an_image_that_vanished_fails_unless_a_list_named_it(tmp_path: Path) -> None:
    chunk = Chunk("pretrain", 0, 0, 1)
    with raises("E-STORAGE-370") as caught:
        write_chunk(chunk, photo_work(tmp_path / "out", tmp_path, ["x.png"], [10]))
    assert caught.value.where == str(tmp_path / "x.png")
    listed = photo_work(tmp_path / "out", tmp_path, ["x.png"], [10], may_be_missing=True)
    assert write_chunk(chunk, listed).rejects[0].reason == "missing"


def test_large_photos_are_reduced_once_and_small_ones_kept(tmp_path: Path) -> None:
    source = make_photos(tmp_path / "in", 1, {})  # 40 x 30
    Image.new("RGB", (90, 60), (200, 100, 0)).save(source / "c0/large.png")
    names = ["c0/000.png", "c0/large.png"]
    work = photo_work(tmp_path / "out", source, names, resize_short_px=30)
    outcome = write_chunk(Chunk("pretrain", 0, 0, 2), work)
    assert outcome.shard is not None
    kept, reduced = read_shard(work.data_uri, outcome.shard).images
    assert kept == (source / "c0/000.png").read_bytes()
    assert reduced[:3] == b"\xff\xd8\xff"
    assert decode_rgb(reduced, ImageLimits()).shape == (30, 45, 3)


def test_shards_of_reduced_photos_are_even(tmp_path: Path) -> None:
    """Cut by the sizes that will be stored; as a control, by those of the originals."""
    sides_px = np.random.default_rng(0).permutation(np.linspace(50, 500, 60).astype(int)).tolist()
    names = [f"{number:02d}.jpg" for number in range(60)]
    images = [image_bytes(n, (side, side), "JPEG") for n, side in enumerate(sides_px)]
    write_files(tmp_path / "in", dict(zip(names, images, strict=True)))
    keys = {"labelled": False, "ingest": {"resize_short_px": 48}}
    settings = sources.settings("folder", tmp_path / "in", tmp_path / "out", **keys)
    work = work_of(settings, index_source(settings.data, ThreadTasks()))

    def stored_bytes(work: Work) -> list[int]:
        outcomes = [write_chunk(chunk, work) for chunk in chunks_of(work, 64 * KIB)]
        return [outcome.shard.bytes for outcome in outcomes if outcome.shard is not None]

    even, uneven = stored_bytes(work), stored_bytes(replace(work, reduced_bytes=None))
    assert 2 <= len(even) <= 5 and max(even) < 1.25 * min(even) and max(even) < 1.1 * 64 * KIB
    assert len(uneven) > 20 and max(uneven) > 2 * min(uneven)


@pytest.mark.parametrize("died", ["before the old shard was deleted", "after it"])
def test_rows_are_dropped_once_however_often_the_job_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died: str
) -> None:
    files = {f"{n}.png": image_bytes(n) for n in range(4)}
    work = photo_work(tmp_path / "out", write_files(tmp_path / "in", files), list(files))
    outcome = write_chunk(Chunk("pretrain", 0, 0, 4), work)
    assert outcome.shard is not None
    item = {"shard": asdict(outcome.shard), "rows": [0, 2]}
    with monkeypatch.context() as patch:
        if died != "after it":
            patch.setattr(storage, "delete_tree", lambda uri: None)
        first = drop_rows(item, work.data_uri).values
    assert drop_rows(item, work.data_uri).values == first
    assert read_shard(work.data_uri, ShardInfo(**first)).ids == ("1.png", "3.png")
    assert storage.list_tree(work.data_uri) == {first["name"]: first["bytes"]}


def test_outcomes_come_back_as_they_were(tmp_path: Path) -> None:
    source = make_photos(tmp_path / "in", 2, {"c0/a.jpg": b"text"})
    work = photo_work(tmp_path / "out", source, ["c0/000.png", "c0/a.jpg", "c1/001.png"])
    direct = write_chunk(Chunk("pretrain", 0, 0, 3), work)
    item = {"set_name": "pretrain", "number": 0, "start": 0, "stop": 3}
    packed = parse_outcome(run_chunk(item, work))
    assert packed.shard == direct.shard and packed.rejects == direct.rejects
    np.testing.assert_array_equal(packed.kept, direct.kept)
    np.testing.assert_array_equal(packed.hashes, direct.hashes)


def test_shards_on_s3(s3: LoopbackS3) -> None:
    settings = config(Path("unused"))
    work = work_of(settings, index_source(settings.data, ThreadTasks()))
    work = replace(work, data_uri="s3://bucket/data/digits")
    chunk = next(iter(chunks_of(work, 64 * KIB)))
    outcome = write_chunk(chunk, work)
    assert list(s3.buckets["bucket"]) == ["data/digits/shards/pretrain-00000.parquet"]
    assert outcome.shard is not None
    rows = work.index.sets["pretrain"][chunk.start : chunk.stop]
    assert read_shard(work.data_uri, outcome.shard).ids == tuple(work.index.ids_of(rows))


@pytest.mark.ray
def test_the_processes_that_decode_do_not_import_torch(ray_cluster: None) -> None:
    import ray

    # A process of its own: one that another test has used may hold anything.
    @ray.remote(runtime_env={"env_vars": {"SDCLR_TEST_PROCESS": "decode"}})
    def loaded() -> list[str]:
        import sys

        import pipeline.ingest.task  # noqa: F401

        return [name for name in ("torch", "sklearn", "scipy") if name in sys.modules]

    task: Callable[[], Any] = loaded.remote
    assert ray.get(task()) == []
