"""A cluster of several nodes on this machine: work runs on the nodes that the keys name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO
from tests.loopback_ray import LoopbackRay
from tests.running import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Which process ran where, asked of the cluster once the run is done.
LIST_WORK = """
import json, ray, sys
from ray.util.state import list_actors, list_tasks
ray.init(address="auto", log_to_driver=False)
options = {"limit": 10000, "raise_on_missing_output": False}
print(json.dumps({
    "nodes": {n["NodeID"]: sorted(n["Resources"]) for n in ray.nodes()},
    "tasks": [[t.name, t.node_id] for t in list_tasks(**options)
              if t.node_id and t.job_id not in sys.argv],
    "actors": [[a.class_name, a.node_id] for a in list_actors(**options)
               if a.node_id and a.job_id not in sys.argv],
    "jobs": sorted({t.job_id for t in list_tasks(**options)}),
}))
"""


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator[LoopbackRay]:
    """A head without work, one node for data and two for training, marked in both ways."""
    with LoopbackRay(num_cpus=0) as ray_cluster:
        for kind, market in (("data", "on-demand"), ("train", "spot"), ("train", "spot")):
            ray_cluster.add_node(2, json.dumps({kind: 1}), f"ray.io/market-type={market}")
        wait_for_nodes(environment_of(ray_cluster), 4)
        yield ray_cluster


@pytest.fixture
def cluster(ray_nodes: LoopbackRay) -> dict[str, str]:
    """The environment of a client."""
    return environment_of(ray_nodes)


def environment_of(ray_cluster: LoopbackRay) -> dict[str, str]:
    return ray_cluster.environment() | {"RAY_ADDRESS": ray_cluster.address}


def wait_for_nodes(environment: dict[str, str], num_nodes: int) -> None:
    wait_for(lambda: len(work(environment)["nodes"]) >= num_nodes, deadline_s=90)


def run(environment: dict[str, str], folder: Path, *words: str) -> Any:
    command = [sys.executable, str(REPO / "pipeline" / "run.py"), "run.root=runs", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )


def work(environment: dict[str, str], *others: str) -> Any:
    """Return nodes and work, but of these jobs."""
    command = [sys.executable, "-c", LIST_WORK, *others]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def work_with(environment: dict[str, str], *names: str, others: list[str]) -> Any:
    """Return the work once all these names are in it: events of tasks arrive once a second."""

    def complete() -> Any:
        found = work(environment, *others)
        seen = [name for name, _ in [*found["tasks"], *found["actors"]]]
        return found if all(any(n in name for name in seen) for n in names) else None

    return wait_for(complete, deadline_s=60)


BY_RESOURCE = ("placement.train_nodes=train", "placement.data_nodes=data")
BY_LABEL = (
    "placement.train_nodes=ray.io/market-type=spot",
    "placement.data_nodes=ray.io/market-type=on-demand",
)


@pytest.mark.parametrize("names", [BY_RESOURCE, BY_LABEL], ids=["resources", "labels"])
def test_data_tasks_and_training_workers_run_on_their_own_nodes(
    cluster: dict[str, str], tmp_path: Path, names: tuple[str, ...]
) -> None:
    words = ("train.epochs=1", "train.methods=[sdclr]", "evaluate.protocols=[knn]")
    others = work(cluster)["jobs"]
    result = run(cluster, tmp_path, *words, *names)
    assert result.returncode == 0, result.stderr
    asked = ("ingest_task", "ShardDecoder", "RayTrainWorker", "Extractor")
    found = work_with(cluster, *asked, others=others)
    kind = {
        node: next((name for name in ("train", "data") if name in resources), "head")
        for node, resources in found["nodes"].items()
    }
    tasks = [(name, kind[node]) for name, node in found["tasks"]]
    written = {place for name, place in tasks if "ingest_task" in name}
    decoded = {place for name, place in tasks if "ShardDecoder" in name}
    assert written == {"data"} and decoded == {"data"}, tasks
    workers = [kind[node] for name, node in found["actors"] if name == "RayTrainWorker"]
    assert workers == ["train", "train"], found["actors"]
    extractors = {kind[n] for name, n in found["actors"] if "Extractor" in name}
    assert extractors == {"train"}, found["actors"]


@pytest.mark.parametrize("name", [BY_RESOURCE[0], BY_LABEL[0]], ids=["resource", "label"])
def test_trials_of_a_sweep_run_on_the_nodes_for_training(
    cluster: dict[str, str], tmp_path: Path, name: str
) -> None:
    words = ("tune.objective=train_loss", "tune.search={lr}", "tune.trials=2", "train.epochs=2")
    words += ("tune.retrain_seeds=0", "train.methods=[sdclr]", name)
    others = work(cluster)["jobs"]
    result = run(cluster, tmp_path, "tune", *words)
    assert result.returncode == 0, result.stderr
    found = work_with(cluster, "ImplicitFunc", others=others)
    nodes = {node for name, node in found["actors"] if name.endswith("ImplicitFunc")}
    assert nodes and all("train" in found["nodes"][node] for node in nodes), found


@pytest.mark.parametrize("mark", ["trainer", "ray.io/market-type=free"])
def test_a_mark_that_no_node_has_ends_with_exit_code_5_before_work_starts(
    cluster: dict[str, str], tmp_path: Path, mark: str
) -> None:
    names = (f"placement.train_nodes={mark}", "placement.wait_s=1")
    result = run(cluster, tmp_path, "train.epochs=1", *names)
    assert result.returncode == 5, result.stderr
    assert f"{mark!r}; there are: data, ray.io/market-type=on-demand, ray.io/market-type=spot" in (
        result.stderr
    )


def test_nodes_that_come_later_are_waited_for(
    ray_nodes: LoopbackRay, cluster: dict[str, str], tmp_path: Path
) -> None:
    words = ("train.epochs=1", "train.methods=[sdclr]", "train.workers=1", "run.root=runs")
    words += ("evaluate.protocols=[knn]", "placement.train_nodes=late")
    process = subprocess.Popen(
        [sys.executable, str(REPO / "pipeline" / "run.py"), *words, "placement.wait_s=120"],
        cwd=tmp_path, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert "connecting" in process.stdout.readline()
        ray_nodes.add_node(2, json.dumps({"late": 1}))
        out, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, out
