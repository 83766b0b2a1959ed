"""Workers, nodes, drivers and the whole cluster killed in training: the end is the unbroken run's.

Every case compares losses, weights, momentum, both BatchNorm sets, masks and scores bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import storage
from pipeline.model import checkpoint
from pipeline.record.metrics import newest_rows, read_rows
from pipeline.record.rows import RestoreRow, StepRow
from tests.fault_injection import (
    QUICK_HEALTH_CHECKS,
    Driver,
    Nodes,
    final_state,
    has_reached,
    losses,
    nodes,
    only_run,
    scores,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray's Cluster leaves the sockets open with which it looks for ports.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TRAINING = (
    "train.methods=[sdclr]",
    "train.global_batch=32",
    "train.epochs=15",  # of 12 steps
    "train.checkpoint_every_epochs=5",
    "train.checkpoint_every_s=0.5",
    "train.log_every_steps=1",
    "train.device=cpu",
    "evaluate.protocols=[knn]",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(3, **QUICK_HEALTH_CHECKS, RAY_AUTH_MODE="disabled") as found:
        yield found


@pytest.fixture(scope="module")
def unbroken(cluster: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    driver = Driver(folder, cluster.address, *TRAINING)
    assert driver.wait() == 0, driver.output[-3000:]
    return folder


def run_of(folder: Path) -> str:
    return only_run(str(folder / "runs"))


def config_hash_of(run: str) -> str:
    found: str = json.loads(storage.read_bytes(storage.join(run, "run.json")))["config_hash"]
    return found


def assert_equal(folder: Path, whole: Path) -> None:
    runs = run_of(folder), run_of(whole)
    assert losses(runs[0]) == losses(runs[1])
    mine, other = (final_state(run, "sdclr") for run in runs)
    assert mine.numbers == other.numbers and mine.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(t, other.tensors[n]) for n, t in mine.tensors.items())
    np.testing.assert_equal(scores(runs[0]), scores(runs[1]))


@pytest.mark.promise("R17")
@pytest.mark.promise("R2")
@pytest.mark.parametrize("step", [50, 119, 170])
def test_a_killed_worker(cluster: Nodes, unbroken: Path, tmp_path: Path, step: int) -> None:
    driver = Driver(tmp_path, cluster.address, *TRAINING)
    driver.wait_until(has_reached(str(tmp_path / "runs"), step))
    victims = cluster.train_workers()
    assert len(victims) == 2
    os.kill(victims[step % 2], signal.SIGKILL)
    assert driver.wait() == 0, driver.output[-3000:]
    assert_equal(tmp_path, unbroken)


@pytest.mark.promise("R17")
def test_a_killed_node(cluster: Nodes, unbroken: Path, tmp_path: Path) -> None:
    driver = Driver(tmp_path, cluster.address, *TRAINING)
    for step in (50, 100):
        driver.wait_until(has_reached(str(tmp_path / "runs"), step))
        cluster.kill_raylet(next(pid for pid in cluster.raylets() if cluster.has_train_worker(pid)))
    assert driver.wait() == 0, driver.output[-3000:]
    assert_equal(tmp_path, unbroken)


@pytest.mark.promise("R17", "R18")
def test_a_node_that_is_about_to_be_reclaimed(
    cluster: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notice is answered by a checkpoint, and the loss is no failure of a worker."""
    words = [w for w in TRAINING if "checkpoint_every" not in w and "epochs" not in w]
    # No speed of the machine lets it end, or save for another reason, before the notice is heard.
    words += ["train.epochs=100000", "train.checkpoint_every_epochs=100000"]
    words += ["train.checkpoint_every_s=null", "train.stop_grace_s=60"]
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    driver = Driver(tmp_path, cluster.address, *words, "train.max_failures=0")
    root = str(tmp_path / "runs")
    driver.wait_until(has_reached(root, 20))
    victim = next(pid for pid in cluster.raylets() if cluster.has_train_worker(pid))
    cluster.give_notice(victim, deadline_s=5)
    deadline_s = time.monotonic() + 5
    folder = checkpoint.checkpoints_uri(only_run(root), "sdclr")
    driver.wait_until(lambda: checkpoint.committed(folder))
    step = int(checkpoint.committed(folder)[0].rpartition("-")[2])
    assert step >= 20
    # Before the deadline, the loss of the node would be a failure.
    driver.wait_until(lambda: time.monotonic() > deadline_s + 1)
    cluster.kill_raylet(victim)
    driver.wait_until(lambda: len(restores(root)) == 2)
    driver.wait_until(has_reached(root, step + 20))
    (start, again) = restores(root)
    assert (start.cause, again.cause, again.step) == ("start", "reclaimed", step)
    mine = losses(stopped(driver, root))
    whole_root = str(tmp_path / "whole" / "runs")
    whole = Driver(tmp_path / "whole", cluster.address, *words)
    whole.wait_until(has_reached(whole_root, len(mine)))
    assert mine == losses(stopped(whole, whole_root))[: len(mine)]


