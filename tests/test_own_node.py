"""The tasks of a rank stay on its node: its images do not cross the network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster.marked_nodes import own_node
from tests.conftest import REPO


@pytest.mark.ray
def test_a_node_with_a_cpu_beside_its_ranks_keeps_their_tasks(ray_cluster: None) -> None:
    import ray

    here = ray.get_runtime_context().get_node_id()
    assert own_node(None, num_ranks=3) == here  # of four CPUs
    assert own_node(None, num_ranks=4) is None
    assert own_node("data_node", num_ranks=1) is None


@pytest.mark.slow
def test_nothing_crosses_between_two_nodes_but_does_without_the_rule(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.two_nodes", "--json", str(out)]
    subprocess.run(command, check=True, cwd=REPO, timeout=300)
    bound, free = (row["values"] for row in json.loads(out.read_text())["rows"])
    assert max(bound) == 0
    assert max(free) > 0
