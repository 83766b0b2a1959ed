"""One ingest task: bad images are left out and told, failures travel as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.image import ImageLimits
from pipeline.dataset.shards import read_shard
from pipeline.ingest.sources import index_source
from pipeline.ingest.stage import _chunks
from pipeline.ingest.task import Chunk, Place, parse_outcome, run_chunk, write_chunk
from tests.loopback_s3 import LoopbackS3
from tests.test_ingest import config, make_photos

KIB = 1024


def photo_chunk(source: Path, names: list[str]) -> Chunk:
    sizes = [(source / name).stat().st_size for name in names]
    return Chunk("pretrain", 3, names, [None] * len(names), names, sizes)


def test_a_chunk_leaves_bad_images_out_and_says_why(tmp_path: Path) -> None:
    source = make_photos(tmp_path / "in", 4, {"c0/a.jpg": b"text", "c1/b.jpg": b""})
    names = ["c0/a.jpg", "c0/000.png", "c1/b.jpg", "c1/001.png"]
    place = Place(str(tmp_path / "out"), str(source), ImageLimits())
    outcome = write_chunk(photo_chunk(source, names), place=place, pixels=None)
    assert [(reject.id, reject.reason) for reject in outcome.rejects] == [
        ("c0/a.jpg", "not_an_image"),
        ("c1/b.jpg", "empty"),
    ]
    assert outcome.shard is not None and outcome.shard.name == "shards/pretrain-00003.parquet"
    rows = read_shard(place.data_uri, outcome.shard)
    assert rows.ids == ("c0/000.png", "c1/001.png")
    assert rows.images[0] == (source / "c0/000.png").read_bytes()  # stored as they were


def test_a_chunk_of_bad_images_writes_no_shard(tmp_path: Path) -> None:
    source = make_photos(tmp_path / "in", 1, {"c0/a.jpg": b"text"})
    place = Place(str(tmp_path / "out"), str(source), ImageLimits())
    outcome = write_chunk(photo_chunk(source, ["c0/a.jpg"]), place=place, pixels=None)
    assert outcome.shard is None and not (tmp_path / "out").exists()


def test_a_file_that_is_too_large_is_not_even_read(tmp_path: Path) -> None:
    chunk = Chunk("pretrain", 0, ["x"], [None], ["no/such/file.png"], [10**12])
    place = Place(str(tmp_path / "out"), str(tmp_path), ImageLimits())
    outcome = write_chunk(chunk, place=place, pixels=None)
    assert outcome.rejects[0].reason == "too_many_bytes"


def test_an_image_that_vanished_fails_the_task_as_data(tmp_path: Path) -> None:
    chunk = {"set_name": "pretrain", "number": 0, "ids": ["x"], "labels": [None]}
    row = {"chunk": json.dumps({**chunk, "locators": ["x.png"], "sizes": [10]})}
    place = Place(str(tmp_path / "out"), str(tmp_path), ImageLimits())
    outcome = parse_outcome(run_chunk(row, place=place, pixels=None)["outcome"])
    assert outcome.error is not None and outcome.error[0] == "StorageError"
    assert outcome.error[2] == str(tmp_path / "x.png")


def test_shards_on_s3(s3: LoopbackS3) -> None:
    index = index_source(config(Path("unused")).data)
    place = Place("s3://bucket/data/digits", None, ImageLimits())
    chunk = next(iter(_chunks(index, 64 * KIB)))
    outcome = write_chunk(chunk, place=place, pixels=index.pixels)
    assert list(s3.buckets["bucket"]) == ["data/digits/shards/pretrain-00000.parquet"]
    assert outcome.shard is not None
    assert read_shard(place.data_uri, outcome.shard).ids == tuple(chunk.ids)


@pytest.mark.ray
def test_the_processes_that_decode_do_not_import_torch(ray_cluster: None) -> None:
    import ray

    @ray.remote
    def loaded() -> list[str]:
        import sys

        import pipeline.ingest.task  # noqa: F401

        return [name for name in ("torch", "sklearn", "scipy") if name in sys.modules]

    task: Callable[[], Any] = loaded.remote
    assert ray.get(task()) == []
