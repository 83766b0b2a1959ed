"""Checkpoints beside the training: not in its way, not silent about a failure, not for ever."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.model import checkpoint
from pipeline.train.checkpoint_writer import CheckpointWriter
from sdclr import TrainState, capture
from tests.conftest import REPO
from tests.recipes import some_images, some_plan, some_trainer
from tests.refusals import raises
from tests.test_checkpoint import HASH, same, some_state


def writer(folder: Path, **changes: Any) -> CheckpointWriter:
    settings: dict[str, Any] = {"config_hash": HASH, "keep": 2, "deadline_s": 30.0, **changes}
    return CheckpointWriter(str(folder), **settings)


def newest(folder: Path) -> TrainState | None:
    return checkpoint.latest(str(folder), config_hash=HASH).state


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Storage that hangs until the event is set."""
    event, write = threading.Event(), storage.write_bytes

    def slow_write(uri: str, data: bytes) -> None:
        assert event.wait(30)
        write(uri, data)

    with mock.patch.object(storage, "write_bytes", slow_write):
        yield event
        event.set()


def test_a_save_returns_at_once_and_is_committed_when_waited_for(
    tmp_path: Path, gate: threading.Event
) -> None:
    with writer(tmp_path) as one:
        one.save(some_state(10))
        assert one.is_busy and newest(tmp_path) is None
        gate.set()
        one.wait()
        assert same(newest(tmp_path), some_state(10)) and not one.is_busy
        one.save(some_state(20))
    assert same(newest(tmp_path), some_state(20))


def test_what_is_written_is_the_state_at_the_call(tmp_path: Path, gate: threading.Event) -> None:
    trainer = some_trainer(some_plan())
    steps = trainer.run(some_images().feed(some_plan(), seed=0))
    next(steps)
    expected = capture(trainer)
    with writer(tmp_path) as one:
        one.save(capture(trainer))
        next(steps)
        gate.set()
    found = newest(tmp_path)
    assert same(found, expected) and not same(found, capture(trainer))


@pytest.mark.promise("R15")
def test_a_failure_is_raised_by_the_next_call_as_what_it_was(tmp_path: Path) -> None:
    def full(uri: str, data: bytes) -> None:
        raise StorageError(
            "E-STORAGE-999", "could not write: no space left on the device", where=uri
        )

    one = writer(tmp_path)
    one.save(some_state(10))
    one.wait()
    with mock.patch.object(storage, "write_bytes", full):
        one.save(some_state(20))
        with raises("E-STORAGE-999"):
            one.save(some_state(30))
    one.save(some_state(40))  # the failure was told once; what comes after it is written
    one.wait()
    assert same(newest(tmp_path), some_state(40))


@pytest.mark.promise("R15")
def test_storage_that_hangs_ends_in_an_error_that_names_the_step(
    tmp_path: Path, gate: threading.Event
) -> None:
    began_s = time.monotonic()
    with raises("E-STORAGE-004", "10", "0.2") as caught:
        with writer(tmp_path, deadline_s=0.2) as one:
            one.save(some_state(10))
    assert str(tmp_path) in caught.value.where and time.monotonic() - began_s < 10


@pytest.mark.promise("R15")
def test_closing_after_another_error_neither_hangs_nor_hides_it(
    tmp_path: Path, gate: threading.Event
) -> None:
    with pytest.raises(ZeroDivisionError), writer(tmp_path, deadline_s=0.2) as one:
        one.save(some_state(10))
        raise ZeroDivisionError


@pytest.mark.promise("R15")
def test_a_process_ends_although_a_write_hangs() -> None:
    code = (
        "import threading\nfrom pipeline import storage\n"
        "from pipeline.train import checkpoint_writer\n"
        "from tests.test_checkpoint import some_state\n"
        "storage.write_bytes = lambda *a: threading.Event().wait()\n"
        "w = checkpoint_writer.CheckpointWriter('x', config_hash='', keep=1, deadline_s=0.2)\n"
        "w.save(some_state(1))\nw.wait()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "[E-STORAGE-004]" in done.stderr


def test_the_metrics_come_before_the_checkpoint(tmp_path: Path) -> None:
    seen: list[TrainState | None] = []
    with writer(tmp_path, before_commit=lambda: seen.append(newest(tmp_path))) as one:
        one.save(some_state(10))
        one.save(some_state(20))
    assert seen[0] is None and same(seen[1], some_state(10))


def test_the_newest_and_every_nth_stay(tmp_path: Path) -> None:
    with writer(tmp_path, keep=2, keep_every_steps=30) as one:
        for step in range(10, 101, 10):
            one.save(some_state(step))
    assert storage.list_names(str(tmp_path)) == [
        f"step-{step:08d}" for step in (30, 60, 90, 100)
    ]  # fmt: skip


def test_the_best_stays_and_of_equal_ones_the_newest(tmp_path: Path) -> None:
    values = {10: 0.2, 20: 0.7, 30: 0.7, 40: float("nan"), 50: 0.1, 60: None, 70: 0.3}
    with writer(tmp_path, keep=2, keep_best="rankme") as one:
        for step, value in values.items():
            one.save(some_state(step), {"rankme": value, "other": float(step)})
    assert storage.list_names(str(tmp_path)) == ["step-00000030", "step-00000060", "step-00000070"]
    with writer(tmp_path, keep=2, keep_best="rankme") as one:  # a later life of the run
        one.save(some_state(80), {"rankme": 0.9})
        one.save(some_state(90))  # between two looks at the features
        one.save(some_state(100))
    assert storage.list_names(str(tmp_path)) == ["step-00000080", "step-00000090", "step-00000100"]


def test_without_the_measure_only_the_newest_stay(tmp_path: Path) -> None:
    with writer(tmp_path, keep=1, keep_best="rankme") as one:
        for step in (10, 20):
            one.save(some_state(step), {"other": 1.0})
    assert storage.list_names(str(tmp_path)) == ["step-00000020"]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 100 kB: to a writer, a disk that fills up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.promise("R14")
def test_a_disk_that_fills_up_is_told_and_the_one_before_stays(
    tmp_path: Path, small_files: None
) -> None:
    large = TrainState({"x": torch.zeros(100_000)}, {"step": 20})
    with raises("E-STORAGE-381"):
        with writer(tmp_path) as one:
            one.save(some_state(10))
            one.save(large)
    assert same(newest(tmp_path), some_state(10))
    assert [f.name for f in (tmp_path / "step-00000020").iterdir()] == []
