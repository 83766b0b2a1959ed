"""No input of a user ends in "this is a bug": random command lines, run dry in this process."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest
import torch

from pipeline import run
from pipeline.storage import s3
from tests.command_lines import Typed, command_line
from tests.conftest import S3_KEYS
from tests.loopback_s3 import LoopbackS3
from tests.sources import image_bytes

NUM_QUICK, NUM_SLOW = 60, 2000
SLOW_S = 60.0


@pytest.fixture
def tmp(tmp_path: Path, s3: LoopbackS3, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sound and broken inputs of every kind, and an S3 server that answers."""
    for name in ("images/a/0.png", "images/a/1.png", "images/b/0.png", "images/b/1.png"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image_bytes(len(name) + int(name[-5]), (32, 32)))
        s3.buckets["bucket"][f"photos/{name}"] = file.read_bytes()
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("images/a/0.png,cat\nimages/b/0.png,dog\n")
    (tmp_path / "list.txt").write_text("images/a/0.png\nimages/b/1.png\n")
    (tmp_path / "odd.csv").write_bytes(b'\xff\xfe"a,\n\x00,,,\n[x\n')
    for name in ("torn.tar", "torn.parquet", "torn.safetensors", "index.npy"):
        (tmp_path / name).write_bytes(b"PAR1\x93NUMPY\x01\x00 broken" * 3)
    (tmp_path / "index.json").write_text(json.dumps([0, 1, "x", None, 10**30]))
    torch.save({"epoch": 1, "x": torch.ones(2)}, tmp_path / "w.pt")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setitem(s3_store_defaults(), "deadline_s", 0.0)
    return tmp_path


def s3_store_defaults() -> dict[str, object]:
    return s3.ObjectStore.__init__.__kwdefaults__  # type: ignore[return-value]


def outcome(typed: Typed, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit code and all that was printed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_ADDRESS", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        for name, value in {**S3_KEYS, "AWS_EC2_METADATA_DISABLED": "true"}.items():
            patch.setenv(name, value)
        for name, value in typed.environment.items():
            patch.setenv(name, value)
        try:
            code = run.main(typed.words)
        except SystemExit as error:
            code = int(error.code or 0)
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def check(num_lines: int, seed: int, tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(seed)
    wrong, slow, codes = list[str](), list[str](), set[int]()
    for number in range(num_lines):
        typed = command_line(rng, tmp)
        began_s = time.monotonic()
        code, shown = outcome(typed, capsys)
        taken_s = time.monotonic() - began_s
        codes.add(code)
        line = f"{number}: {dict(typed.environment)} {typed.words!r}"[:600]
        if code not in (0, 2, 3, 4, 5, 6, 7) or "Traceback" in shown:
            wrong.append(f"{line}\n    exit {code}: {shown[-1500:]}")
        elif code and ("to do:" not in shown or "[E-" not in shown):
            wrong.append(f"{line}\n    no advice: {shown[-300:]}")
        if taken_s > SLOW_S:
            slow.append(f"{line}\n    {taken_s:.0f} s")
    assert not wrong, f"{len(wrong)} of {num_lines}:\n" + "\n".join(wrong[:20])
    assert not slow, "\n".join(slow)
    assert {0, 2, 3, 4} <= codes  # the lines are neither all right nor all wrong


@pytest.mark.promise("O6")
def test_no_command_line_ends_in_a_bug(tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(NUM_QUICK, 3, tmp, capsys)


@pytest.mark.slow
@pytest.mark.promise("O6")
def test_two_thousand_command_lines(tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(NUM_SLOW, int(os.environ.get("SDCLR_FUZZ_SEED", "2")), tmp, capsys)


@pytest.mark.promise("O6", control=True)
def test_control_a_mistake_of_ours_is_seen(
    tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise KeyError("x")

    monkeypatch.setattr(run, "_run", broken)
    with pytest.raises(AssertionError, match="KeyError"):
        check(1, 1, tmp, capsys)
