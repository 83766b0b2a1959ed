"""A sweep for real on Ray: killed driver, killed trial, two workers in a trial."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.file import load_config
from pipeline.errors import ClusterError
from pipeline.tune import runner
from pipeline.tune.images import DecodedSet
from pipeline.tune.placement import place
from pipeline.tune.runner import run_trials
from pipeline.tune.trial import SweepJob
from pipeline.tune.trials import Trials
from tests.conftest import REPO
from tests.running import started, wait_for

pytestmark = pytest.mark.ray

TINY = (
    "data.num_val_per_class=10", "data.num_max=60", "train.global_batch=64", "train.epochs=6",
    "train.warmup_epochs=0", "evaluate.shots_per_class=2", "evaluate.fewshot_draws=1",
    "evaluate.cv_folds=2", "tune.trials=4", "tune.grace_epochs=1",
    "tune.retrain_seeds=1",
)  # fmt: skip


def tiny(*words: str) -> list[str]:
    """The words of a tiny sweep; a key that is given again replaces the one of TINY."""
    return list({word.partition("=")[0]: word for word in (*TINY, *words)}.values())


def command(*words: str) -> list[str]:
    return [sys.executable, str(REPO / "pipeline" / "run.py"), "tune", *tiny(*words)]


def environment() -> dict[str, str]:
    import ray

    return {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=folder, env=environment(), capture_output=True, text=True, timeout=500
    )


def begun(folder: Path, *words: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return started(command(*words), folder=folder, environment=environment(), log="log.txt")


def records(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for file in folder.glob("runs/*/trials/*/trial.json"):
        content = json.loads(file.read_text())
        found[content["name"]] = content
    return found


def finished(folder: Path) -> dict[str, dict[str, Any]]:
    return {n: r for n, r in records(folder).items() if r["status"] in ("complete", "pruned")}


def the_sweep(folder: Path) -> Path:
    (found,) = (folder / "runs").iterdir()
    return found


def test_trials_read_the_images_where_the_object_store_has_them(ray_cluster: None) -> None:
    import ray

    @ray.remote
    def mapped(sets: dict[str, Any]) -> tuple[str, bool]:
        images_NCHW = ray.get(sets["pretrain"]).image_set().images_NCHW
        plain = images_NCHW.clone()  # a copy of our own lies elsewhere
        return mapping_at(images_NCHW.data_ptr()), "plasma" in mapping_at(plain.data_ptr())

    pixels_NCHW = np.zeros((500, 3, 32, 32), np.uint8)
    numbers = np.zeros((500, 2), np.int64)
    ids_N = np.array([str(n) for n in range(500)])
    stored = ray.put(DecodedSet(pixels_NCHW, numbers, numbers[:, 0], ids_N))
    where, copied = ray.get(mapped.remote({"pretrain": stored}))
    assert "plasma" in where and not copied


def mapping_at(address: int) -> str:
    """The line of /proc/self/maps that an address of this process belongs to."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= address < high:
            return line
    return ""


@pytest.mark.promise("R20")
def test_a_killed_driver_loses_nothing_and_repeats_nothing(
    ray_cluster: None, tmp_path: Path
) -> None:
    words = ("train.methods=[sdclr]", "tune.retrain_seeds=0")
    with begun(tmp_path, *words) as process:
        wait_for(lambda: finished(tmp_path), process, log=tmp_path / "log.txt")
        process.send_signal(signal.SIGKILL)
    before = finished(tmp_path)
    files = {name: list((the_sweep(tmp_path) / "trials" / name).rglob("*")) for name in before}
    result = run(tmp_path, *words)
    assert result.returncode == 0, result.stderr
    sweep = the_sweep(tmp_path)
    after = records(tmp_path)
    for name, kept in before.items():
        assert after[name] == kept  # to the last second of its time
        assert list((sweep / "trials" / name).rglob("*")) == files[name]
    found = json.loads((sweep / "sweep.json").read_text())
    assert [m["counts"]["failed"] for m in found["methods"]] == [0]
    points = {tuple(t["params"].values()) for t in found["trials"]}
    assert len(found["trials"]) == len(points) == 4  # as many as asked for, none twice
    for trial in after.values():  # how many ASHA stops depends on the order in which they report
        assert [row["epoch"] for row in trial["rows"]] == list(range(1, len(trial["rows"]) + 1))
        assert (trial["status"] == "pruned") == (len(trial["rows"]) < 6), trial["status"]
    assert not list(sweep.rglob("*.pkl")), "nothing pickled is kept"
    for name in ("report.html", "study.journal", "best.yaml"):
        assert (sweep / name).stat().st_size > 0, name
    best = load_config(str(sweep / "best.yaml"))
    assert best.run.name == "demo-best" and best.train.methods == ("sdclr",)
    for word in ("best fewshot", "pruned", "left", "best settings", "optuna-dashboard"):
        assert word in result.stdout


