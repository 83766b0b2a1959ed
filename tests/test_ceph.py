"""A real S3 server, Ceph's RADOS Gateway: `make test-s3`.

Put, list, read, kill the server in the middle of a read and of a write: nothing that was
acknowledged is lost, nothing partial is ever visible.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from pipeline import storage
from pipeline.cluster.jobs import ThreadTasks
from pipeline.errors import StorageError
from pipeline.ingest.sources.listing import IMAGE_ENDINGS, list_files
from pipeline.storage import s3 as s3_module
from pipeline.storage.s3 import ObjectStore
from pipeline.storage.scan import ScanPart
from tests.ceph import CephGateway
from tests.fault_proxy import FaultProxy
from tests.sources import image_bytes, ingested, stored, write_files
from tests.test_s3_keys import HOSTILE, removal_leaves_the_neighbours

pytestmark = pytest.mark.s3server
MIB = 2**20
OLD, NEW = b"old" * 1000, os.urandom(24 * MIB)
LARGE = NEW * 5


@pytest.fixture(scope="module")
def ceph() -> Iterator[CephGateway]:
    with CephGateway() as gateway:
        yield gateway


@pytest.fixture
def root(ceph: CephGateway, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in a new bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", ceph.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testkey")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"test-{time.time_ns()}"
    s3fs.S3FileSystem(endpoint_url=ceph.url).mkdir(bucket)
    return f"s3://{bucket}/some place"


@pytest.fixture
def proxy(ceph: CephGateway, root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(ceph.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def test_put_list_read_delete(root: str) -> None:
    names = ["b.bin", "deep/er/ü \U0001f600.bin", "deep/a+b&c.bin"]
    for number, name in enumerate(names):
        storage.write_bytes(storage.join(root, name), b"old" * 9)
        storage.write_bytes(storage.join(root, name), b"x" * number)
    assert storage.list_tree(root) == {name: number for number, name in enumerate(names)}
    assert storage.list_names(root) == ["b.bin", "deep"] and storage.exists(root)
    uri = storage.join(root, names[2])
    assert storage.read_bytes(uri) == b"xx" == storage.read_bytes(uri, max_bytes=5)
    assert storage.size_bytes(uri) == 2
    empty = storage.join(root, names[0])
    assert storage.read_bytes(empty) == storage.read_bytes(empty, max_bytes=5) == b""
    storage.write_bytes(storage.join(root, "large"), LARGE)
    assert storage.read_bytes(storage.join(root, "large")) == LARGE
    with storage.open_readable(storage.join(root, "large")) as file:
        file.seek(100 * MIB)
        assert file.read(MIB) == LARGE[100 * MIB : 101 * MIB]
    storage.delete_tree(root)
    assert not storage.exists(root) and storage.list_tree(root) == {}


def test_refusals_are_told(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for use, uri, cause in (
        (storage.read_bytes, storage.join(root, "none"), "E-STORAGE-393"),
        (storage.size_bytes, storage.join(root, "none"), "E-STORAGE-393"),
        (storage.size_bytes, "s3://nobucket/x", "E-STORAGE-392"),
        (storage.delete_tree, "s3://nobucket/x", "E-STORAGE-392"),
        (storage.check_writable, "s3://nobucket/x", "E-STORAGE-392"),
        (lambda uri: storage.write_bytes(uri, b""), "s3://nobucket/x", "E-STORAGE-392"),
    ):
        with pytest.raises(StorageError) as caught:
            use(uri)
        assert caught.value.id == cause and caught.value.where == uri
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    # HEAD has no reason in its answer; it is asked for once more.
    for use in (storage.read_bytes, storage.size_bytes, storage.exists):
        with pytest.raises(StorageError) as caught:
            use(storage.join(root, "none"))
        assert caught.value.id == "E-STORAGE-400" and "SignatureDoesNotMatch" in caught.value.what
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.promise("R31")
@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_names(name: str, root: str) -> None:
    removal_leaves_the_neighbours(name, root)


def test_a_place_is_checked_and_nothing_is_left(root: str, ceph: CephGateway) -> None:
    storage.check_writable(storage.join(root, "data[12]"))
    fs = s3fs.S3FileSystem(endpoint_url=ceph.url)
    bucket = root.removeprefix("s3://").partition("/")[0]
    assert storage.list_tree(f"s3://{bucket}") == {} and fs.list_multipart_uploads(bucket) == []


def test_an_object_above_the_limit_of_one_put_goes_in_parts(
    root: str, ceph: CephGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "_ONE_PUT_BYTES", 20 * MIB)
    monkeypatch.setattr(s3_module, "_PART_BYTES", 10 * MIB)
    storage.write_bytes(storage.join(root, "a?b [1]"), NEW)
    assert storage.read_bytes(storage.join(root, "a?b [1]")) == NEW


def test_a_flat_prefix_is_listed_in_parts(root: str) -> None:
    names = {f"{n:04d}.jpg" for n in range(0, 9000, 40)} | {"é.png", "a/\U0001f600.png"}
    for name in names:
        storage.write_bytes(storage.join(root, name), b"")
    parts, found = [ScanPart()], list[str]()
    while parts:
        page = storage.scan(root, parts.pop(), max_names=20)
        found, parts = found + page.names, parts + page.rest
    assert sorted(found) == sorted(names)
    listed = list_files(root, IMAGE_ENDINGS, ThreadTasks()).names
    assert listed.to_pylist() == sorted(names, key=str.encode)


@pytest.mark.promise("R13")
def test_the_server_dies_in_the_middle_of_a_read(
    root: str, proxy: FaultProxy, ceph: CephGateway
) -> None:
    uri = storage.join(root, "x")
    storage.write_bytes(uri, NEW)
    before = storage.num_retries()
    proxy.method = "GET"
    proxy.faults.append(lambda: ceph.kill_and_return_after(0.5))
    assert storage.read_bytes(uri) == NEW
    assert storage.num_retries() > before and not proxy.faults
    ceph.returning.join()


@pytest.mark.promise("R10", "R13")
@pytest.mark.parametrize("data", [NEW, LARGE], ids=["24 MiB", "120 MiB"])
def test_the_server_dies_in_the_middle_of_a_write_and_returns(
    root: str, proxy: FaultProxy, ceph: CephGateway, data: bytes
) -> None:
    uri = storage.join(root, "x")
    storage.write_bytes(uri, OLD)
    before = storage.num_retries()
    proxy.method = "PUT"
    proxy.faults.append(lambda: ceph.kill_and_return_after(0.5))
    storage.write_bytes(uri, data)
    assert storage.num_retries() > before and not proxy.faults
    ceph.returning.join()
    assert storage.read_bytes(uri) == data
    assert storage.list_tree(root) == {"x": len(data)}


@pytest.mark.promise("R10")
@pytest.mark.parametrize("data", [NEW, LARGE], ids=["24 MiB", "120 MiB"])
@pytest.mark.parametrize("old", [OLD, None], ids=["replacing", "new"])
def test_the_server_dies_in_the_middle_of_a_write_for_good(
    root: str, proxy: FaultProxy, ceph: CephGateway, data: bytes, old: bytes | None
) -> None:
    kept = storage.join(root, "kept")
    storage.write_bytes(kept, NEW)
    uri = storage.join(root, "x")
    if old is not None:
        storage.write_bytes(uri, old)
    proxy.method = "PUT"
    proxy.faults.append(ceph.kill)
    with pytest.raises(StorageError, match=r"tr(y|ies) in"):
        ObjectStore(deadline_s=1.0).write(uri, data)
    ceph.start()
    assert storage.exists(uri) == (old is not None)
    assert old is None or storage.read_bytes(uri) == old
    assert storage.read_bytes(kept) == NEW  # what was acknowledged is there
    assert set(storage.list_tree(root)) == ({"kept", "x"} if old else {"kept"})


@pytest.mark.promise("R10", control=True)
def test_control_a_plain_client_publishes_a_part(root: str, ceph: CephGateway) -> None:
    key = storage.join(root, "x").removeprefix("s3://")
    storage.write_bytes(f"s3://{key}", NEW)
    fs = s3fs.S3FileSystem(endpoint_url=ceph.url)
    with pytest.raises(RuntimeError), fs.open(key, "wb") as file:
        file.write(b"half")
        raise RuntimeError("the writer failed")
    assert storage.read_bytes(f"s3://{key}") == b"half"


@pytest.mark.promise("R27")
def test_ingest_survives_the_death_of_the_server(
    root: str, proxy: FaultProxy, ceph: CephGateway, tmp_path: Path
) -> None:
    files = {f"{n:03d}.png": image_bytes(n, (64, 64)) for n in range(60)}
    write_files(tmp_path / "in", files)
    for name, content in files.items():
        storage.write_bytes(storage.join(root, "in", name), content)
    proxy.method = "PUT"
    proxy.faults.append(lambda: ceph.kill_and_return_after(0.5))
    source, keys = storage.join(root, "in"), {"labelled": False}
    uri, manifest, notes = ingested("folder", source, storage.join(root, "out"), **keys)
    ceph.returning.join()
    assert stored(uri, manifest) == files and any("tried again" in note for note in notes)
    _, clean, _ = ingested("folder", source, tmp_path / "out", **keys)
    assert manifest.hash == clean.hash
