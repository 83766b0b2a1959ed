"""The whole path for real: ingest, train on two Ray workers, evaluate, report, kill, resume."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.model import checkpoint
from pipeline.record.metrics import read_rows
from pipeline.record.rows import HealthRow, MaskRow, StepRow
from sdclr.backbone import build_backbone
from sdclr.resnet8 import BasicBlock
from tests.conftest import REPO
from tests.running import started, tail, wait_for

pytestmark = pytest.mark.ray

TINY = (
    "train.epochs=4",
    "train.checkpoint_every_epochs=1",
    "train.log_every_steps=1",
    "train.loss_memory=0.5",
    "health.every_epochs=2",
    "evaluate.fewshot_draws=2",
    "evaluate.cv_folds=2",
)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python pipeline/run.py WORDS` in `folder`, joining the tests' cluster."""
    return subprocess.run(
        [sys.executable, str(REPO / "pipeline" / "run.py"), *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def environment() -> dict[str, str]:
    import ray

    return {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def only_run(folder: Path) -> Path:
    (found,) = (folder / "runs").iterdir()
    return found


def digest(run_folder: Path, method: str) -> str:
    file = run_folder / "models" / method / "backbone.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def remembered(run_folder: Path, method: str) -> torch.Tensor:
    uri = checkpoint.committed(checkpoint.checkpoints_uri(str(run_folder), method))[-1]
    return checkpoint.load(uri, config_hash=None).tensors["loss_memory"]


def steps(run_folder: Path) -> list[tuple[str, int, float]]:
    rows = read_rows(str(run_folder), StepRow)
    return [(row.method, row.step, row.loss) for row in rows]


@pytest.fixture(scope="module")
def unbroken(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("unbroken")
    result = run(folder, *TINY)
    assert result.returncode == 0, result.stderr
    return only_run(folder), result


Unbroken = tuple[Path, subprocess.CompletedProcess[str]]


def test_one_command_leaves_a_complete_record(unbroken: Unbroken) -> None:
    folder, _ = unbroken
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "complete"
    assert {"ingest", "train", "evaluate"} <= record["stages"].keys()
    manifest = json.loads((Path(record["data"]["uri"]) / "manifest.json").read_text())
    assert record["data"]["manifest_hash"] == manifest["hash"]
    assert re.fullmatch(r"demo-[0-9a-f]{8}", folder.name)
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "evaluation.json",
        "forgotten.json",
        "report.html",
    ):
        assert (folder / name).stat().st_size > 0, name


def test_the_console_shows_the_table_and_where_everything_is(unbroken: Unbroken) -> None:
    folder, result = unbroken
    for word in ("Many", "Medium", "Few", "STD", "All", "cached-linear", "cached-fewshot"):
        assert word in result.stdout
    for place in ("report.html", "checkpoints", "backbone.safetensors", "next:"):
        assert place in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    rows = [words for words in lines if words[:1] == ["cached-linear"] and "%" not in words]
    assert [row[1] for row in rows] == ["sdclr", "simclr", "untrained"]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for row, model in zip(rows, evaluation["models"], strict=True):
        linear = next(s for s in model["scores"] if s["protocol"] == "cached-linear")
        assert float(row[6]) == pytest.approx(100 * linear["all"], abs=0.051)


@pytest.mark.promise("O1")
def test_metrics_cover_every_step_of_both_methods(unbroken: Unbroken) -> None:
    folder, _ = unbroken
    rows = steps(folder)
    for method in ("sdclr", "simclr"):
        mine = [step for name, step, _ in rows if name == method]
        assert mine == list(range(1, mine[-1] + 1)) and len(mine) == 4 * 3
    masks = read_rows(str(folder), MaskRow)
    assert [m.epoch for m in masks] == [0, 1, 2, 3]
    assert all(0 < kept <= 1 for m in masks for kept in m.kept_frac.values())


def measures(run_folder: Path) -> list[tuple[str, int, dict[str, float]]]:
    rows = read_rows(str(run_folder), HealthRow)
    return [(row.method, row.step, row.measures) for row in rows]


def test_features_are_looked_at_before_training_and_every_few_epochs(unbroken: Unbroken) -> None:
    folder, result = unbroken
    found = measures(folder)
    expected = [(method, step) for method in ("sdclr", "simclr") for step in (0, 6, 12)]
    assert [(method, step) for method, step, _ in found] == expected
    for method, _, values in found:
        assert 0 <= values["view_retrieval"] <= 1 <= values["rankme"] <= 64
        assert (values["disagreement"] is None) == (method == "simclr")
    assert found[0][2]["view_retrieval"] != found[2][2]["view_retrieval"]
    assert "[health] sdclr: view retrieval " in result.stdout


@pytest.mark.slow
def test_a_streamed_run_equals_the_one_with_the_set_in_memory(unbroken: Unbroken) -> None:
    """Bit for bit, where one shard holds the whole set: the way of an image changes nothing."""
    folder, _ = unbroken
    root = folder.parent.parent
    result = run(root, "train", *TINY, "feed.cache=none", "run.name=streamed")
    assert result.returncode == 0, result.stderr
    (streamed,) = (root / "runs").glob("streamed-*")
    assert steps(streamed) == steps(folder)
    waits = [row.data_wait_frac for row in read_rows(str(streamed), StepRow)]
    assert all(0 <= wait <= 1 for wait in waits)


def test_the_exported_backbone_loads_and_is_the_trained_one(unbroken: Unbroken) -> None:
    folder, _ = unbroken
    tensors = load_file(folder / "models" / "sdclr" / "backbone.safetensors")
    backbone, _ = build_backbone("resnet8", stem="cifar", seed=0)
    fresh = {n: t.clone() for n, t in backbone.state_dict().items()}
    backbone.load_state_dict(tensors, strict=True)
    assert isinstance(backbone.layer1[0], BasicBlock)  # type: ignore[index, union-attr]
    assert not torch.equal(tensors["conv1.weight"], fresh["conv1.weight"])
    assert digest(folder, "sdclr") != digest(folder, "simclr")


def test_pruning_forgets_some_images_more_than_others(unbroken: Unbroken) -> None:
    folder, _ = unbroken
    forgotten = json.loads((folder / "forgotten.json").read_text())
    most, least = ([entry["score"] for entry in forgotten[k]] for k in ("most", "least"))
    assert most == sorted(most, reverse=True) and least == sorted(least)
    assert min(most) > max(least) and forgotten["scored"] == 391
    assert all(entry["png_base64"].startswith("iVBOR") for entry in forgotten["most"])


@pytest.mark.slow
def test_a_second_run_is_numbered_and_evaluate_and_report_go_on_with_the_newest(
    unbroken: Unbroken,
) -> None:
    folder, _ = unbroken
    kept = (folder / "evaluation.json").read_bytes()
    before = json.loads(kept)
    (folder / "evaluation.json").unlink()
    (folder / "report.html").unlink()
    # Keys of evaluation are not part of what a run is: it is found again and scored in other ways.
    protocols = "evaluate.protocols=[cached-linear, knn, paper-fewshot-last]"
    words = [*TINY, protocols, "evaluate.checkpoints=all"]
    result = run(folder.parent.parent, "evaluate", *words)
    assert result.returncode == 0, result.stderr
    after = json.loads((folder / "evaluation.json").read_text())
    assert after["leaks"] == [] and after["groups"] == before["groups"]
    for old, new in zip(before["models"], after["models"], strict=True):
        np.testing.assert_equal([new["scores"][i] for i in (0, 1)], old["scores"][::2])
        paper = new["scores"][2]
        assert (paper["protocol"], paper["n"]) == ("paper-fewshot-last", 2)
        assert "padded-crop, last of 100 epochs, no other label" in paper["note"]
    points = [(point["name"], point["epochs"]) for point in after["curve"]]
    assert points == [("sdclr", 3), ("sdclr", 4), ("simclr", 3), ("simclr", 4)]
    np.testing.assert_equal(after["curve"][1]["scores"], after["models"][0]["scores"])
    assert after["curve"][0]["scores"] != after["curve"][1]["scores"]
    for name in ("features", "cached-linear", "knn", "paper-fewshot-last"):
        assert after["timings_s"][name] > 0 and f"{name} " in result.stdout.split("time: ")[1]
    assert run(folder.parent.parent, "report", "--resume", str(folder)).returncode == 0
    assert (folder / "report.html").exists()
    (folder / "evaluation.json").write_bytes(kept)  # later tests compare with the unbroken run


@pytest.mark.slow
def test_a_run_is_exported_and_its_weights_are_scored_like_the_run(unbroken: Unbroken) -> None:
    folder, _ = unbroken
    root, before = folder.parent.parent, (folder / "evaluation.json").read_bytes()
    result = run(root, "export", "--resume", str(folder))
    assert result.returncode == 0, result.stderr
    exported = folder / "export" / "sdclr"
    card = (exported / "README.md").read_text()
    assert "| cached-linear |" in card and f"{exported}: backbone.safetensors" in result.stdout
    program = torch.export.load(exported / "features.pt2").module()
    assert program(torch.rand(3, 3, 16, 16)).shape == (3, 64)

    weights = str(exported / "backbone.safetensors")
    result = run(root, "evaluate", *TINY, "--checkpoint", weights, "evaluate.protocols=[knn]")
    assert result.returncode == 0, result.stderr
    (own,) = (root / "runs").glob("demo-eval-*")
    found, whole = json.loads((own / "evaluation.json").read_text()), json.loads(before)
    assert [(m["name"], m["epochs"]) for m in found["models"]] == [
        ("checkpoint", 4), ("untrained", 0)
    ]  # fmt: skip
    knn = [s for s in whole["models"][0]["scores"] if s["protocol"] == "knn-k20"]
    np.testing.assert_equal(found["models"][0]["scores"], knn)
    assert (folder / "evaluation.json").read_bytes() == before

    result = run(root, "evaluate", str(folder), str(own))
    assert result.returncode == 0, result.stderr
    assert "sdclr - checkpoint" in result.stdout and "+0.0" in result.stdout


@pytest.fixture(scope="module")
def killed(
    unbroken: Unbroken, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(REPO / "pipeline" / "run.py"), *TINY]
    commits = "runs/*/models/sdclr/checkpoints/*/commit.json"
    with started(command, folder=folder, environment=environment(), log="log.txt") as process:
        wait_for(lambda: list(folder.glob(commits)), process, log=folder / "log.txt")
        process.send_signal(signal.SIGKILL)
    return folder, only_run(folder)


@pytest.mark.promise("R2", "R17")
def test_killed_in_training_and_resumed_equals_the_unbroken_run(
    unbroken: Unbroken, killed: tuple[Path, Path]
) -> None:
    whole, _ = unbroken
    folder, broken = killed
    assert json.loads((broken / "run.json").read_text())["status"] == "running"
    assert not (broken / "models" / "simclr" / "backbone.safetensors").exists()
    result = run(folder, "--resume", str(broken))
    assert result.returncode == 0, result.stderr
    assert steps(broken) == steps(whole)
    assert measures(broken) == measures(whole)
    for method in ("sdclr", "simclr"):
        assert digest(broken, method) == digest(whole, method)
        losses_2N = remembered(whole, method)
        assert torch.equal(remembered(broken, method), losses_2N) and losses_2N.count_nonzero() > 0
    scores = [json.loads((f / "evaluation.json").read_text()) for f in (broken, whole)]
    for evaluation in scores:
        del evaluation["timings_s"]
    np.testing.assert_equal(scores[0], scores[1])


@pytest.mark.promise("R7")
def test_resume_with_another_configuration_is_refused_by_key(killed: tuple[Path, Path]) -> None:
    folder, broken = killed
    result = run(folder, "--resume", str(broken), "train.lr_per_256=0.3")
    assert result.returncode == 2
    assert "train.lr_per_256: 1.0 -> 0.3" in result.stderr


@pytest.mark.slow
@pytest.mark.promise("R19")
@pytest.mark.parametrize("is_here", [False, True])
def test_sigterm_ends_with_143_and_the_record_says_so(
    ray_cluster: None, tmp_path: Path, is_here: bool
) -> None:
    """Also where the one worker is a thread of the driver, which would abort the end of Python."""
    words = ["train.epochs=4000", *TINY[1:], *(["train.workers=1"] if is_here else [])]
    command = [sys.executable, str(REPO / "pipeline" / "run.py"), *words]
    log = tmp_path / "log.txt"
    seen = {k: v for k, v in environment().items() if k != "RAY_ADDRESS" or not is_here}
    with started(command, folder=tmp_path, environment=seen, log=log.name) as process:
        wait_for(lambda: "\ntrain " in log.read_text(), process, log=log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143, tail(log)
    record = json.loads((only_run(tmp_path) / "run.json").read_text())
    assert (record["status"], record["stages"]["train"]["error"]["exit_code"]) == (
        "interrupted",
        143,
    )
    assert "is saved at step" in log.read_text()
