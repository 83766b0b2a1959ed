"""What a run asks of its cluster, and what it says when that cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import pytest

from pipeline.cluster.connect import (
    Cluster,
    check_workers,
    wait_for_nodes,
)
from pipeline.cluster.marked_nodes import check_placement, marks_of, on_nodes
from tests.conftest import REPO
from tests.refusals import raises

SMALL = Cluster(
    "somewhere", is_local=True, num_cpus=3, num_gpus=0, dashboard_url="", largest_node_cpus=3
)


def test_workers_must_leave_a_cpu_for_the_data() -> None:
    check_workers(SMALL, 2, use_gpu=False)
    with raises("E-CLUSTER-002", "3") as error:
        check_workers(SMALL, 3, use_gpu=False)
    assert "train.workers=2 or less" in error.value.todo


def test_gpu_workers_need_a_gpu_each() -> None:
    with raises("E-CLUSTER-001", "1", "0"):
        check_workers(SMALL, 1, use_gpu=True)


def test_gpu_workers_need_a_cpu_each_and_leave_one_for_the_data() -> None:
    node = replace(SMALL, num_cpus=8, num_gpus=8)
    check_workers(node, 7, use_gpu=True)
    with raises("E-CLUSTER-002", "8"):
        check_workers(node, 8, use_gpu=True)


@pytest.mark.parametrize("use_gpu", [False, True])
def test_the_autoscaler_is_asked_for_all_that_a_worker_needs(use_gpu: bool) -> None:
    node = replace(SMALL, num_cpus=8, num_gpus=2)
    with mock.patch("ray.autoscaler.sdk.request_resources") as asked:
        found = wait_for_nodes(node, 2, use_gpu=use_gpu, worker_mark=None, marks=[], wait_s=0.0)
    assert found is node
    worker = {"CPU": 1, "GPU": 1} if use_gpu else {"CPU": 1}
    assert asked.call_args_list[0].kwargs == {
        "bundles": [worker, worker], "bundle_label_selectors": [{}, {}]
    }  # fmt: skip


def test_the_autoscaler_is_asked_for_marked_nodes() -> None:
    label = "ray.io/market-type=spot"
    with mock.patch("ray.autoscaler.sdk.request_resources") as asked:
        wait_for_nodes(
            SMALL, 1, use_gpu=False, worker_mark=label, marks=[label, "data"], wait_s=0.0
        )
    first = asked.call_args_list[0].kwargs
    assert first["bundle_label_selectors"] == [{"ray.io/market-type": "spot"}, {}]
    assert [sorted(bundle) for bundle in first["bundles"]] == [["CPU"], ["CPU", "data"]]


@pytest.mark.promise("R15")
def test_an_address_that_does_not_answer_ends_with_exit_code_5() -> None:
    # Nothing listens on port 1 of the loopback interface.
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    result = subprocess.run(
        [sys.executable, str(REPO / "pipeline" / "run.py"), "ingest"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 5, result.stderr[-2000:]
    assert "RAY_ADDRESS=127.0.0.1:1" in result.stderr and "to do:" in result.stderr


def test_a_resource_that_no_node_has_is_refused_by_name() -> None:
    marked = replace(SMALL, marks=frozenset({"train", "zone=a"}))
    check_placement(marked.marks, "train", "zone=a", None)
    with raises("E-CLUSTER-003", "zone=b"):
        check_placement(marked.marks, "zone=b")
    with raises("E-CLUSTER-003", "data"):
        check_placement(marked.marks, "train", "data")
    with raises("E-CLUSTER-003"):
        check_placement(SMALL.marks, "train")


def test_a_share_of_a_resource_is_asked_for_and_none_without_a_name() -> None:
    assert on_nodes(None) == {}
    ((name, share),) = on_nodes("train")["resources"].items()
    assert name == "train" and 0 < 64 * share < 1  # 64 workers on a node of 1


def test_a_label_is_asked_for_as_it_is() -> None:
    assert on_nodes("ray.io/market-type=spot") == {"label_selector": {"ray.io/market-type": "spot"}}


def test_marks_of_a_node_are_its_labels_and_custom_resources() -> None:
    node = {
        "Resources": {"CPU": 2.0, "node:127.0.0.1": 1.0, "memory": 9.0, "train": 1.0},
        "Labels": {"ray.io/node-id": "1f", "ray.io/market-type": "spot"},
    }
    assert marks_of(node) == {"train", "ray.io/market-type=spot"}
