"""`ray job submit` from a clean checkout to a cluster with token authentication and unusual ports.

The keys of S3 are known to the nodes of the cluster and not to the client, as on a real cluster.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import REPO
from tests.loopback_ray import LoopbackRay
from tests.loopback_s3 import ACCESS_KEY, SECRET_KEY, LoopbackS3
from tests.running import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PLACES = ("run.root=s3://bucket/runs", "data.root=s3://bucket/data")
TINY = ("train.epochs=2", "train.checkpoint_every_epochs=1", "train.methods=[sdclr]")
MAX_UPLOAD_BYTES = 2_000_000
SECRET = SECRET_KEY + "-that-must-not-be-seen"


@pytest.fixture(scope="module")
def s3_server() -> Iterator[LoopbackS3]:
    with LoopbackS3() as server:
        server.buckets["bucket"] = {}
        yield server


@pytest.fixture(scope="module")
def cluster(s3_server: LoopbackS3) -> Iterator[LoopbackRay]:
    keys = {
        "AWS_ENDPOINT_URL": s3_server.url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with LoopbackRay(num_cpus=4, token=True, environment=keys) as ray_cluster:
        yield ray_cluster


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the project, with what a person leaves beside them."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPO, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, target)
    for name in ("data", "runs", ".venv", ".git"):
        (folder / name).mkdir()
        (folder / name / "large.bin").write_bytes(os.urandom(4 * MAX_UPLOAD_BYTES))
    return folder


def submit(
    cluster: LoopbackRay, checkout: Path, *words: str, options: tuple[str, ...] = (),
    token: str | None = None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    job = ["--working-dir", ".", "--", "python", "pipeline/run.py", *words]
    environment = cluster.environment(token=token)
    environment = {k: v for k, v in environment.items() if not k.startswith("AWS_")}
    return subprocess.run(
        ["ray", "job", "submit", "--address", cluster.dashboard_url, *options, *job],
        cwd=checkout, env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip


def ask(cluster: LoopbackRay, path: str) -> Any:
    headers = {"Authorization": f"Bearer {cluster.token}"}
    request = urllib.request.Request(cluster.dashboard_url + path, headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def newest_job(cluster: LoopbackRay) -> Any:
    jobs = [j for j in ask(cluster, "/api/jobs/") if j["type"] == "SUBMISSION"]
    return max(jobs, key=lambda job: job["start_time"])


@pytest.fixture(scope="module")
def finished(cluster: LoopbackRay, checkout: Path) -> subprocess.CompletedProcess[str]:
    return submit(cluster, checkout, *TINY, *PLACES)


Finished = subprocess.CompletedProcess[str]


def test_a_submitted_run_leaves_its_record_in_the_bucket(
    finished: Finished, s3_server: LoopbackS3
) -> None:
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    bucket = s3_server.buckets["bucket"]
    (record,) = (k for k in bucket if k.endswith("run.json"))
    assert json.loads(bucket[record])["status"] == "complete"
    names = {key.rpartition("/")[2] for key in bucket}
    assert {"manifest.json", "report.html", "commit.json", "backbone.safetensors"} <= names


def test_the_log_is_plain_lines(finished: Finished) -> None:
    own = [line for line in finished.stdout.splitlines() if not line.startswith("20")]
    assert any(re.match(r"train  +\d+ %  \d+/\d+ images", line) for line in own), own
    assert all("\r" not in line and "█" not in line for line in own)
    assert "knn-k20" in finished.stdout and "next:" in finished.stdout


def test_the_upload_is_small_and_holds_the_code_alone(
    finished: Finished, cluster: LoopbackRay
) -> None:
    files = cluster.folder / "session_latest" / "runtime_resources" / "working_dir_files"
    (package,) = (path for path in files.iterdir() if path.is_dir())
    sizes = {p: p.stat().st_size for p in package.rglob("*") if p.is_file()}
    assert sum(sizes.values()) < MAX_UPLOAD_BYTES
    names = {path.relative_to(package).parts[0] for path in sizes}
    assert {"pipeline", "sdclr", "tune_configs"} <= names
    assert not names & {"data", "runs", ".venv", ".git", "tests", "docs", "benchmarks", "infra"}


def test_no_secret_is_shown_by_the_cluster_or_written_to_the_run(
    finished: Finished, cluster: LoopbackRay, s3_server: LoopbackS3
) -> None:
    assert "env_vars" not in newest_job(cluster)["runtime_env"]
    shown = json.dumps([ask(cluster, "/api/jobs/"), ask(cluster, "/api/train/v2/runs/v1")])
    for secret in (SECRET, cluster.token):
        assert secret not in shown
        assert secret not in finished.stdout + finished.stderr
        assert not any(secret.encode() in body for body in s3_server.buckets["bucket"].values())


def test_the_dashboard_shows_the_run(finished: Finished, cluster: LoopbackRay) -> None:
    runs = ask(cluster, "/api/train/v2/runs/v1")["train_runs"]
    assert [run["status"] for run in runs] == ["FINISHED"]
    assert runs[0]["name"].startswith("demo-")
    job_id = newest_job(cluster)["job_id"]
    data = json.dumps(ask(cluster, f"/api/data/datasets/{job_id}"))
    assert "digits-" in data, data


def test_the_exit_code_of_the_run_is_the_jobs(cluster: LoopbackRay, checkout: Path) -> None:
    result = submit(cluster, checkout, "train.lrr=1")
    assert result.returncode == 1  # of the command, whatever the failure
    assert newest_job(cluster)["driver_exit_code"] == 2
    assert "did you mean train.lr_per_256?" in result.stdout + result.stderr


def test_a_stopped_job_says_so_in_its_record_and_goes_on_from_its_checkpoint(
    cluster: LoopbackRay, checkout: Path, s3_server: LoopbackS3
) -> None:
    bucket = s3_server.buckets["bucket"]
    words = ("run.name=stopped", "train.epochs=300", *TINY[1:], *PLACES)
    options = ("--no-wait", "--submission-id", "to-be-stopped")
    result = submit(cluster, checkout, "train", *words, options=options)
    assert result.returncode == 0, result.stderr
    wait_for(lambda: [k for k in list(bucket) if "stopped" in k and k.endswith("commit.json")])
    stop = ["ray", "job", "stop", "--address", cluster.dashboard_url, "to-be-stopped"]
    subprocess.run(stop, env=cluster.environment(), check=True, capture_output=True, timeout=100)
    assert ask(cluster, "/api/jobs/to-be-stopped")["status"] == "STOPPED"
    (record,) = (k for k in bucket if "stopped" in k and k.endswith("run.json"))
    content = json.loads(bucket[record])
    assert (content["status"], content["error"]["exit_code"]) == ("failed", 143)
    commits = [k for k in bucket if "stopped" in k and k.endswith("commit.json")]
    assert commits, "the checkpoints of the run are gone"


STOPPED = ("train", "run.name=saved", "train.epochs=3000", "train.methods=[sdclr]", *PLACES)
ONLY_AT_STOPS = "train.checkpoint_every_epochs=3000"


def test_a_stopped_job_saves_first_and_goes_on_from_there(
    cluster: LoopbackRay, checkout: Path, s3_server: LoopbackS3
) -> None:
    bucket = s3_server.buckets["bucket"]
    arrived_s = run_until_stopped(cluster, checkout, "first", *STOPPED, ONLY_AT_STOPS)
    log = log_of(cluster, "first")
    saved = re.search(r"^\[train\] sdclr is saved at step (\d+)$", log, re.MULTILINE)
    assert saved, log
    (record,) = (k for k in bucket if "/saved-" in k and k.endswith("run.json"))
    content = json.loads(bucket[record])
    assert (content["status"], content["error"]["exit_code"]) == ("failed", 143)
    (commit,) = (k for k in bucket if "/saved-" in k and k.endswith("commit.json"))
    assert f"{int(saved.group(1)):08d}" in commit
    # One plain line for each interval: the log could be followed for a week.
    assert min(np.diff(arrived_s)) > 4 and "\r" not in log
    percent = [int(line.split()[1]) for line in progress_lines(log)]
    assert percent == sorted(percent)

    uri = f"s3://bucket/{record.rpartition('/')[0]}"
    run_until_stopped(cluster, checkout, "second", "train", "--resume", uri)
    rows = [json.loads(line) for line in bucket[f"{uri[12:]}/metrics.jsonl"].splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "step"]
    assert steps == sorted(set(steps)) and steps[-1] > int(saved.group(1))
    assert all(b - a == steps[1] - steps[0] for a, b in pairwise(steps)), steps
    assert len([k for k in bucket if "/saved-" in k and k.endswith("commit.json")]) == 2


def run_until_stopped(
    cluster: LoopbackRay, checkout: Path, name: str, *words: str
) -> list[float]:  # fmt: skip
    """Submit, stop after a few lines of progress; when each of them arrived, in seconds."""
    # Time for the last checkpoint, as docs/jobs.md says; the head's own environment would do, too.
    time_to_save = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    options = ("--no-wait", "--submission-id", name, "--runtime-env-json", time_to_save)
    result = submit(cluster, checkout, *words, options=options)
    assert result.returncode == 0, result.stderr
    arrived_s: list[float] = []

    def has_come_far() -> bool:
        log = log_of(cluster, name)
        num_lines = len(progress_lines(log))
        arrived_s.extend([time.monotonic()] * (num_lines - len(arrived_s)))
        status = ask(cluster, f"/api/jobs/{name}")["status"]
        assert status in ("PENDING", "RUNNING"), log
        return num_lines >= 3

    wait_for(has_come_far, every_s=0.5)
    stop = ["ray", "job", "stop", "--address", cluster.dashboard_url, name]
    subprocess.run(stop, env=cluster.environment(), check=True, capture_output=True, timeout=100)
    assert ask(cluster, f"/api/jobs/{name}")["status"] == "STOPPED"
    return arrived_s


def log_of(cluster: LoopbackRay, name: str) -> str:
    text: str = ask(cluster, f"/api/jobs/{name}/logs")["logs"]
    return text


def progress_lines(log: str) -> list[str]:
    return re.findall(r"^train +\d+ % .*$", log, re.MULTILINE)


def test_a_wrong_token_submits_nothing(cluster: LoopbackRay, checkout: Path) -> None:
    before = len(ask(cluster, "/api/jobs/"))
    result = submit(cluster, checkout, "--help", token="f" * 64)
    assert result.returncode != 0 and "Invalid authentication token" in result.stderr
    assert len(ask(cluster, "/api/jobs/")) == before


@pytest.mark.parametrize(
    ("token", "what"),
    [
        ("", "there is no token for the Ray cluster"),
        ("f" * 64, "the Ray cluster answers, but does not let this client in"),
    ],
    ids=["missing", "wrong"],
)
def test_a_client_without_the_right_token_is_told_so(
    cluster: LoopbackRay, tmp_path: Path, token: str, what: str
) -> None:
    environment = cluster.environment(token=token) | {"RAY_ADDRESS": cluster.address}
    command = [sys.executable, str(REPO / "pipeline" / "run.py"), "ingest"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 5, result.stderr
    assert what in result.stderr and "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in result.stderr
    assert "Traceback" not in result.stderr
