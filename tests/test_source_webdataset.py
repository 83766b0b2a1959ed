"""WebDataset tars: names, labels, order; our reader of headers beside the standard library's."""

from __future__ import annotations

import contextlib
import io
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.ingest.sources import tar
from tests.loopback_s3 import LoopbackS3
from tests.refusals import raises
from tests.sources import image_bytes, index_of, ingested, names_of, stored, write_tar

IMAGES = {f"{n:03d}": image_bytes(n) for n in range(20)}


def shard(keys: list[str], *, labels: bool = True) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key in keys:
        entries |= {f"{key}.png": IMAGES[key], f"{key}.json": b"{}"}
        if labels:
            entries[f"{key}.cls"] = str(int(key) % 3).encode() + b"\n"
    return entries


def write_two(root: Path, **options: Any) -> Path:
    write_tar(root / "a-0.tar", shard(list(IMAGES)[:10]), **options)
    write_tar(root / "a-1.tar", shard(list(IMAGES)[10:]), **options)
    return root


def expected() -> dict[str, bytes]:
    return {f"a-{int(key) // 10}.tar/{key}.png": data for key, data in IMAGES.items()}


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_images_arrive_with_their_labels(tmp_path: Path, kind: int) -> None:
    write_two(tmp_path / "in", format=kind)
    uri, manifest, _ = ingested("webdataset", tmp_path / "in", tmp_path / "out")
    assert stored(uri, manifest) == expected()
    assert manifest.class_names == ("0", "1", "2")
    assert manifest.sets["probe"].class_counts == (7, 7, 6)
    index = index_of("webdataset", tmp_path / "in" / "a-1.tar")
    labels = dict(zip(index.ids.to_pylist(), index.labels_N.tolist(), strict=True))
    assert labels["a-1.tar/017.png"] == 17 % 3 and len(labels) == 10


def test_from_s3_one_request_a_stretch(s3: LoopbackS3, tmp_path: Path) -> None:
    write_two(tmp_path)
    for name in ("a-0.tar", "a-1.tar"):
        s3.buckets["bucket"][f"in/{name}"] = (tmp_path / name).read_bytes()
    uri, manifest, _ = ingested("webdataset", "s3://bucket/in", "s3://bucket/out", labelled=False)
    assert stored(uri, manifest) == expected()
    assert len([line for line in s3.log if line == "GET /bucket/in/a-0.tar"]) <= 3


def test_order_is_by_block_seeded_and_mixed_within_shards(tmp_path: Path) -> None:
    write_two(tmp_path / "in")
    order = [names_of(index_of("webdataset", tmp_path / "in", split_seed=s)) for s in (0, 0, 3)]
    assert order[0] == order[1] and sorted(order[0]) == sorted(order[2])
    uri, manifest, _ = ingested("webdataset", tmp_path / "in", tmp_path / "out")
    found = list(stored(uri, manifest))
    assert found != sorted(found) and sorted(found) == sorted(order[0])


def test_unlabelled_and_half_labelled(tmp_path: Path) -> None:
    write_tar(tmp_path / "none.tar", shard(["000", "001"], labels=False))
    assert index_of("webdataset", tmp_path / "none.tar").class_names is None
    with raises("E-DATA-077", "2"):
        index_of("webdataset", tmp_path / "none.tar", labelled=True)
    write_tar(tmp_path / "half.tar", {**shard(["000"]), **shard(["001"], labels=False)})
    with raises("E-DATA-077", "1", "2"):
        index_of("webdataset", tmp_path / "half.tar")
    write_tar(tmp_path / "text.tar", {"a.txt": b"x"})
    with raises("E-DATA-073"):
        index_of("webdataset", tmp_path / "text.tar")
    write_tar(tmp_path / "two.tar", {"a.png": IMAGES["000"], "a.jpg": IMAGES["000"]})
    with raises("E-DATA-074"):
        index_of("webdataset", tmp_path / "two.tar")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_equal_the_standard_librarys(tmp_path: Path, kind: int) -> None:
    long_name = "d" * 90 + "/" + "x" * 90 + ".png"
    names = ["a.png", "b/c.png", "é/ü.png", long_name]
    file = write_tar(tmp_path / "t.tar", {n: n.encode() * 100 for n in names}, format=kind)
    content = file.read_bytes()
    found = list(tar.members(io.BytesIO(content), len(content)))
    with tarfile.open(file) as archive:
        reference = [(m.name, m.offset_data, m.size) for m in archive.getmembers()]
    assert [(m.name, m.start, m.num_bytes) for m in found] == reference
    assert {m.kind for m in found} == {"file"}


def test_broken_archives_are_refused(tmp_path: Path) -> None:
    content = write_tar(tmp_path / "t.tar", shard(["000"])).read_bytes()
    short = content[:600]
    flipped = bytearray(content)
    flipped[130] ^= 1
    for broken in (b"", b"\0" * 1024, b"text" * 300, short, bytes(flipped)):
        (tmp_path / "x.tar").write_bytes(broken)
        with raises("E-DATA-075"):
            index_of("webdataset", tmp_path / "x.tar")


def test_archives_one_behind_another_are_read_whole(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "a.tar", shard(["000", "001"])).read_bytes()
    second = write_tar(tmp_path / "b.tar", shard(["002"])).read_bytes()
    both = tmp_path / "both.tar"
    both.write_bytes(first + second)
    index = index_of("webdataset", both)
    assert names_of_stems(index.ids.to_pylist()) == ["000", "001", "002"]
    both.write_bytes(first + b"what is no header" * 40)
    assert names_of_stems(index_of("webdataset", both).ids.to_pylist()) == ["000", "001"]


def names_of_stems(ids: list[str]) -> list[str]:
    return sorted(Path(name).stem for name in ids)


def test_an_archive_without_its_end_mark_is_named(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "whole.tar", shard(["000", "001"]))
    assert not index_of("webdataset", file).notes
    cut = tmp_path / "cut.tar"
    cut.write_bytes(file.read_bytes().rstrip(b"\0"))
    index = index_of("webdataset", cut)
    assert len(index.ids) == 2 and any("cut.tar" in note for note in index.notes)


def test_damaged_headers_never_hang_and_raise_nothing_else(tmp_path: Path) -> None:
    good = write_tar(tmp_path / "t.tar", shard(["000", "001"]), format=tarfile.PAX_FORMAT)
    content, generator = good.read_bytes(), np.random.default_rng(0)
    began_s = time.monotonic()
    for _ in range(300):
        damaged = bytearray(content)
        start = 512 * int(generator.integers(0, len(content) // 512))
        for position in start + generator.integers(0, 512, 3):
            damaged[position] = int(generator.integers(0, 256))
        header = damaged[start : start + 512]
        header[148:156] = b" " * 8  # a checksum that fits, so that the damage is looked at
        damaged[start + 148 : start + 156] = f"{sum(header):06o}\0 ".encode()
        with contextlib.suppress(tar.BrokenTarError):
            list(tar.members(io.BytesIO(bytes(damaged)), len(damaged)))
    assert time.monotonic() - began_s < 60
