"""The look at the GPUs before any work, the memory they need, and what a full one means."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from pipeline.cluster import preflight
from pipeline.cluster.connect import Cluster
from pipeline.cluster.preflight import GpuReport, driver_version, kinds_of, look, refuse_unusable
from pipeline.config.file import load_config
from pipeline.dataset.manifest import ImageInfo
from pipeline.errors import ErrorReport
from pipeline.model import build, memory
from pipeline.train import worker
from pipeline.train.checks import check_memory
from pipeline.train.method_run import Job
from sdclr import rendering
from tests.conftest import REPO
from tests.refusals import raises
from tests.simulated_gpu import SimulatedGPU
from tests.test_feed import manifest_of

GIB = 2**30
GOOD = GpuReport("10.0.0.7", "H200", "580.1", "13.0", 100 * GIB, 139 * GIB)
WORDS = ["augment.crop_px=64", "model.backbone=resnet8", "train.workers=2"]


def test_a_good_gpu_is_reported_with_driver_and_memory() -> None:
    free = mock.patch.object(torch.cuda, "mem_get_info", return_value=(3 * GIB, 4 * GIB))
    with SimulatedGPU() as gpu, free:
        report = look("10.0.0.7")
        assert gpu.launches["mm"] == 1
    assert (report.name, report.problem, report.slow_views) == ("simulated", "", "")
    assert report.memory == "3.0 GiB free of 4.0" and report.cuda == (torch.version.cuda or "none")
    refuse_unusable([report])


def test_a_gpu_without_triton_is_reported_and_used() -> None:
    free = mock.patch.object(torch.cuda, "mem_get_info", return_value=(3 * GIB, 4 * GIB))
    with SimulatedGPU(), free:
        reason = "RuntimeError: Failed to find C compiler."
        with mock.patch.object(rendering, "problem_of", return_value=reason):
            report = look("10.0.0.7")
    assert report.slow_views.endswith(reason)
    refuse_unusable([report])


@pytest.mark.parametrize("fault", ["no GPU", "wrong product", "CUDA error"])
def test_a_gpu_that_torch_cannot_use_is_refused_with_its_driver(fault: str) -> None:
    free = mock.patch.object(torch.cuda, "mem_get_info", return_value=(3 * GIB, 4 * GIB))
    with SimulatedGPU(), free:
        if fault == "no GPU":
            cause = mock.patch.object(torch.cuda, "is_available", return_value=False)
        elif fault == "wrong product":
            cause = mock.patch.object(preflight, "_SIDE", 257)  # bfloat16 rounds it to 256
        else:
            broken = RuntimeError("CUDA error: no kernel image\nmore")
            cause = mock.patch.object(torch.cuda, "mem_get_info", side_effect=broken)
        with cause:
            report = replace(look("10.0.0.7"), driver="570.86")
    with raises("E-CLUSTER-870", "570.86") as caught:
        refuse_unusable([GOOD, report])
    assert "10.0.0.7" in caught.value.where and "train.device=cpu" in caught.value.todo


def test_the_driver_is_read_from_its_own_file(tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Tue\nGCC 12\n")
    assert driver_version(file) == "570.124.06"
    assert driver_version(tmp_path / "none") == "unknown"


def node(name: str, *, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerAddress": name, "Alive": alive, "Resources": resources}


def test_one_node_of_each_kind_is_looked_at() -> None:
    nodes = [
        node("cpu", CPU=4),
        node("dead", alive=False, GPU=8, **{"accelerator_type:H200": 1}),
        node("a", GPU=8, **{"accelerator_type:H200": 1}),
        node("b", GPU=8, train=1, **{"accelerator_type:H200": 1}),
        node("c", GPU=4, **{"accelerator_type:H200": 1}),
        node("d", GPU=8, train=1, **{"accelerator_type:L40": 1}),
    ]
    assert [n["NodeID"] for n in kinds_of(nodes, None)] == ["a", "c", "d"]
    assert [n["NodeID"] for n in kinds_of(nodes, "train")] == ["b", "d"]
    assert kinds_of(nodes[:2], None) == []


CODE = """
import ray
from pipeline.cluster import preflight
from pipeline.cluster.connect import Cluster
from pipeline.config.file import load_config
from pipeline.errors import ClusterError

ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
cluster = Cluster("", True, 2, 1, "", 1)
config = load_config(None, ["train.workers=1"])
ray.get(ray.remote(num_gpus=1)(lambda: None).remote())  # the look is timed without Ray's start
for changed in (config, load_config(None, ["train.workers=1", "train.device=cpu"])):
    try:
        print("TOLD", preflight.look_at_nodes(cluster, changed))
    except ClusterError as error:
        print("TOLD", error.id)

