"""Fixtures shared by all tests: one small Ray cluster a session, an S3 server on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# The nets of tests are small: a second thread of torch mostly waits, and waits busily, which takes
# the other core from the processes of the same test.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for the tests that take two
# Ray reads these when it is first imported, so they are set before any test module is.
os.environ.setdefault("RAY_DATA_USE_DATASOURCE_V2", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_free_objects_period_milliseconds", "50")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")

import pytest

from tests.budgets import (  # noqa: F401  hooks of pytest
    pytest_collection_modifyitems,
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_terminal_summary,
)
from tests.fault_proxy import FaultProxy
from tests.loopback_s3 import ACCESS_KEY, SECRET_KEY, LoopbackS3

REPO = Path(__file__).resolve().parents[1]
S3_KEYS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="session")
def ray_s3() -> Iterator[FaultProxy]:
    """The way of Ray's processes to an S3 server with a bucket "bucket"."""
    with LoopbackS3() as server, FaultProxy(server.url) as proxy:
        server.buckets["bucket"] = {}
        yield proxy


@pytest.fixture(scope="session")
def ray_cluster(ray_s3: FaultProxy) -> Iterator[None]:
    import ray

    s3 = {"AWS_ENDPOINT_URL": ray_s3.url, **S3_KEYS}

    ray.init(
        num_cpus=4,
        object_store_memory=300 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(REPO), **s3}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[LoopbackS3]:
    """The server behind `s3`: one for all tests, since a client costs a third of a second."""
    with LoopbackS3() as server:
        yield server


@pytest.fixture
def s3(s3_server: LoopbackS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackS3]:
    """An empty S3 server with one bucket, "bucket", and the environment that points to it."""
    import s3fs

    s3_server.empty()
    s3_server.buckets["bucket"] = {}
    for name, value in {"AWS_ENDPOINT_URL": s3_server.url, **S3_KEYS}.items():
        monkeypatch.setenv(name, value)
    given = _settings_of_clients()
    yield s3_server
    if _settings_of_clients() != given:  # clients made of them must not serve the next test
        s3fs.S3FileSystem.clear_instance_cache()


def _settings_of_clients() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("AWS_") or name.lower().endswith("_proxy")
    }
