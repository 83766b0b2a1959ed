"""Runs on several nodes and S3, with workers, nodes and the S3 server killed at random moments.

    python -m tests.soak [MINUTES]

The same training, streamed from S3 every epoch, first in peace, then again and again under faults
until the minutes are over. Each must end with exactly the losses, the state and the scores of the
first. What was killed, and what it cost, is printed and written to build/promises/soak.json.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.record.metrics import read_rows
from pipeline.record.rows import MaskRow, StepRow
from tests.fault_injection import (
    QUICK_HEALTH_CHECKS,
    Driver,
    Nodes,
    final_state,
    losses,
    nodes,
    only_run,
    scores,
)
from tests.loopback_s3 import ACCESS_KEY, SECRET_KEY
from tests.promises import RESULTS

TRAINING = (
    "train.methods=[sdclr]",
    "model.backbone=resnet8",
    "feed.cache=none",  # every epoch is read from the S3 server again
    "train.global_batch=32",
    "train.epochs=100",  # of 12 steps
    "train.checkpoint_every_epochs=25",
    "train.checkpoint_every_s=2",
    "train.log_every_steps=1",
    "train.max_failures=1000",
    "train.device=cpu",
    "evaluate.protocols=[knn]",
)
LEAST_PAUSE_S, MOST_PAUSE_S, SERVER_DOWN_S = 20.0, 60.0, 4.0


class Server:
    """The S3 server's process."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._folder = folder
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Start it on the same port and objects."""
        command = [sys.executable, "-m", "tests.disk_s3", str(self._port), str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None and self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()


def soak(minutes: float, seed: int = 0) -> dict[str, Any]:
    """Run it; what happened.

    Raises:
        AssertionError: a run failed, or is not the first one's equal.
    """
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    server = Server(folder / "s3")
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    place = {"AWS_ENDPOINT_URL": server.url, "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        with nodes(3, **QUICK_HEALTH_CHECKS, **keys, **place, RAY_AUTH_MODE="disabled") as cluster:
            result = _runs(cluster, server, folder, rng, 60 * minutes)
    except BaseException:
        _say(f"the drivers' logs and the bucket are kept in {folder}")
        raise
    finally:
        server.kill()
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _runs(
    cluster: Nodes, server: Server, folder: Path, rng: random.Random, duration_s: float
) -> dict[str, Any]:
    began_s = time.monotonic()
    first = _run(cluster, folder, "peace")
    clean_s = time.monotonic() - began_s
    _say(f"the run in peace took {clean_s:.0f} s")
    killed: Counter[str] = Counter()
    recoveries: dict[str, list[float]] = {}
    runs: list[dict[str, Any]] = []
    lost_s, began_s = 0.0, time.monotonic()
    while time.monotonic() - began_s < duration_s:
        run_began_s, name = time.monotonic(), f"faults-{len(runs)}"
        faults = _run_under_faults(cluster, server, folder, name, rng, began_s + duration_s)
        wall_s = time.monotonic() - run_began_s
        run = only_run(f"s3://bucket/{name}")
        _assert_equal(run, first)
        for kind, seconds in _recoveries(run, faults):
            recoveries.setdefault(kind, []).append(round(seconds, 1))
        mine = Counter(kind for kind, _ in faults)
        killed, lost_s = killed + mine, lost_s + wall_s - clean_s
        runs.append({"wall_s": round(wall_s), "killed": dict(mine)})
        _say(f"run {len(runs)}: {wall_s:.0f} s, {dict(mine)}, equal to the clean one")
    return {
        "minutes": round((time.monotonic() - began_s) / 60, 1),
        "clean_s": round(clean_s),
        "killed": dict(killed),
        "runs": runs,
        "recovery_s": recoveries,
        "lost_s_per_fault": round(lost_s / max(1, killed.total()), 1),
    }


def _words(name: str) -> tuple[str, ...]:
    return (*TRAINING, f"run.root=s3://bucket/{name}", "data.root=s3://bucket/data")


def _run(cluster: Nodes, folder: Path, name: str) -> str:
    driver = Driver(folder / name, cluster.address, *_words(name))
    assert driver.wait(900) == 0, driver.output[-3000:]
    return only_run(f"s3://bucket/{name}")


def _run_under_faults(
    cluster: Nodes, server: Server, folder: Path, name: str, rng: random.Random, end_s: float
) -> list[tuple[str, float]]:
    """Train once; what was killed before `end_s`, and when, in seconds since the epoch."""
    driver = Driver(folder / name, cluster.address, *_words(name))
    faults: list[tuple[str, float]] = []
    at_s = time.monotonic() + rng.uniform(LEAST_PAUSE_S, MOST_PAUSE_S)
    while driver.process.poll() is None:
        time.sleep(0.2)
        if not at_s < time.monotonic() < end_s:
            continue
        kind, now_s = rng.choice(["worker", "node", "S3 server"]), time.time()
        if kind == "worker":
            workers = cluster.train_workers()
            if not workers:
                continue  # none is up: try again at once
            os.kill(rng.choice(workers), signal.SIGKILL)
        elif kind == "node":
            victim = rng.choice(cluster.raylets())
            kind = "node of a worker" if cluster.has_train_worker(victim) else "other node"
            cluster.kill_raylet(victim)
        else:
            assert kind == "S3 server"
            server.kill()
            time.sleep(SERVER_DOWN_S)
            server.start()
        faults.append((kind, now_s))
        _say(f"  killed a {kind}")
        at_s = time.monotonic() + rng.uniform(LEAST_PAUSE_S, MOST_PAUSE_S)
    assert driver.wait() == 0, driver.output[-3000:]
    return faults


def _recoveries(run: str, faults: list[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Seconds from each fault to the next step that counts, where training went on after it."""
    times_s = [row.time_s for row in read_rows(run, StepRow)]
    for kind, at_s in faults:
        later = [t - at_s for t in times_s if t > at_s + 1]  # lines on their way at the moment
        if later:
            yield kind, min(later)


def _assert_equal(run: str, first: str) -> None:
    assert losses(run) == losses(first)
    assert len(read_rows(run, MaskRow)) == len(read_rows(first, MaskRow))
    mine, other = final_state(run, "sdclr"), final_state(first, "sdclr")
    assert mine.numbers == other.numbers
    assert all(torch.equal(t, other.tensors[n]) for n, t in mine.tensors.items())
    np.testing.assert_equal(scores(run), scores(first))


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def main() -> None:
    """The command line."""
    result = soak(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    (RESULTS / "soak.json").write_text(text + "\n")
    _say(text)


if __name__ == "__main__":
    main()