def restores(root: str) -> list[RestoreRow]:
    return read_rows(only_run(root), RestoreRow)


def stopped(driver: Driver, root: str) -> str:
    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait() == 143, driver.output[-3000:]
    return only_run(root)


@pytest.mark.promise("R17")
@pytest.mark.parametrize("step", [50])
def test_a_killed_driver(cluster: Nodes, unbroken: Path, tmp_path: Path, step: int) -> None:
    driver = Driver(tmp_path, cluster.address, *TRAINING)
    driver.wait_until(has_reached(str(tmp_path / "runs"), step))
    driver.process.kill()
    driver.wait()
    again = Driver(tmp_path, cluster.address, "--resume", run_of(tmp_path))
    assert again.wait() == 0, again.output[-3000:]
    assert_equal(tmp_path, unbroken)


@pytest.mark.promise("R17")
def test_a_whole_cluster_that_is_killed(cluster: Nodes, unbroken: Path, tmp_path: Path) -> None:
    """Head, nodes, workers and driver at once; the run goes on on another cluster."""
    with nodes(2, RAY_AUTH_MODE="disabled") as lost:
        driver = Driver(tmp_path, lost.address, *TRAINING)
        driver.wait_until(has_reached(str(tmp_path / "runs"), 90))
        lost.kill_everything()
        driver.process.kill()
        driver.wait()
    again = Driver(tmp_path, cluster.address, "--resume", run_of(tmp_path))
    assert again.wait() == 0, again.output[-3000:]
    assert_equal(tmp_path, unbroken)


@pytest.mark.promise("R4", "R17")
def test_a_run_goes_on_with_one_worker_of_two(
    cluster: Nodes, unbroken: Path, tmp_path: Path
) -> None:
    """The same global batches: losses differ by rounding, which grows from step to step."""
    driver = Driver(tmp_path, cluster.address, *TRAINING)
    driver.wait_until(has_reached(str(tmp_path / "runs"), 100))
    driver.process.kill()
    driver.wait()
    run = run_of(tmp_path)
    start = checkpoint.latest(
        checkpoint.checkpoints_uri(run, "sdclr"), config_hash=config_hash_of(run)
    ).state
    assert start is not None
    step = int(start.numbers["step"])
    again = Driver(tmp_path, cluster.address, "--resume", run, "train.workers=1")
    assert again.wait() == 0, again.output[-3000:]
    mine, whole = losses(run), losses(run_of(unbroken))
    assert mine[:step] == whole[:step]
    close = [abs(a[2] - b[2]) / b[2] for a, b in zip(mine[step:], whole[step:], strict=True)]
    assert max(close[:5]) < 1e-3 and sum(close) / len(close) < 0.05, close
    assert mine[step:] != whole[step:]  # else it ran on two


