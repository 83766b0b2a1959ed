"""Seconds from the loss of a worker or a node to the next new step, on nodes of this machine.

    python -m tests.recovery [ROUNDS] [RAY_setting=value ...]

Settings are put into the environment of the head; without any, those of the fault tests are used.
`default` stands for Ray's own. A silent node is one whose processes are stopped, not ended, so that
only the head's health checks can tell. Printed, and written to build/promises/recovery.json.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from pipeline.record.metrics import newest_rows
from tests.fault_injection import QUICK_HEALTH_CHECKS, Driver, Nodes, nodes, only_run
from tests.promises import RESULTS

TRAINING = (
    "train",
    "train.methods=[sdclr]",
    "model.backbone=resnet8",
    "train.global_batch=32",
    "train.epochs=100000",
    "train.checkpoint_every_epochs=100000",
    "train.checkpoint_every_s=2",
    "train.log_every_steps=1",
    "train.max_failures=1000",
    "train.device=cpu",
)


def measure(rounds: int, settings: dict[str, str]) -> dict[str, list[float]]:
    """Seconds of each round by what was killed."""
    found: dict[str, list[float]] = {"worker": [], "node": [], "silent node": []}
    folder = Path(tempfile.mkdtemp(prefix="recovery-"))
    with nodes(3, **settings, RAY_AUTH_MODE="disabled") as cluster:
        assert Driver(folder, cluster.address, "ingest", *TRAINING[1:]).wait() == 0
        driver = Driver(folder, cluster.address, *TRAINING)
        root = str(folder / "runs")
        driver.wait_until(lambda: only_run(root) and _newest_s(root) > 0)
        for _ in range(rounds):
            for kind, seconds in found.items():
                time.sleep(5)
                seconds.append(round(_kill(cluster, driver, root, kind), 1))
                sys.stdout.write(f"{kind}: {seconds[-1]} s\n")
                sys.stdout.flush()
        driver.process.send_signal(signal.SIGTERM)
        driver.wait()
    shutil.rmtree(folder)
    return found


def _kill(cluster: Nodes, driver: Driver, root: str, kind: str) -> float:
    if kind == "worker":
        victim = cluster.train_workers()[0]
        killed_s = time.time()
        os.kill(victim, signal.SIGKILL)
    else:
        victim = next(pid for pid in cluster.raylets() if cluster.has_train_worker(pid))
        killed_s = time.time()
        if kind == "silent node":
            cluster.silence_raylet(victim)
        else:
            cluster.kill_raylet(victim)
    # The line of a step that was over at the kill may come a moment later.
    driver.wait_until(lambda: _newest_s(root) > killed_s + 1)
    recovered_s = _newest_s(root)
    if kind == "silent node":
        cluster.kill_raylet(victim)  # and start another one in its place
    return recovered_s - killed_s


def _newest_s(root: str) -> float:
    """When the newest step was over, in seconds since the epoch."""
    row = newest_rows(only_run(root)).step
    return 0.0 if row is None else row.time_s


def main() -> None:
    """The command line."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    settings = dict(word.split("=") for word in sys.argv[2:] if word != "default")
    if not sys.argv[2:]:
        settings = QUICK_HEALTH_CHECKS
    result = {"settings": settings, "recovery_s": measure(rounds, settings)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "recovery.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
