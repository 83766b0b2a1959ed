"""Meaning of `auto` on a machine or a cluster: number of workers, and their precision."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.cluster.connect import Cluster
from pipeline.cluster.marked_nodes import on_nodes
from pipeline.config import Config

Precision = Literal["float32", "bfloat16"]
CPU_WORKERS = 2
"""Training workers of a cluster without a GPU, where there are two CPUs.

On one machine it is one, which computes on all CPUs: without an exchange of gradients it is half as
fast again on two cores (docs/performance.md).
"""


def settled(config: Config, cluster: Cluster) -> Config:
    """Return the configuration with the workers and the precision that suit the cluster.

    On a cluster of several machines a task asks a node of the kind that trains.
    """
    most = 1 if cluster.is_local else max(1, min(CPU_WORKERS, cluster.num_cpus - 1))
    config = _with_workers(config, num_gpus=cluster.num_gpus, on_cpus=most)
    if config.train.precision != "auto":
        return config
    return _with(config, precision=native_on(cluster, config))


def native_on(cluster: Cluster, config: Config) -> Precision:
    """Return the precision that suits the machines that train, asked from one of them."""
    on_gpu = uses_gpu(config, cluster.num_gpus)
    if cluster.is_local:
        return native_precision(on_gpu)
    import ray

    there = on_nodes(config.placement.train_nodes)
    task = ray.remote(num_cpus=1, num_gpus=int(on_gpu), **there)(native_precision)
    found: Precision = ray.get(task.remote(on_gpu))
    return found


def settled_here(config: Config) -> Config:
    """Return the configuration as `settled` would on this machine, without Ray."""
    num_gpus = gpus_here()
    config = _with_workers(config, num_gpus=num_gpus, on_cpus=1)
    if config.train.precision != "auto":
        return config
    return _with(config, precision=native_precision(uses_gpu(config, num_gpus)))


def settled_like(config: Config, earlier: Config) -> Config:
    """Return the configuration with `auto` replaced by what an earlier run had."""
    t = config.train
    workers = earlier.train.workers if t.workers == "auto" else t.workers
    precision = earlier.train.precision if t.precision == "auto" else t.precision
    return _with(config, workers=workers, precision=precision)


def with_workers(config: Config, number: int) -> Config:
    """Return the configuration with a number of workers in place of a range."""
    return _with(config, workers=number)


def uses_gpu(config: Config, num_gpus: int) -> bool:
    """Return whether training workers get a GPU each, where there are so many GPUs."""
    if config.train.device == "auto":
        return num_gpus >= config.train.worker_counts[0]
    return config.train.device == "cuda"


def gpus_here() -> int:
    """Return the number of GPUs of this machine that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def unseen_gpus(num_gpus: int, *, devices: Path = Path("/dev")) -> list[str]:
    """Name GPUs of this machine that neither Ray nor torch sees: training would use its CPUs.

    Args:
        num_gpus: GPUs that are seen.
        devices: folder of the machine's devices.
    """
    there = len(list(devices.glob("nvidia[0-9]*")))
    if num_gpus or not there:
        return []
    return [
        f"this machine has {there} NVIDIA devices that torch does not see: look at nvidia-smi, at "
        "the driver and at CUDA_VISIBLE_DEVICES"
    ]


def native_precision(on_gpu: bool) -> Precision:
    """Return bfloat16 if the device of this process computes it natively, else float32."""
    import torch

    if on_gpu:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return "bfloat16" if native else "float32"


def warnings(config: Config, num_gpus: int, native: Precision) -> list[str]:
    """Name GPUs that stand idle, and bfloat16 that the device does not compute natively.

    Args:
        config: settled.
        num_gpus: GPUs that there are.
        native: precision that suits the device that trains.
    """
    t, on_gpu = config.train, uses_gpu(config, num_gpus)
    found = []
    if not on_gpu and num_gpus:
        found.append(
            f"training uses CPUs while {num_gpus} GPUs stand idle: set train.device=auto and "
            f"train.workers={_dividing(num_gpus, t.global_batch)}"
        )
    elif on_gpu and num_gpus > t.num_workers:
        found.append(
            f"{num_gpus - t.num_workers} of {num_gpus} GPUs stand idle: train.workers is "
            f"{t.num_workers}, which train.global_batch={t.global_batch} must be a multiple of"
        )
    if t.precision == "bfloat16" and native == "float32":
        found.append(
            "train.precision=bfloat16 is emulated on this device and up to 12 times slower than "
            "float32: set train.precision=auto"
        )
    return found


def _with_workers(config: Config, *, num_gpus: int, on_cpus: int) -> Config:
    t = config.train
    if t.workers != "auto":
        return config
    gpus = num_gpus if t.device != "cpu" else 0
    return _with(config, workers=_dividing(gpus or on_cpus, t.global_batch))


def _dividing(most: int, batch: int) -> int:
    """Return the largest number of workers, at most `most`, that share a batch evenly."""
    return next(n for n in range(most, 0, -1) if batch % n == 0)


def _with(config: Config, **values: object) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=values)})
