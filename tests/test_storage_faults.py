"""Storage behind a proxy that spoils answers: what is ridden out, what is refused, what is seen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.dataset.shards import read_shard, write_shard
from pipeline.storage.s3 import ObjectStore
from tests.fault_proxy import Fault, FaultProxy
from tests.loopback_s3 import LoopbackS3
from tests.refusals import raises

URI, DATA = "s3://bucket/x", bytes(range(256)) * 1000


@pytest.fixture
def proxy(s3: LoopbackS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(s3.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.mark.promise("R13")
@pytest.mark.parametrize("fault", [500, 503, "truncate", "stall", "reset"])
def test_reads_ride_out_passing_faults_and_count_them(
    s3: LoopbackS3, proxy: FaultProxy, fault: Fault
) -> None:
    s3.buckets["bucket"]["x"] = DATA
    store, before = ObjectStore(read_timeout_s=0.5), storage.num_retries()
    proxy.faults.extend([fault, fault])
    assert store.read(URI) == DATA and not proxy.faults
    # A pooled connection that is gone is replaced by the HTTP client itself, once.
    unseen = 1 if fault == "reset" else 0
    assert 2 - unseen <= storage.num_retries() - before <= 2
    proxy.faults.append(fault)
    assert store.read_range(URI, 1000, 200_000) == DATA[1000:200_000]
    assert 3 - 2 * unseen <= storage.num_retries() - before <= 3


@pytest.mark.promise("R13")
@pytest.mark.parametrize("fault", [500, 503, "reset", "flip-request"])
def test_writes_ride_them_out_and_arrive_whole(
    s3: LoopbackS3, proxy: FaultProxy, fault: Fault
) -> None:
    before = storage.num_retries()
    proxy.faults.append(fault)
    storage.write_bytes(URI, DATA)
    assert s3.buckets["bucket"] == {"x": DATA} and not proxy.faults
    # A pooled connection that is gone is replaced by the HTTP client itself.
    assert storage.num_retries() - before == 1 or fault == "reset"


@pytest.mark.promise("R13")
@pytest.mark.parametrize("fault", [503, "truncate", "stall"])
def test_lasting_faults_end_in_one_error_in_time(
    s3: LoopbackS3, proxy: FaultProxy, fault: Fault
) -> None:
    s3.buckets["bucket"]["x"] = DATA
    proxy.faults.extend([fault] * 100)
    began_s = time.monotonic()
    with raises("E-STORAGE-396") as caught:
        ObjectStore(deadline_s=1.0, read_timeout_s=0.3).read(URI)
    assert caught.value.where == URI and caught.value.todo
    assert time.monotonic() - began_s < 30


@pytest.mark.promise("R13", control=True)
@pytest.mark.parametrize("fault", [500, "truncate"])
def test_control_without_another_try_one_fault_is_an_error(
    s3: LoopbackS3, proxy: FaultProxy, fault: Fault
) -> None:
    s3.buckets["bucket"]["x"] = DATA
    proxy.faults.append(fault)
    with raises("E-STORAGE-396", "1"):
        ObjectStore(deadline_s=0.0).read(URI)


@pytest.mark.promise("R13")
def test_control_refusals_are_answered_at_once(s3: LoopbackS3, proxy: FaultProxy) -> None:
    proxy.faults.append(403)
    with raises("E-STORAGE-391") as caught:
        storage.read_bytes(URI)
    assert "AWS_ACCESS_KEY_ID" in caught.value.todo and "bucket" in caught.value.todo
    with raises("E-STORAGE-393") as caught:
        storage.read_bytes(URI)
    assert caught.value.where == URI and "AWS_ENDPOINT_URL" in caught.value.todo
    assert len(proxy.requests) == 2


@pytest.mark.promise("R15")
def test_a_try_ends_however_slowly_bytes_come(s3: LoopbackS3, proxy: FaultProxy) -> None:
    s3.buckets["bucket"]["x"] = DATA
    proxy.faults.extend(["stall"] * 100)
    store = ObjectStore(deadline_s=0.3, read_timeout_s=3600, try_s=0.5)
    with raises("E-STORAGE-396"):
        store.read(URI)


@pytest.mark.promise("R11", "R28")
def test_wrong_bytes_of_a_shard_are_refused_by_name(s3: LoopbackS3, proxy: FaultProxy) -> None:
    info = write_shard("s3://bucket/d", "shards/p.parquet", ids=["a"], images=[DATA], labels=[None])
    assert read_shard("s3://bucket/d", info).images == (DATA,)
    proxy.faults.append("flip")
    with raises("E-DATA-016") as caught:
        read_shard("s3://bucket/d", info)
    assert caught.value.where == "s3://bucket/d/shards/p.parquet"
    proxy.faults.append("flip")
    assert (
        storage.read_bytes("s3://bucket/d/shards/p.parquet")
        != s3.buckets["bucket"]["d/shards/p.parquet"]
    )  # control: plain reading does not notice


def test_a_ranged_file_reads_like_a_file_and_rides_faults_out(
    s3: LoopbackS3, proxy: FaultProxy
) -> None:
    s3.buckets["bucket"]["x"] = DATA
    with storage.open_readable(URI) as file:
        assert file.seek(-10, 2) == len(DATA) - 10 and file.read() == DATA[-10:]
        proxy.faults.extend([500, "truncate"])
        file.seek(5)
        assert file.read(100_000) == DATA[5:100_005]
        assert file.read(0) == b"" and file.seek(10**9) == 10**9 and file.read() == b""


def test_a_ranged_file_never_mixes_two_versions(s3: LoopbackS3, tmp_path: Path) -> None:
    s3.buckets["bucket"]["x"] = b"a" * 3_000_000
    with storage.open_readable(URI) as file:
        assert file.read(10) == b"a" * 10
        s3.buckets["bucket"]["x"] = b"b" * 3_000_000
        file.seek(2_000_000)
        with raises("E-STORAGE-394"):
            file.read(10)


def test_bounded_reads_fetch_one_byte_more_at_most(s3: LoopbackS3, tmp_path: Path) -> None:
    for uri in (URI, str(tmp_path / "x")):
        storage.write_bytes(uri, DATA)
        assert storage.read_bytes(uri, max_bytes=99) == DATA[:100]
        assert storage.read_bytes(uri, max_bytes=len(DATA)) == DATA
        assert storage.read_range(uri, 7, 9) == DATA[7:9]
        storage.write_bytes(uri, b"")
        assert storage.read_bytes(uri, max_bytes=99) == b""
