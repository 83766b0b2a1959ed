"""Images that sets share: stored once, read by the name of each set in its own order."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cluster.jobs import ThreadTasks
from pipeline.config import Config
from pipeline.dataset.decoding import shard_items
from pipeline.dataset.image import ImageLimits
from pipeline.dataset.manifest import Manifest, verify_shards
from pipeline.dataset.pictures import stored_images
from pipeline.dataset.sets import parts_of, places_in
from pipeline.errors import DataError
from pipeline.ingest.sources.open import index_source
from pipeline.ingest.stage import ingest
from tests.sources import (
    image_bytes,
    index_of,
    ingested,
    rows_of,
    write_files,
    write_table,
    write_tar,
)


def read(uri: str, manifest: Manifest, name: str) -> tuple[list[str], list[bytes], list[int]]:
    """Ids, images and labels of a set in its order."""
    found: dict[int, tuple[str, bytes, int]] = {}
    parts = parts_of(uri, manifest, name)
    for part, rows in zip(parts, rows_of(uri, manifest, name), strict=True):
        for place, *row in zip(part.places_n, rows.ids, rows.images, rows.labels, strict=True):
            found[int(place)] = (row[0], row[1], int(row[2]))
    assert sorted(found) == list(range(manifest.sets[name].rows))  # type: ignore[index]
    columns = [[found[place][column] for place in range(len(found))] for column in range(3)]
    return columns[0], columns[1], columns[2]  # type: ignore[return-value]


def digits(root: Path) -> tuple[Config, str, Manifest]:
    config = Config.model_validate({"data": {"root": str(root)}, "ingest": {"shard_bytes": 65536}})
    uri, manifest = ingest(config, lambda done, total: None, tasks=ThreadTasks())
    return config, uri, manifest


def test_every_set_reads_as_if_it_were_stored_alone(tmp_path: Path) -> None:
    config, uri, manifest = digits(tmp_path)
    verify_shards(uri, manifest)
    index = index_source(config.data, ThreadTasks())
    assert index.pixels is not None
    for name, rows in index.sets.items():
        ids, images, labels = read(uri, manifest, name)
        assert ids == index.ids_of(rows)
        assert images == [index.pixels[row].tobytes() for row in rows]
        assert labels == index.labels_N[rows].tolist()
        assert manifest.sets[name].class_counts == tuple(index.class_counts(name) or ())  # type: ignore[index]
    ids = [name for shard in manifest.shards() for name in _ids(uri, manifest, shard.name)]
    assert len(ids) == len(set(ids)) == 1797  # each image once
    assert manifest.sets["pretrain"].order is None and manifest.sets["test"].order is None
    assert manifest.sets["probe"].order is not None
    for name in ("probe", "test"):  # more images, other images
        assert places_in(uri, manifest, name, "pretrain") is None
    probe = read(uri, manifest, "probe")[1]
    files = stored_images(uri, manifest, "probe", [5, 700, 0])
    assert sorted(files) == [0, 5, 700]
    for row, data in files.items():
        assert Image.open(io.BytesIO(data)).convert("RGB").tobytes() == probe[row]


def _ids(uri: str, manifest: Manifest, shard: str) -> list[str]:
    from pipeline.dataset.shards import read_shard

    return list(read_shard(uri, next(s for s in manifest.shards() if s.name == shard)).ids)


def test_decoding_gives_every_place_of_a_set_once(tmp_path: Path) -> None:
    from pipeline.dataset.decoding import ShardDecoder

    config, uri, manifest = digits(tmp_path)
    decode = ShardDecoder(uri, manifest.image, ImageLimits(), None)
    index = index_source(config.data, ThreadTasks())
    rows, ids = [], []
    for item in shard_items(uri, manifest, ("probe",)):
        found = decode({key: np.array([value]) for key, value in item.items()})
        assert set(found["set"]) == {"probe"}
        rows += found["row"].tolist()
        ids += found["id"].tolist()
    order = np.argsort(rows)
    assert sorted(rows) == list(range(manifest.sets["probe"].rows))
    assert [ids[place] for place in order] == index.ids_of(index.sets["probe"])


@pytest.mark.parametrize("source", ["folder", "list", "parquet", "webdataset"])
@pytest.mark.parametrize("drop_duplicates", [False, True])
def test_probe_is_pretrain_without_a_second_copy(
    source: str, drop_duplicates: bool, tmp_path: Path
) -> None:
    images = {f"c{n % 2}/{n:02d}.png": image_bytes(n % 18) for n in range(20)}
    images["c0/broken.png"] = image_bytes(99)[:80]
    place, keys = tmp_path / "in", {}
    if source == "parquet":
        labels = [int(name[1]) for name in images]
        write_table(place / "t.parquet", list(images.values()), labels=labels, row_group_size=4)
        keys = {"label_column": "label"}
    elif source == "webdataset":
        entries: dict[str, bytes] = {}
        for name, data in images.items():
            entries |= {name: data, f"{name[:-4]}.cls": name[1].encode()}
        write_tar(place / "t.tar", dict(entries))
    else:
        write_files(place, images)
    if source == "list":
        place = tmp_path / "in" / "l.csv"
        place.write_text("".join(f"{name},{name[1]}\n" for name in images))
    limits = {"max_reject_frac": 0.5, "drop_duplicates": drop_duplicates}
    uri, manifest, _ = ingested(source, place, tmp_path / "out", ingest=limits, **keys)
    num = 18 if drop_duplicates else 20
    assert manifest.sets["pretrain"].rows == manifest.sets["probe"].rows == num
    assert not manifest.sets["probe"].shards and manifest.sets["probe"].order is not None
    pretrain, probe = (read(uri, manifest, name) for name in ("pretrain", "probe"))
    assert sorted(zip(*pretrain, strict=True)) == sorted(zip(*probe, strict=True))
    assert source in ("parquet", "webdataset") or pretrain[0] != probe[0]  # each in its own order
    places_N = places_in(uri, manifest, "probe", "pretrain")
    assert places_N is not None and [pretrain[0][place] for place in places_N] == probe[0]
    if source in ("folder", "list"):
        index = index_of(source, place, **keys)
        kept = [name for name in index.ids_of(index.sets["probe"]) if name in set(probe[0])]
        assert probe[0] == kept
    verify_shards(uri, manifest)


def test_an_order_file_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    _, uri, manifest = digits(tmp_path)
    order = manifest.sets["probe"].order
    assert order is not None
    file = Path(uri) / order.name
    content = file.read_bytes()
    file.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    with pytest.raises(DataError) as caught:
        parts_of(uri, manifest, "probe")
    assert caught.value.id == "E-DATA-305"
    file.write_bytes(content)
    parts_of(uri, manifest, "probe")  # control
    less = replace(manifest.sets["probe"], rows=5)
    with pytest.raises(DataError):
        parts_of(uri, replace(manifest, sets={**manifest.sets, "probe": less}), "probe")
    file.unlink()
    with pytest.raises(DataError):
        verify_shards(uri, manifest)
