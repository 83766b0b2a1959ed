"""The helpers that wait for processes and measure them can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import NotInTimeError, end, memory_rise_bytes, started, wait_for


def test_a_wait_returns_what_it_waited_for() -> None:
    looks = iter([0, 0, 7])
    assert wait_for(lambda: next(looks), every_s=0) == 7


def test_a_wait_fails_at_its_deadline_and_shows_the_log(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("the last word")
    with pytest.raises(NotInTimeError, match="the last word"):
        wait_for(lambda: None, deadline_s=0, log=tmp_path / "log.txt")


def test_a_wait_fails_when_its_process_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        with pytest.raises(NotInTimeError, match="process ended"):
            wait_for(lambda: None, process)


def test_a_process_lives_during_its_block_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time\nprint('begun', flush=True)\ntime.sleep(600)"]
    environment = dict(os.environ)
    with started(command, folder=tmp_path, environment=environment, log="log.txt") as process:
        wait_for(lambda: "begun" in (tmp_path / "log.txt").read_text(), process)
        assert process.poll() is None
    assert process.returncode is not None
    with started(command, folder=tmp_path, environment=environment) as other:
        end(other)
        assert other.returncode == -15


def test_memory_of_another_process_is_measured_whatever_this_one_holds() -> None:
    mine = bytearray(os.urandom(1)) * 200_000_000  # more than what is measured
    assert memory_rise_bytes("", "pass") < 5_000_000
    assert memory_rise_bytes("", "held = b'x' * 60_000_000") > 50_000_000
    assert mine
