"""The one place that makes a run of Ray Train, and what its workers return."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.cluster.marked_nodes import labels_on, resources_on
from pipeline.config import Config
from pipeline.record.gauges import run_name
from pipeline.storage import arrow

if TYPE_CHECKING:
    from ray.data import Dataset
    from ray.train import Result
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import ScalingConfig


HANG_FRAC = 0.9
"""Of `train.collective_timeout_s`, after which ranks that do not move are a hang: rank 0 may write
a checkpoint for 300 s meanwhile, while the others wait for it."""
START_S = 120.0
"""Longest start of workers whose number is a range; then room is looked for again."""
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
RESIZE_EVERY_S = 60.0
"""Time between two looks for more workers where `train.checkpoint_every_s` is null."""
MAX_PREEMPTIONS, MAX_CONTROLLER_FAILURES = 20, 3
"""Restarts after a node was reclaimed, and after failures of Ray Train itself; `train.max_failures`
where that is more."""


@dataclass(frozen=True)
class Workers:
    """The workers of one training.

    Attributes:
        number: how many.
        cpus: CPUs of each.
        gpus: GPUs of each, 0 on CPUs; a fraction shares one.
        fewer: smaller numbers of them that will do: the training shrinks and grows.
        is_here: the one worker is this process, in Ray Train's local mode: no process has to start,
            and none is restarted.
    """

    number: int
    cpus: float
    gpus: float
    fewer: tuple[int, ...] = ()
    is_here: bool = False


def controller_failures(config: Config) -> int:
    """Return how often Ray Train itself may fail."""
    return max(MAX_CONTROLLER_FAILURES, config.train.max_failures)


def torch_trainer(
    config: Config,
    worker: Callable[..., dict[str, str | None]],
    passed: Mapping[str, object],
    *,
    run_uri: str,
    workers: Workers,
    datasets: Mapping[str, Dataset] | None = None,
    callbacks: Sequence[object] = (),
    is_whole_run: bool = True,
) -> TorchTrainer:
    """Return a trainer that is not started.

    Args:
        config: has the budgets and deadlines.
        worker: what each worker runs; it gets `passed`.
        passed: plain values.
        run_uri: whose folder `ray` holds what Ray Train keeps.
        workers: how many, and what each has.
        datasets: decoded sets by name; every rank holds the whole of each.
        callbacks: of Ray Train.
        is_whole_run: whether lost nodes and controllers have budgets of their own; a trial of a
            sweep has none, since the sweep repeats it.
    """
    from ray.train import DataConfig, FailureConfig, RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    t = config.train
    # Ray Train's own barriers (reports, notices) wait for ever by default.
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(t.collective_timeout_s)
    filesystem, path = arrow.filesystem(storage.absolute(storage.join(run_uri, "ray")))
    budgets = {"max_failures": t.max_failures}
    if is_whole_run:
        budgets["max_preemption_failures"] = max(MAX_PREEMPTIONS, t.max_failures)
        budgets["controller_failure_limit"] = controller_failures(config)
        # Ranks on other nodes need not wait at Ray Train's own barriers for one that is taken away.
        budgets["relax_collectives_on_preemption"] = workers.number > 1
        if workers.gpus and workers.number > 1:
            _look_for_hangs(t.collective_timeout_s)
    kind, scaling = TorchTrainer, _scaling(config, workers)
    if workers.fewer:
        from pipeline.train.elastic import DividingPolicy, under

        # A node that has just died may still be counted on: such a start waits in vain.
        start_s = min(START_S, float(os.environ.get(_START_TIMEOUT, START_S)))
        os.environ[_START_TIMEOUT] = f"{start_s:g}"
        counts = (*workers.fewer, workers.number)
        policy = DividingPolicy(scaling, counts, run_uri=run_uri, grace_s=t.stop_grace_s)
        kind = under(policy)  # type: ignore[assignment]
    if is_whole_run and not workers.is_here:
        from pipeline.train.faults import FaultNotes

        callbacks = [*callbacks, FaultNotes(run_uri)]
    return kind(
        worker,  # type: ignore[arg-type]
        train_loop_config=dict(passed),
        torch_config=TorchConfig(timeout_s=t.collective_timeout_s),
        scaling_config=scaling,
        datasets=dict(datasets or {}),
        # Every rank holds the whole set: the order of `sdclr.order` needs no shuffle between them.
        dataset_config=DataConfig(datasets_to_split=[]),
        run_config=RunConfig(
            name=f"{run_name(run_uri)}-{time.time_ns()}",
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=list(callbacks) or None,  # type: ignore[arg-type]
            failure_config=FailureConfig(**budgets),  # type: ignore[arg-type]
        ),
    )


def _look_for_hangs(timeout_s: float) -> None:
    """Have Ray Train ask NCCL which ranks do not move, and name them before the group gives up.

    It needs the program ncclras on the nodes, and switches itself off without.
    """
    confirm_s = HANG_FRAC * timeout_s
    os.environ.setdefault("RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR", "1")
    os.environ.setdefault("RAY_TRAIN_NCCL_RAS_ACTION", "fail")
    os.environ.setdefault("RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S", f"{confirm_s:g}")


def _scaling(config: Config, workers: Workers) -> ScalingConfig:
    from ray.train.v2.api.config import ScalingConfig

    if workers.is_here:
        return ScalingConfig(num_workers=0)
    return ScalingConfig(
        num_workers=(workers.fewer[0], workers.number) if workers.fewer else workers.number,
        # More workers begin at the newest checkpoint, so room is looked for as often as one is due.
        elastic_resize_monitor_interval_s=config.train.checkpoint_every_s or RESIZE_EVERY_S,
        use_gpu=workers.gpus > 0,
        resources_per_worker={
            "CPU": workers.cpus,
            "GPU": workers.gpus,
            **resources_on(config.placement.train_nodes),
        },
        label_selector=labels_on(config.placement.train_nodes) or None,
    )


def returned(result: Result) -> dict[str, str | None]:
    """Return what the first worker returned; empty when Ray has nothing of it."""
    # Ray 2.60 types the result as that of an older Ray Train, which has no such field.
    value: dict[str, str | None] | None = result.return_value  # type: ignore[attr-defined]
    return value or {}