@pytest.mark.slow
@pytest.mark.promise("R20")
def test_a_killed_trial_goes_on_and_ends_like_the_others(ray_cluster: None, tmp_path: Path) -> None:
    words = ("tune.early_stopping=false", "tune.trials=2", "train.epochs=30")
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = run(tmp_path / "whole", *words)
    assert whole.returncode == 0, whole.stderr
    pattern = "runs/*/trials/*/measures.jsonl"

    def rows() -> int:
        return sum(f.read_text().count("\n") for f in (tmp_path / "cut").glob(pattern))

    with begun(tmp_path / "cut", *words) as process:
        wait_for(lambda: rows() >= 8, process, log=tmp_path / "cut" / "log.txt")
        killed = [
            pid
            for pid, name in workers()
            if name.startswith("ray::") and any(n in name for n in ("ImplicitFunc", "run_trial"))
        ]
        assert killed
        os.kill(killed[0], signal.SIGKILL)
        assert process.wait(timeout=300) == 0
    first, second = records(tmp_path / "whole"), records(tmp_path / "cut")
    assert first.keys() == second.keys() and len(first) >= 2 * 2 + 2  # two methods, fresh seeds
    for name, record in first.items():
        mine = second[name]
        assert mine["status"] == "complete" and mine["params"] == record["params"]
        assert [r["fewshot"] for r in mine["rows"]] == [r["fewshot"] for r in record["rows"]]
    for file in ("whole", "cut"):
        content = json.loads((the_sweep(tmp_path / file) / "sweep.json").read_text())
        assert [e["values"]["fewshot"]["n"] for e in content["confirmed"]] in ([1, 1], [1, 1, 1])


def workers() -> list[tuple[int, str]]:
    """Process id and name of the workers of this test's cluster, and of no other."""
    import ray

    address, found = ray.get_runtime_context().gcs_address, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if address in command_line(Path("/proc") / parent):
                found.append((int(folder.name), command_line(folder)))
        except OSError:
            continue  # it has ended
    return found


def command_line(process: Path) -> str:
    return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.mark.slow
def test_two_workers_in_a_trial_and_two_objectives_without_labels(
    ray_cluster: None, tmp_path: Path
) -> None:
    result = run(
        tmp_path, "tune.trial_workers=2", "tune.objective=view_retrieval", "tune.balance=true",
        "tune.trials=2", "train.epochs=2", "tune.retrain_seeds=0", "train.methods=[sdclr]",
        "tune.sampler=nsga2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads((the_sweep(tmp_path) / "sweep.json").read_text())
    assert found["objectives"] == {"view_retrieval": "max", "balance": "min"}
    assert [t["status"] for t in found["trials"]] == ["complete"] * 2
    assert found["pareto"] and all(t["epochs"] == 2 for t in found["trials"])
    assert (the_sweep(tmp_path) / "pareto" / f"{found['pareto'][0]}.yaml").exists()


@pytest.mark.slow
def test_a_sweep_that_finds_no_room_says_so_instead_of_waiting(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    @ray.remote(num_cpus=4)
    class Other:
        """Work of somebody else, on all CPUs."""

        def here(self) -> bool:
            return True

    monkeypatch.setattr(runner, "PLACEMENT_TIMEOUT_S", 4.0)
    base = load_config(None)
    placement = place(base, num_cpus=4, num_gpus=0)
    job = SweepJob(base.model_dump_json(), str(tmp_path), str(tmp_path / "none"), None, 0.0)
    trials, refreshed = Trials(str(tmp_path)), []
    settings: dict[str, Any] = {"job": job, "base": base, "trials": trials, "sets": {}}
    settings |= {"placement": placement, "num_trials": 1, "refresh": lambda: refreshed.append(1)}
    settings |= {"points": [{"label": "one", "method": "simclr", "number": 0, "seed": 1}]}
    other = Other.remote()
    assert ray.get(other.here.remote())
    with pytest.raises(ClusterError, match="no trial could be placed for .*0 and 0 are free"):
        run_trials(**settings)
    assert refreshed and not trials.all("confirm")
    ray.kill(other)
    # The trial that was given up starts now, and finds no data.
    found = wait_for(lambda: [t for t in trials.all("confirm") if t.status != "running"])
    assert found[0].status == "failed" and found[0].error is not None
