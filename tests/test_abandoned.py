"""A run whose process was killed says "running" for ever; who reads it says "interrupted"."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.record.abandoned import SILENT_S, claim_uri, with_end
from pipeline.record.keeper import RunRecord, read_run
from pipeline.record.run import INTERRUPTED, RUNNING, Run
from pipeline.report.inputs import load
from pipeline.train import claim


def running(uri: str, stage: str | None = "train") -> Run:
    """The record of a run in the middle of a stage, as a killed process leaves it."""
    record = RunRecord.create(uri, name="r", config_hash="ab", seed=0, argv=["x"])
    if stage is not None:
        with record.stage(stage):
            midway = storage.read_bytes(storage.join(uri, "run.json"))
        storage.write_bytes(storage.join(uri, "run.json"), midway)
    return read_run(uri)


def claimed_by(uri: str, *, host: str | None = None, pid: int | None = None) -> None:
    claim.begin(uri)
    owner = json.loads(storage.read_bytes(claim_uri(uri)))
    owner |= {key: value for key, value in (("host", host), ("pid", pid)) if value is not None}
    storage.write_bytes(claim_uri(uri), json.dumps(owner).encode())


def test_a_run_of_a_process_that_lives_is_running(tmp_path: Path) -> None:
    run = running(str(tmp_path))
    claimed_by(str(tmp_path))
    assert with_end(str(tmp_path), run, now_s=time.time() + 9 * SILENT_S) == run


@pytest.mark.parametrize("stage", ["train", "evaluate", None])
def test_a_run_of_a_process_that_has_ended_is_interrupted(
    stage: str | None, tmp_path: Path
) -> None:
    run = running(str(tmp_path), stage)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    claimed_by(str(tmp_path), pid=ended.pid)
    found = with_end(str(tmp_path), run)
    assert found.status == INTERRUPTED and read_run(str(tmp_path)) == run  # it is only read
    if stage is not None:
        error = found.stages[stage].error
        assert error is not None and error.id == "E-STOP-880"
        assert found.error == error
    assert load(str(tmp_path)).status == INTERRUPTED


@pytest.mark.parametrize(
    ("stage", "silent_s", "status"),
    [
        ("train", SILENT_S + 60, INTERRUPTED),
        ("train", SILENT_S - 60, RUNNING),
        ("evaluate", SILENT_S + 60, RUNNING),  # it may take days, and writes no lines
        (None, SILENT_S + 60, RUNNING),
    ],
)
def test_a_training_on_another_host_is_known_by_its_lines(
    stage: str | None, silent_s: float, status: str, tmp_path: Path
) -> None:
    run = running(str(tmp_path), stage)
    claimed_by(str(tmp_path), host="another", pid=2**30)
    assert with_end(str(tmp_path), run, now_s=time.time() + silent_s).status == status


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"\xff", b'{"host": 1, "pid": "x"}'])
def test_without_a_claim_that_can_be_read_nothing_is_concluded(
    content: bytes | None, tmp_path: Path
) -> None:
    run = running(str(tmp_path))
    if content is not None:
        storage.write_bytes(claim_uri(str(tmp_path)), content)
    assert with_end(str(tmp_path), run) == run


def test_a_run_that_has_ended_stays_as_it_is(tmp_path: Path) -> None:
    record = RunRecord.create(str(tmp_path), name="r", config_hash="ab", seed=0, argv=["x"])
    with record.stage("train"):
        pass
    record.finish()
    claimed_by(str(tmp_path), pid=2**30)
    assert with_end(str(tmp_path), read_run(str(tmp_path))).status == "complete"