@ray.remote(num_gpus=1)
class Holder:
    def ready(self):
        return True

holder = Holder.remote()
ray.get(holder.ready.remote())
try:
    preflight.look_at_nodes(cluster, config, deadline_s=2)
except ClusterError as error:
    print("TOLD", error.id)
"""


@pytest.mark.ray
def test_a_gpu_that_ray_counts_and_torch_cannot_use_is_found_before_any_work() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    result = subprocess.run(
        [sys.executable, "-c", CODE], cwd=REPO, capture_output=True, text=True, timeout=240,
        env=environment | {"PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": "0"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    told = [line for line in result.stdout.splitlines() if line.startswith("TOLD")]
    assert told == ["TOLD E-CLUSTER-870", "TOLD []", "TOLD E-CLUSTER-871"]


def test_nothing_is_looked_at_where_training_uses_cpus() -> None:
    cluster = Cluster("", True, 4, 0, "", 4)
    assert preflight.look_at_nodes(cluster, load_config(None, ["train.workers=2"])) == []


def test_memory_that_does_not_suffice_names_the_sizes_and_what_fits() -> None:
    config = load_config(None, [*WORDS, "train.global_batch=256"])
    manifest = manifest_of(ImageInfo("original", None, None), [])
    needed = memory.worker_bytes(config, 64, 128)
    check_memory(config, manifest, [replace(GOOD, free_bytes=needed)])
    with raises("E-CONFIG-872", "H200") as caught:
        check_memory(config, manifest, [GOOD, replace(GOOD, free_bytes=needed - 1)])
    assert "train.global_batch=256" in caught.value.where
    assert caught.value.todo.startswith("set train.micro_batch=64,")
    less = load_config(None, [*WORDS, "train.global_batch=256", "train.micro_batch=64"])
    check_memory(less, manifest, [replace(GOOD, free_bytes=needed - 1)])
    with raises("E-CONFIG-872") as caught:
        check_memory(config, manifest, [replace(GOOD, free_bytes=1)])
    assert caught.value.todo.startswith("set train.micro_batch=4,")  # none fits


def test_the_estimate_counts_what_autograd_keeps() -> None:
    # Two convolutions and a norm would be a closed form; a ResNet is counted by its shapes:
    # every convolution keeps its input, every norm its input, every ReLU its output.
    config = load_config(None, WORDS)
    counted, kept = memory.view_bytes(config, 64), 0
    network = build.new_network(config, "sdclr").backbone

    def count(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal kept
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.ReLU):
            kept += output.numel() * 4

    for module in network.modules():
        module.register_forward_hook(count)
    network(torch.rand(1, 3, 64, 64).expand(2, 3, 64, 64))
    assert counted == pytest.approx(kept / 2, rel=0.25)
    larger = memory.worker_bytes(config, 64, 128) - memory.worker_bytes(config, 64, 64)
    assert larger == 2 * 64 * counted


def job_of(config: Any) -> Job:
    return Job(config.model_dump_json(), "h", "run", "data", None, "cpu", 1)


def outcome(error: Exception) -> dict[str, str | None]:
    """What a worker returns to the driver when training raises an error."""
    config = load_config(None, [*WORDS, "train.global_batch=256"])
    with (
        mock.patch("ray.train.get_context") as context,
        mock.patch.object(worker.claim, "check", side_effect=error),
    ):
        context.return_value.get_world_size.return_value = 2
        return worker.train_worker(vars(job_of(config)))


def test_out_of_memory_is_a_configuration_error_and_no_retry() -> None:
    words = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB\nmore"
    found = outcome(torch.OutOfMemoryError(words))
    assert found["reason"] == "OutOfMemoryError" and found["error"] is not None
    error = ErrorReport.from_json(found["error"]).error()
    assert error.id == "E-CONFIG-873" and error.exit_code == 2
    assert "2.00 GiB" in error.what and "128 images" in error.what
    assert "train.micro_batch=64" in error.todo and "train.global_batch=256" in error.where


def test_another_fault_is_raised_so_that_ray_train_restarts() -> None:
    with pytest.raises(RuntimeError, match="connection"):
        outcome(RuntimeError("connection reset"))
