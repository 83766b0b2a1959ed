"""Runs side by side on one machine, each with a Ray of its own, next to one of somebody else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.loopback_ray import LoopbackRay
from tests.running import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TINY = (
    "train.epochs=40", "train.methods=[sdclr]", "evaluate.protocols=[knn]", "train.workers=1",
)  # fmt: skip


@pytest.fixture
def place() -> Iterator[Path]:
    """A RAY_TMPDIR with a short name: sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir=os.environ.get("RAY_TMPDIR")))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(folder: Path, place: Path) -> subprocess.Popen[str]:
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, str(REPO / "pipeline" / "run.py"), *TINY]
    return subprocess.Popen(
        command, cwd=folder, env=environment | {"RAY_TMPDIR": str(place)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_two_runs_and_a_cluster_of_another_do_not_end_each_other(
    tmp_path: Path, place: Path
) -> None:
    (place / "ray").mkdir()
    runs = [start(tmp_path / "first", place)]
    own = {"RAY_TMPDIR": str(place)}
    try:
        with LoopbackRay(num_cpus=1, environment=own, as_current=True) as other:
            wait_for_current(place, other.address.rpartition(":")[2])
            runs.append(start(tmp_path / "second", place))
            for run in runs:
                out, err = run.communicate(timeout=400)
                assert run.returncode == 0, out[-1000:] + err[-3000:]
                assert "this machine" in out and "removed" not in err
    finally:
        for run in runs:
            run.kill()
            run.communicate()


def wait_for_current(place: Path, port: str) -> None:
    """Until every Ray of this RAY_TMPDIR would take the cluster of that port for its own."""
    file = place / "ray" / "ray_current_cluster"
    wait_for(lambda: file.exists() and file.read_text().strip().endswith(f":{port}"), deadline_s=60)
