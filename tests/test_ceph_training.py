"""CIFAR-10 and photos through a real S3 server: ingest, and one epoch streamed to two workers.

The same from local disk gives the same losses bit for bit. SDCLR_CIFAR10 and SDCLR_PHOTOS name the
folders of the images. `make test-s3`; some minutes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from pipeline import storage
from pipeline.cluster.connect import connected
from pipeline.config.file import load_config
from pipeline.dataset.manifest import read_manifest
from pipeline.ingest.plan import data_set_uri
from pipeline.record.metrics import read_rows
from pipeline.record.rows import StepRow
from pipeline.run import main
from tests.ceph import CephGateway
from tests.fault_proxy import FaultProxy

pytestmark = [pytest.mark.s3server, pytest.mark.slow]
# The folder, the keys, and a memory that holds two streams instead of eight or more.
SOURCES = {
    "cifar10": (
        "SDCLR_CIFAR10",
        ["data.source=cifar10", "data.imbalance_ratio=100", "data.num_max=1000",
         "ingest.shard_bytes=262144"],
        4_500_000,
    ),
    "photos": (
        "SDCLR_PHOTOS",
        ["data.source=folder", "data.imbalance_ratio=null", "data.num_test_per_class=5",
         "feed.canvas_px=64", "augment.crop_px=32", "ingest.resize_short_px=128",
         "ingest.shard_bytes=1048576"],
        17_000_000,
    ),
}  # fmt: skip
FIXED = ["model.backbone=resnet8", "train.epochs=1", "train.workers=2", "train.device=cpu",
         "train.methods=[sdclr]", "train.log_every_steps=1", "feed.cache=none"]  # fmt: skip


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultProxy]:
    """The way of this process and of Ray's to the gateway: what is asked of it can be seen."""
    with (
        CephGateway() as gateway,
        FaultProxy(gateway.url) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "testkey")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        with connected():
            yield proxy
        s3fs.S3FileSystem.clear_instance_cache()


def losses(root: str, *words: str) -> list[float]:
    """Train; the loss of every step."""
    runs = storage.join(root, "runs")
    before = set(storage.list_names(runs))
    assert main(["train", *FIXED, *words]) == 0
    (name,) = set(storage.list_names(runs)) - before
    rows = read_rows(storage.join(runs, name), StepRow)
    return [row.loss for row in rows if row.loss is not None]


@pytest.mark.parametrize("source", SOURCES)
def test_an_epoch_streamed_from_s3_equals_one_from_disk(
    proxy: FaultProxy, tmp_path: Path, source: str
) -> None:
    variable, keys, few_bytes = SOURCES[source]
    if not os.environ.get(variable):
        pytest.skip(f"set {variable} to the folder of the images")
    bucket = f"{source}-{os.getpid()}-{abs(hash(tmp_path)) % 10**6}"
    s3fs.S3FileSystem(endpoint_url=proxy.url).mkdir(bucket)
    path = os.environ[variable]
    if source == "photos":  # the source images come from the bucket as well
        for name in storage.list_tree(path):
            target = f"s3://{bucket}/in/{name}"
            storage.write_bytes(target, storage.read_bytes(storage.join(path, name)))
    roots = {"disk": str(tmp_path), "s3": f"s3://{bucket}"}
    places = {"disk": path, "s3": f"s3://{bucket}/in" if source == "photos" else path}
    words, shards, found = {}, {}, {}
    for kind, root in roots.items():
        words[kind] = [
            *keys, f"data.root={root}/data", f"run.root={root}/runs", f"data.path={places[kind]}",
        ]  # fmt: skip
        assert main(["ingest", *FIXED, *words[kind]]) == 0
        manifest = read_manifest(data_set_uri(load_config(None, words[kind])))
        shards[kind] = manifest.sets["pretrain"].shards
        del proxy.requests[:]
        found[kind] = losses(root, *words[kind])
        fetched = {r.rpartition("/")[2] for r in proxy.requests if r.endswith(".parquet")}
        expected = {shard.name.rpartition("/")[2] for shard in shards[kind]}
        assert fetched == (expected if kind == "s3" else set())
    assert len(shards["disk"]) > 12
    assert shards["disk"] == shards["s3"]
    assert found["disk"] == found["s3"] and len(found["s3"]) > 10
    # Control: the losses tell one order of the images from another.
    few = f"feed.max_memory_bytes={few_bytes}"
    assert losses(roots["disk"], *words["disk"], few) != found["disk"]
