"""Manifests: what was written comes back; altered, torn and unfit ones are refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow.dataset import dataset

from pipeline.dataset.description import source_name
from pipeline.dataset.manifest import (
    ImageInfo,
    Manifest,
    RejectExample,
    Rejects,
    SetInfo,
    canonical_hash,
    read_manifest,
    sealed,
    verify_shards,
    write_manifest,
)
from tests.refusals import raises
from tests.test_shards import one_shard


def some_manifest(root: Path) -> Manifest:
    shards = tuple(one_shard(root, name=f"shards/pretrain-0000{n}.parquet") for n in range(2))
    return sealed(
        Manifest(
            name="digits-01234567",
            source={"kind": "digits"},
            image=ImageInfo("raw", 2, 2),
            class_names=("zero", "one", "two"),
            sets={"pretrain": SetInfo(rows=6, class_counts=(2, 2, 2), shards=shards)},
            fewshot=(("a/1.png",), ("c",)),
            rejects=Rejects(1, {"empty": 1}, (RejectExample("x", "empty", "zero bytes"),)),
            config={"data": {"source": "digits", "imbalance_ratio": 50.0, "num_max": None}},
            hash="",
        )
    )


def test_a_manifest_comes_back_and_has_the_promised_keys(tmp_path: Path) -> None:
    manifest = some_manifest(tmp_path)
    write_manifest(str(tmp_path), manifest)
    assert read_manifest(str(tmp_path)) == manifest
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert set(content) == {
        *("schema_version", "name", "source", "image", "class_names", "sets"),
        *("fewshot", "rejects", "config", "hash", "duplicates", "left_out", "origin"),
    }
    assert content["image"] == {"encoding": "raw", "height_px": 2, "width_px": 2, "channels": 3}
    assert set(content["sets"]["pretrain"]["shards"][0]) == {"name", "rows", "bytes", "sha256"}
    assert content["schema_version"] == 2


@pytest.mark.parametrize(
    ("kind", "path", "name"),
    [
        ("folder", "/home/me/photos/flat", "photos/flat"), ("folder", "flat", "flat"),
        ("parquet", "s3://bucket/a/b/", "a/b"), ("webdataset", "s3://bucket", "bucket"),
        ("digits", None, "digits"), ("cifar10", "/data/cifar", "cifar10"),
    ],
)  # fmt: skip
def test_a_data_set_is_known_by_the_end_of_its_path(
    kind: str, path: str | None, name: str, tmp_path: Path
) -> None:
    named = replace(some_manifest(tmp_path), source={"kind": kind}, config={"data": {"path": path}})
    assert source_name(named) == name


def test_canonical_hash_ignores_order_and_itself_only() -> None:
    assert canonical_hash({"a": 1, "b": 2, "hash": "x"}) == canonical_hash({"b": 2, "a": 1})
    assert canonical_hash({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
    assert canonical_hash({"a": 1}) != canonical_hash({"a": 2})


def _edit(root: Path, change: Callable[[dict[str, Any]], object], *, seal: bool = True) -> None:
    file = root / "manifest.json"
    content = json.loads(file.read_text())
    change(content)
    if seal:
        content["hash"] = canonical_hash(content)
    file.write_text(json.dumps(content))


def _shard(content: dict[str, Any]) -> dict[str, Any]:
    shard: dict[str, Any] = content["sets"]["pretrain"]["shards"][0]
    return shard


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda c: c.update(schema_version=1), "E-DATA-009 1"),
        (lambda c: c.update(schema_version=True), "E-DATA-009 True"),
        (lambda c: c.pop("schema_version"), "E-DATA-009 None"),
        (lambda c: c.update(extra=1), "E-DATA-012 extra"),
        (lambda c: c.pop("fewshot"), "E-DATA-012 fewshot"),
        (lambda c: _shard(c).update(rows="3"), "E-DATA-012 sets.pretrain.shards.0.rows"),
        (lambda c: _shard(c).update(sha256="00"), "E-DATA-012 sets.pretrain.shards.0.sha256"),
        (lambda c: c["sets"].update(train=c["sets"].pop("pretrain")), "E-DATA-012"),
        (lambda c: _shard(c).update(name="../../etc/passwd"), "E-DATA-089"),
        (lambda c: _shard(c).update(name="/etc/passwd"), "E-DATA-089"),
        (lambda c: _shard(c).update(name="other/x.parquet"), "E-DATA-014"),
        (lambda c: _shard(c).update(rows=4), "E-DATA-015 rows"),
        (lambda c: c["sets"]["pretrain"].update(class_counts=[1, 2, 2]), "E-DATA-015 counts"),
        (lambda c: c["sets"]["pretrain"].update(class_counts=[3, 3]), "E-DATA-015 counts"),
        (lambda c: c.update(class_names=None), "E-DATA-015 counts"),
        (lambda c: c["image"].update(encoding="original"), "E-DATA-015 encoding"),
        (lambda c: _shard(c).update(name="shards/pretrain-00001.parquet"), "E-DATA-015 shard"),
        (lambda c: c.update(sets={}), "E-DATA-015 set"),
    ],
)
def test_unfit_manifests_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], refusal: str
) -> None:
    write_manifest(str(tmp_path), some_manifest(tmp_path))
    _edit(tmp_path, lambda content: None)
    read_manifest(str(tmp_path))  # control: sealed again without a change, it passes
    _edit(tmp_path, change)
    with raises(*refusal.split()) as caught:
        read_manifest(str(tmp_path))
    assert caught.value.todo


def test_manifests_of_before_duplicates_were_looked_for_are_read(tmp_path: Path) -> None:
    write_manifest(str(tmp_path), some_manifest(tmp_path))
    _edit(tmp_path, lambda content: content.pop("duplicates"))
    assert read_manifest(str(tmp_path)).duplicates is None


@pytest.mark.promise("R12", "S11")
def test_tampered_torn_and_missing_manifests(tmp_path: Path) -> None:
    with raises("E-DATA-006"):
        read_manifest(str(tmp_path))
    write_manifest(str(tmp_path), some_manifest(tmp_path))
    file = tmp_path / "manifest.json"
    good = file.read_bytes()
    _edit(tmp_path, lambda content: content.update(name="other"), seal=False)
    with raises("E-DATA-011"):
        read_manifest(str(tmp_path))
    for torn in (good[: len(good) // 2], b"", b"\xff", b"[" * 100_000):
        file.write_bytes(torn)
        with raises("E-DATA-007"):
            read_manifest(str(tmp_path))
    for other in (b"[]", b"3"):
        file.write_bytes(other)
        with raises("E-DATA-008"):
            read_manifest(str(tmp_path))
    file.write_bytes(good.replace(b"50.0", b"NaN"))
    with raises("E-DATA-010"):
        read_manifest(str(tmp_path))


@pytest.mark.promise("R12", control=True)
def test_control_a_plain_reader_takes_what_shards_there_are(tmp_path: Path) -> None:
    manifest = some_manifest(tmp_path)
    num_rows = dataset(tmp_path / "shards").count_rows()
    assert num_rows == sum(shard.rows for shard in manifest.shards())
    (tmp_path / next(manifest.shards()).name).unlink()
    assert 0 < dataset(tmp_path / "shards").count_rows() < num_rows


@pytest.mark.promise("R12")
def test_missing_extra_and_short_shards_are_refused(tmp_path: Path) -> None:
    manifest = some_manifest(tmp_path)
    verify_shards(str(tmp_path), manifest)
    first, second = (tmp_path / shard.name for shard in manifest.shards())
    content = second.read_bytes()
    second.unlink()
    with raises("E-DATA-013", "1", "shards/pretrain-00001"):
        verify_shards(str(tmp_path), manifest)
    second.write_bytes(content[:-1])
    with raises("E-DATA-013", "shards/pretrain-00001"):
        verify_shards(str(tmp_path), manifest)
    second.write_bytes(content)
    (first.parent / "pretrain-00002.parquet").write_bytes(b"")
    with raises("E-DATA-013", "1", "shards/pretrain-00002"):
        verify_shards(str(tmp_path), manifest)
