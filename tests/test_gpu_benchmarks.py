"""The scripts for a GPU run through on a CPU, write as they go, and resume."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.bench import Bench, read_rows
from benchmarks.gpu.cases import FULL, bound_s, case_of
from benchmarks.paper import __main__ as paper
from benchmarks.paper import sets
from benchmarks.paper.pretrain import Pretraining, plan_of
from benchmarks.paper.score import kept
from tests.conftest import REPO

CPU_PARTS = (
    "ceilings", "agreement", "waits", "graph", "faults", "resnet18", "kept", "stream", "training",
)  # fmt: skip


@pytest.mark.parametrize("part", CPU_PARTS)
def test_each_part_has_rows_on_a_cpu(part: str, tmp_path: Path) -> None:
    gpu.run_part(part, "cpu", small=True, out=tmp_path)
    rows = read_rows(tmp_path)
    assert rows and [row.note for row in rows if "failed" in row.note] == []
    if part in ("agreement", "waits", "faults"):
        assert all(row.met for row in rows), rows


def test_the_budgets_are_below_nine_minutes_together() -> None:
    assert sum(seconds for seconds, _ in gpu.PARTS.values()) < 540
    assert set(CPU_PARTS) | {"ranks", "resnet50"} == set(gpu.PARTS)


def test_a_part_that_breaks_or_takes_too_long_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bench: Bench) -> None:
        bench.add("before", [1.0], "x")
        raise RuntimeError("illegal address\nmore")

    monkeypatch.setitem(gpu.PARTS, "ceilings", (20, broken))
    gpu.run_part("ceilings", "cpu", small=True, out=tmp_path)
    first, last = read_rows(tmp_path)
    assert (first.name, first.value) == ("before", 1.0)
    assert last.note == "failed: RuntimeError: illegal address"


@pytest.mark.slow
def test_the_whole_call_writes_rows_as_they_come(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path), "--device", "cpu"]
    result = subprocess.run([*command, "--small"], cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["device"] == "cpu" and len(content["rows"]) == len(read_rows(tmp_path)) > 30
    compared = [row for row in read_rows(tmp_path) if row.name.startswith("the ")]
    assert len(compared) == 2 and all(row.met for row in compared)


def test_the_bound_of_a_step_follows_the_slower_ceiling() -> None:
    case = case_of("resnet18", small=True)
    fast = bound_s(case, flops=1e30, bytes_per_s=1e9)
    assert bound_s(case, flops=1e30, bytes_per_s=2e9) == pytest.approx(fast / 2)
    assert bound_s(case, flops=1e6, bytes_per_s=1e9) > 10 * fast
    twice = replace(case, batch=2 * case.batch)
    assert bound_s(twice, flops=1e9, bytes_per_s=1e9) == pytest.approx(
        2 * bound_s(case, flops=1e9, bytes_per_s=1e9)
    )
    # The arithmetic alone: docs/performance.md has these two at 790 TFLOP/s.
    floors = [bound_s(FULL[name], flops=790e12, bytes_per_s=1e30) for name in FULL]
    assert floors == pytest.approx([4.32e-3, 15.89e-3], rel=1e-3)
    # 0.56 GFLOP a view of ResNet-18 on 32 px, forward: 6 of them an image and joint step.
    whole = bound_s(FULL["resnet18"], flops=1e12, bytes_per_s=1e30)
    assert whole == pytest.approx(6 * 512 * 2 * 0.5566e9 / 1e12, rel=0.01)


def sets_on_disk(folder: Path, num_pretrain: int = 64) -> dict[str, sets.LabelledSet]:
    made = sets.small_sets(num_pretrain)
    for name, data in made.items():
        sets.write_parts(folder, name, data.images.images_NCHW.numpy(), data.labels_N.numpy())
    return made


def test_sets_travel_in_parts_and_come_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "PART_BYTES", 5 * (3 * 32 * 32 + 8))
    made = sets_on_disk(tmp_path)
    files = sorted((tmp_path / "data").glob("pretrain-*.npz"))
    assert len(files) == 13 and max(f.stat().st_size for f in files) < 5 * 3080 + 1000
    for name, data in made.items():
        again = sets.read_set(tmp_path, name)
        assert torch.equal(again.images.images_NCHW, data.images.images_NCHW)
        assert torch.equal(again.labels_N, data.labels_N)
    with pytest.raises(FileNotFoundError):
        sets.read_set(tmp_path / "elsewhere", "test")


def test_the_sets_of_cifar_are_those_of_the_published_lists(tmp_path: Path) -> None:
    data = REPO.parent / "shared" / "data" / "cifar10"
    if not (data / "splits").is_dir():
        pytest.skip("no published lists here")
    rows = np.load(data / "splits" / "split1_D_i.npy")
    assert len(rows) == 11_165 and len(rows) * 3080 < sets.PART_BYTES < 60 * 2**20


def test_a_run_in_several_calls_is_the_run_in_one(tmp_path: Path) -> None:
    plan = plan_of("sdclr", small=True)
    data = sets.small_sets()["pretrain"]
    whole = Pretraining(plan, data, device="cpu", folder=tmp_path / "whole")
    assert whole.train(limit_s=600)
    calls = 0
    while True:
        part = Pretraining(plan, data, device="cpu", folder=tmp_path / "parts")
        before = part.trainer.step
        done = part.train(limit_s=0)  # a step of each call
        calls += 1
        assert done or part.trainer.step == before + 1
        if done:
            break
    assert calls >= whole.trainer.num_steps
    for name, tensor in whole.trainer.model.state_dict().items():
        assert torch.equal(tensor, part.trainer.model.state_dict()[name])
    lines = (tmp_path / "whole" / "sdclr.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]
    assert json.loads(lines[-1])["step"] == whole.trainer.num_steps
    other = replace(plan, epochs=9)
    with pytest.raises(ValueError, match="another run"):
        Pretraining(other, data, device="cpu", folder=tmp_path / "parts")


def test_calls_train_and_score_until_all_is_done(tmp_path: Path) -> None:
    def call(limit_s: float) -> int:
        return paper.run(tmp_path, device="cpu", small=True, precision="float32", limit_s=limit_s)

    assert call(0) == paper.MORE
    assert call(600) == 0
    for method in paper.METHODS:
        found = kept(tmp_path / "scores.json", method)
        assert set(found) == {"cached-linear", "cached-fewshot", "paper-linear"}
        assert all(0 <= scores["all"] <= 100 for scores in found.values())
        # The classes differ in brightness: whatever the network is, a classifier finds them.
        assert found["cached-linear"]["all"] > 30
    scored = (tmp_path / "scores.json").stat().st_mtime_ns
    assert call(600) == 0 and (tmp_path / "scores.json").stat().st_mtime_ns == scored


def test_a_short_run_trains_and_scores_on_the_packed_sets(tmp_path: Path) -> None:
    def call(epochs: int) -> int:
        return paper.run(
            tmp_path, device="cpu", small=False, precision="float32", limit_s=600,
            short_epochs=epochs,
        )  # fmt: skip

    sets_on_disk(tmp_path, 512)  # one batch of the published size
    assert call(1) == 0
    for method in paper.METHODS:
        assert len(kept(tmp_path / "scores.json", method)) == 3
    with pytest.raises(ValueError, match="another run"):
        call(2)