@pytest.mark.promise("R19")
def test_sigterm_saves_in_the_middle_of_an_epoch(
    cluster: Nodes, unbroken: Path, tmp_path: Path
) -> None:
    words = [w for w in TRAINING if "checkpoint_every_s=" not in w] + [
        "train.checkpoint_every_s=null"
    ]
    driver = Driver(tmp_path, cluster.address, *words)
    driver.wait_until(has_reached(str(tmp_path / "runs"), 20))
    driver.process.send_signal(signal.SIGTERM)
    assert driver.wait() == 143, driver.output[-3000:]
    assert "[train] sdclr is saved at step" in driver.output
    step = int(final_state(run_of(tmp_path), "sdclr").numbers["step"])
    assert step >= 20 and step not in (60, 120, 180)  # those would have been saved anyway
    record = json.loads(storage.read_bytes(storage.join(run_of(tmp_path), "run.json")))
    assert (record["status"], record["stages"]["train"]["error"]["exit_code"]) == (
        "interrupted",
        143,
    )
    again = Driver(tmp_path, cluster.address, "--resume", run_of(tmp_path))
    assert again.wait() == 0, again.output[-3000:]
    rows = read_rows(run_of(tmp_path), StepRow)
    assert [row.step for row in rows] == list(range(1, 181))
    assert losses(run_of(tmp_path)) == losses(run_of(unbroken))


@pytest.mark.promise("R17", control=True)
def test_a_run_that_goes_on_from_an_altered_checkpoint_is_not_equal(
    cluster: Nodes, unbroken: Path, tmp_path: Path
) -> None:
    """The comparison sees one momentum that is off."""
    from sdclr import TrainState

    shutil.copytree(unbroken / "runs", tmp_path / "runs")
    run = run_of(tmp_path)
    state = final_state(run, "sdclr")
    name = next(n for n in state.tensors if n.startswith("momentum."))
    tensors = {n: t + 1e-6 if n == name else t for n, t in state.tensors.items()}
    checkpoint.save(
        checkpoint.checkpoints_uri(run, "sdclr"), TrainState(tensors, state.numbers), config_hash=""
    )
    with pytest.raises(AssertionError):
        assert_equal(tmp_path, unbroken)


@pytest.mark.promise("R18")
def test_a_worker_that_dies_again_and_again_uses_up_a_finite_budget(
    cluster: Nodes, tmp_path: Path
) -> None:
    driver = Driver(tmp_path, cluster.address, *TRAINING, "train.max_failures=1")
    root, killed = str(tmp_path / "runs"), 0
    for step in (20, 60):
        driver.wait_until(has_reached(root, step))
        os.kill(cluster.train_workers()[0], signal.SIGKILL)
        killed += 1
    assert driver.wait() == 6, driver.output[-3000:]
    assert killed == 2 and "error: the training workers failed" in driver.output
    run = only_run(root)
    newest = newest_rows(run).step
    assert newest is not None and newest.step < 180
    again = Driver(tmp_path, cluster.address, "--resume", run)
    assert again.wait() == 0, again.output[-3000:]


@pytest.mark.promise("R15", "R28")
def test_a_shard_that_only_the_first_rank_reads_is_named_at_once(
    cluster: Nodes, tmp_path: Path
) -> None:
    """The others do not wait for a rank that has given up before its first step."""
    words = [*TRAINING, "feed.cache=none"]
    assert Driver(tmp_path, cluster.address, "ingest", *words).wait() == 0
    (shard,) = (tmp_path / "data").glob("*/shards/pretrain-*.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    began_s = time.monotonic()
    driver = Driver(tmp_path, cluster.address, "train", *words)
    assert driver.wait() == 3, driver.output[-3000:]
    assert shard.name in driver.output and "hash differs" in driver.output
    assert time.monotonic() - began_s < 120


@pytest.mark.promise("R15")
def test_a_worker_that_hangs_is_given_up_and_replaced(
    cluster: Nodes, unbroken: Path, tmp_path: Path
) -> None:
    driver = Driver(tmp_path, cluster.address, *TRAINING, "train.collective_timeout_s=8")
    driver.wait_until(has_reached(str(tmp_path / "runs"), 50))
    os.kill(cluster.train_workers()[1], signal.SIGSTOP)
    assert driver.wait() == 0, driver.output[-3000:]
    assert losses(run_of(tmp_path)) == losses(run_of(unbroken))
