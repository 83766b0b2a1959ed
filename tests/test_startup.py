"""Ray that does not start or cannot be joined: settings refused by name, failures by cause."""

from __future__ import annotations

import os
import time
from pathlib import Path
from unittest import mock

import pytest

from pipeline.cluster import startup
from pipeline.cluster.connect import connected
from pipeline.errors import ClusterError

TOO_SLOW = "The current node timed out during startup. This could happen because ..."


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ray_that_fails(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Ray raises the first of these when it is started or joined."""
    import ray

    errors: list[Exception] = []

    def fails(**_: object) -> None:
        raise errors[0]

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fails)
    return errors


VALUES = {
    ("RAY_ADDRESS", "127.0.0.1"): "E-CLUSTER-381",
    ("RAY_ADDRESS", "localhost"): "E-CLUSTER-381",
    ("RAY_ADDRESS", " 127.0.0.1:1 "): "E-CLUSTER-381",
    ("RAY_ADDRESS", "127.0.0.1:6379/"): "E-CLUSTER-381",
    ("RAY_ADDRESS", "127.0.0.1:99999"): "E-CLUSTER-381",
    ("RAY_ADDRESS", "127.0.0.1:port"): "E-CLUSTER-381",
    ("RAY_ADDRESS", ":6379"): "E-CLUSTER-381",
    ("RAY_ADDRESS", "http://127.0.0.1:8265"): "E-CLUSTER-381",
    ("RAY_ADDRESS", "https://head/"): "E-CLUSTER-381",
    ("RAY_ADDRESS", "ray://head:10001"): "E-CLUSTER-381",
    ("RAY_ADDRESS", "a b:6379"): "E-CLUSTER-381",
    ("RAY_ADDRESS", "127.0.0.1:1"): "E-CLUSTER-007",  # of the right form; nothing listens
    ("RAY_ADDRESS", "[::1]:1"): "E-CLUSTER-007",
    ("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S", "5 minutes"): "E-CLUSTER-380",
    ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "soon"): "E-CLUSTER-380",
    ("RAY_free_objects_period_milliseconds", "50ms"): "E-CLUSTER-380",
    ("RAY_memory_usage_threshold", "95%"): "E-CLUSTER-380",
    ("RAY_GCS_SERVER_PORT", "port"): "E-CLUSTER-380",
    ("RAY_AUTH_MODE", "on"): "E-CLUSTER-380",
    ("RAY_AUTH_TOKEN", "two words"): "E-CLUSTER-380",
    ("RAY_TMPDIR", "tmp"): "E-CLUSTER-380",
    ("RAY_TMPDIR", "/" + "long/" * 20): "E-CLUSTER-370",
    ("TMPDIR", "/scratch/of_a_batch_system/slurm/1355700/tmp.t0016"): "E-CLUSTER-370",
    ("TMPDIR", "/proc/version/x"): "E-CLUSTER-374",
    ("TMPDIR", "/proc"): "E-CLUSTER-374",
    ("RAY_TMPDIR", "/proc"): "E-CLUSTER-374",
}


@pytest.mark.promise("R19")
@pytest.mark.parametrize(
    ("error", "address", "is_shut_down"),
    [
        (KeyboardInterrupt(), "127.0.0.1:6379", False),
        (SystemExit(143), "127.0.0.1:6379", False),
        (ValueError(), "127.0.0.1:6379", True),
        (SystemExit(143), "local", True),
    ],
)
def test_a_cluster_that_was_joined_is_left_by_the_end_of_the_process(
    error: BaseException, address: str, is_shut_down: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray that is shut down while another thread waits for it ends the process as it likes."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        mock.patch("pipeline.cluster.connect._join_or_start"),
        mock.patch("pipeline.cluster.connect._describe"),
        mock.patch("ray.shutdown") as shutdown,
        pytest.raises(type(error)),
        connected(),
    ):
        raise error
    assert shutdown.called == is_shut_down


@pytest.mark.promise("R15", "O6")
@pytest.mark.parametrize(("name", "value"), VALUES)
def test_a_setting_is_refused_by_its_name_at_once(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever other tests have started
    monkeypatch.setenv(name, value)
    began_s = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        connected().__enter__()
    error = caught.value
    assert error.id == VALUES[name, value] and error.exit_code == 5
    assert time.monotonic() - began_s < 15
    shown = f"{error.where} {error.todo}"
    assert name in shown or (name == "TMPDIR" and "RAY_TMPDIR" in shown)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAY_ADDRESS", "auto"), ("RAY_ADDRESS", "head.cluster_1.local:6379"),
        ("RAY_ADDRESS", "[::1]:6379"), ("RAY_TMPDIR", "/tmp"), ("RAY_health_check_period_ms", "-1"),
        ("RAY_memory_usage_threshold", "0.95"), ("RAY_DATA_PUSH_BASED_SHUFFLE", "yes"),
        ("RAY_AUTH_MODE", "token"), ("RAY_ADDRESS", ""),
    ],
)  # fmt: skip
def test_settings_of_the_right_form_pass(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    startup.check_settings(os.environ.get("RAY_ADDRESS") or None)


CAUSES = {
    "validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes": 370,
    "[Errno 28] No space left on device: '/dev/shm/x'": 371,
    "bind: Address already in use": 372,
    "Attempting to cap object store memory usage at 1 bytes, but the minimum allowed is 2": 373,
    "[Errno 12] Cannot allocate memory": 373,
    "[Errno 13] Permission denied: '/tmp/ray'": 374,
    "[Errno 30] Read-only file system": 375,
    "[Errno 24] Too many open files": 376,
    "can't start new thread": 377,
    "Version mismatch: The cluster was started with: Ray: 2.40": 378,
}


@pytest.mark.parametrize("kind", [ValueError, OSError, RuntimeError, Exception])
@pytest.mark.parametrize("text", CAUSES)
def test_a_failed_start_is_reported_by_its_cause(
    text: str, kind: type[Exception], ray_that_fails: list[Exception]
) -> None:
    ray_that_fails.append(kind(text))
    with pytest.raises(ClusterError) as caught:
        connected().__enter__()
    assert caught.value.id == f"E-CLUSTER-{CAUSES[text]}"
    assert text[:60] in caught.value.what and "less busy" not in caught.value.todo


@pytest.mark.parametrize("text", CAUSES)
def test_the_cause_is_read_from_rays_logs(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "ray_folder", lambda: tmp_path)
    logs = tmp_path / "ray" / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text(f"[info] raylet starts\n[error] {text}\n[info] ends\n")
    found = startup.start_error(Exception(TOO_SLOW), None, since_s=time.time())
    assert found.id == f"E-CLUSTER-{CAUSES[text]}"
    old = startup.start_error(Exception(TOO_SLOW), None, since_s=time.time() + 60)
    assert old.id == "E-CLUSTER-006"  # the logs of another start say nothing of this one


def test_a_machine_that_is_too_busy_is_told_from_the_others(
    ray_that_fails: list[Exception],
) -> None:
    ray_that_fails.append(Exception(TOO_SLOW))
    with pytest.raises(ClusterError) as caught:
        connected().__enter__()
    assert caught.value.id == "E-CLUSTER-006" and "less busy" in caught.value.todo


def test_a_value_that_ray_refuses_is_named(
    ray_that_fails: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SOMETHING_NEW", "purple")
    ray_that_fails.append(ValueError("'purple' is no valid choice"))
    with pytest.raises(ClusterError) as caught:
        connected().__enter__()
    assert caught.value.id == "E-CLUSTER-382" and "RAY_SOMETHING_NEW" in caught.value.where


def test_control_a_mistake_of_ours_stays_a_bug(ray_that_fails: list[Exception]) -> None:
    ray_that_fails.append(AttributeError("no such attribute"))
    with pytest.raises(AttributeError):
        connected().__enter__()
