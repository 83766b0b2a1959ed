"""The Ray Train worker: every method of the run, one after the other."""

from __future__ import annotations

import gc
import traceback
from contextlib import nullcontext
from typing import Any

import torch

from pipeline import feed
from pipeline.cluster import auto
from pipeline.config import Config
from pipeline.dataset.manifest import read_manifest
from pipeline.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ErrorReport,
    TrainingError,
    reason_of,
)
from pipeline.train import claim
from pipeline.train.checks import out_of_memory
from pipeline.train.method_run import Job, MethodRun
from pipeline.train.stopping import StopWatch
from sdclr import StarvedLayerError

# The same on every rank and on every try: reported to the driver instead of restarting.
LASTING = (TrainingError, StarvedLayerError, ConfigError, DataError, CheckpointError)


def train_worker(job: dict[str, Any]) -> dict[str, str | None]:
    """Train all methods of the run; every rank calls it.

    Returns:
        {"error": None}, or the report of a failure that a restart cannot fix. Other
        failures are raised, so that Ray Train restarts the workers.
    """
    import ray.train
    import ray.train.torch

    work = Job(**job)
    config = Config.model_validate_json(work.config)
    torch.set_num_threads(work.num_threads)
    context = ray.train.get_context()
    rank = context.get_world_rank()
    config = auto.with_workers(config, context.get_world_size())
    device = ray.train.torch.get_device() if work.device == "cuda" else torch.device("cpu")
    try:
        claim.check(work.run_uri, work.claim, data_uri=work.data_uri, device=device)
        manifest = read_manifest(work.data_uri)
        images = feed.open_source(config, manifest, work.data_uri, device)
        with StopWatch(work.run_uri) if rank == 0 else nullcontext() as stop:
            for method in config.train.methods:
                MethodRun(work, config, manifest, method, rank, device).train(images, stop)
                gc.collect()  # a model and its gradients refer to each other
    except torch.OutOfMemoryError as error:  # all workers have as much to hold
        lasting = out_of_memory(config, error)
        return {"error": ErrorReport.of(lasting).to_json(), "reason": type(error).__name__}
    except LASTING as error:
        report = ErrorReport.of(error, where=work.run_uri)
        return {"error": report.to_json(), "reason": reason_of(error)}
    except Exception as error:
        # Ray Train restarts the workers, and in the end passes on the exception without its trace.
        error.add_note(f"on worker {rank}:\n{traceback.format_exc()}")
        raise
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"error": None, "gpu": gpu}
