"""CIFAR-10 and photos through a real S3 server: ingest, and one epoch of training on two workers.

The same from local disk gives the same losses bit for bit. SDCLR_CIFAR10 and SDCLR_PHOTOS name the
folders of the images. `make test-s3`; some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from pipeline import storage
from pipeline.dataset.manifest import read_manifest
from pipeline.metrics import read_metrics
from tests.ceph import CephGateway
from tests.conftest import REPO

pytestmark = [pytest.mark.s3server, pytest.mark.slow]
SOURCES = {
    "cifar10": (
        "SDCLR_CIFAR10",
        ["data.source=cifar10", "data.imbalance_ratio=100", "data.num_max=1000"],
    ),
    "photos": (
        "SDCLR_PHOTOS",
        ["data.source=folder", "data.imbalance_ratio=null", "data.num_test_per_class=null",
         "feed.canvas_px=64", "augment.crop_px=32", "ingest.resize_short_px=128"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with CephGateway() as gateway:
        keys = {
            "AWS_ENDPOINT_URL": gateway.url,
            "AWS_ACCESS_KEY_ID": "testkey",
            "AWS_SECRET_ACCESS_KEY": "testsecret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield {**os.environ, **keys}


def losses(run: str) -> list[tuple[str, int, float]]:
    return [
        (str(row["method"]), int(row["step"]), float(row["loss"]))
        for row in read_metrics(run, kind="step")
    ]


def train(environment: dict[str, str], *words: str) -> str:
    """Ingest and train; returns the folder of the run."""
    fixed = ["model.backbone=resnet8", "train.epochs=1", "train.workers=2", "train.device=cpu",
             "train.methods=[sdclr]", "train.log_every_steps=1"]  # fmt: skip
    root = next(word.partition("=")[2] for word in words if word.startswith("run.root="))
    for stage in ("ingest", "train"):
        done = subprocess.run(
            [sys.executable, str(REPO / "pipeline" / "run.py"), stage, *fixed, *words],
            env=environment, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    (name,) = storage.list_names(root)
    return storage.join(root, name)


@pytest.mark.parametrize("source", SOURCES)
def test_an_epoch_from_s3_equals_one_from_disk(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    variable, keys = SOURCES[source]
    if variable not in os.environ:
        pytest.skip(f"set {variable} to the folder of the images")
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, environment[name])
    bucket = f"{source}-{os.getpid()}-{tmp_path.name[-8:].strip('_').replace('_', '-')}".lower()
    s3fs.S3FileSystem(endpoint_url=environment["AWS_ENDPOINT_URL"]).mkdir(bucket)
    path = os.environ[variable]
    if source == "photos":  # the source images come from the bucket as well
        for name in storage.list_tree(path):
            target = f"s3://{bucket}/in/{name}"
            storage.write_bytes(target, storage.read_bytes(storage.join(path, name)))
    found = {}
    for kind, root, images in (
        ("disk", str(tmp_path), path),
        ("s3", f"s3://{bucket}", f"s3://{bucket}/in" if source == "photos" else path),
    ):
        roots = [f"data.root={root}/data", f"run.root={root}/runs", f"data.path={images}"]
        run = train(environment, *keys, *roots)
        data_uri = json.loads(storage.read_bytes(storage.join(run, "run.json")))["data"]["uri"]
        assert data_uri.startswith("s3://") == (kind == "s3")
        shards = [shard.sha256 for shard in read_manifest(data_uri).shards()]
        found[kind] = (shards, losses(run))
    assert found["disk"] == found["s3"] and len(found["s3"][1]) > 5
