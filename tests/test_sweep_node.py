"""A node of the cluster is lost in the middle of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fault_injection import QUICK_HEALTH_CHECKS, Driver, nodes
from tests.test_sweep import records, tiny

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WORDS = tiny("train.methods=[sdclr]", "train.epochs=30", "tune.early_stopping=false",
             "tune.trials=3", "tune.retrain_seeds=0", "train.device=cpu")  # fmt: skip


@pytest.mark.promise("R20")
def test_a_killed_node_costs_no_trial_and_no_measured_epoch(tmp_path: Path) -> None:
    with nodes(2, **QUICK_HEALTH_CHECKS, RAY_AUTH_MODE="disabled") as cluster:
        driver = Driver(tmp_path, cluster.address, "tune", *WORDS)

        def rows() -> dict[str, list[str]]:
            files = tmp_path.glob("runs/*/trials/*/measures.jsonl")
            return {file.parent.name: file.read_text().splitlines() for file in files}

        driver.wait_until(lambda: sum(map(len, rows().values())) >= 8)
        driver.wait_until(cluster.raylets_with_trials)
        cluster.kill_raylet(cluster.raylets_with_trials()[0])
        before = rows()
        assert driver.wait() == 0, driver.output[-3000:]
    found, after = records(tmp_path), rows()
    assert [r["status"] for r in found.values()] == ["complete"] * 3
    assert all([row["epoch"] for row in r["rows"]] == list(range(1, 31)) for r in found.values())
    measured = [(json.loads(a), json.loads(b)) for name in before
                for a, b in zip(before[name], after[name], strict=False)]  # fmt: skip
    assert len(measured) >= 8 and all(a["fewshot"] == b["fewshot"] for a, b in measured)
