"""The request to save and its answer, over storage that both sides share."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.train import stopping
from tests.loopback_s3 import LoopbackS3
from tests.running import wait_for


def serve(run_uri: str, step: int) -> threading.Thread:
    def work() -> None:
        with stopping.StopWatch(run_uri) as stop:
            wait_for(lambda: stop.is_asked, deadline_s=20)
            stop.answer(method="sdclr", step=step)
            assert not stop.is_asked

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.promise("R19")
def test_a_request_is_seen_and_answered(tmp_path: Path) -> None:
    run = str(tmp_path)
    worker = serve(run, 17)
    assert stopping.ask(run, grace_s=20) == stopping.Stopped(method="sdclr", step=17)
    worker.join()


@pytest.mark.promise("R19")
def test_without_a_worker_the_wait_ends_with_the_grace(tmp_path: Path) -> None:
    began_s = time.monotonic()
    assert stopping.ask(str(tmp_path), grace_s=0.3) is None
    assert time.monotonic() - began_s < 10


def test_nobody_waits_for_workers_that_have_ended(tmp_path: Path) -> None:
    start_s, looks = time.monotonic(), iter([False, True])
    assert stopping.ask(str(tmp_path), grace_s=60, is_over=lambda: next(looks)) is None
    assert time.monotonic() - start_s < 30 and next(looks, None) is None
    answer = stopping.Stopped(method="sdclr", step=3)  # the last thing that they did
    answer.write(str(tmp_path / "stopped.json"))
    assert stopping.ask(str(tmp_path), grace_s=60, is_over=lambda: True) == answer


def test_an_old_request_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopping.ask(str(tmp_path), grace_s=0)
    stopping.clear(str(tmp_path))
    assert storage.list_names(str(tmp_path)) == []
    looks: list[bool] = []
    exists = storage.exists
    monkeypatch.setattr(stopping, "_POLL_S", 0.001)
    monkeypatch.setattr(storage, "exists", lambda uri: looks.append(exists(uri)) or looks[-1])
    with stopping.StopWatch(str(tmp_path)) as stop:
        wait_for(lambda: len(looks) >= 3, deadline_s=20)
        assert not stop.is_asked and not any(looks)


def test_over_s3(s3: LoopbackS3) -> None:
    worker = serve("s3://bucket/run", 3)
    assert stopping.ask("s3://bucket/run", grace_s=20) == stopping.Stopped(method="sdclr", step=3)
    worker.join()
