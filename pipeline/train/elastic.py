"""Training on as many workers as the cluster has room for: Ray Train's elastic policy, and rules.

Ray Train restarts the workers from the newest checkpoint when one is lost, and when there is room
for more. It takes any number between two. Here

    only numbers that share the global batch evenly are taken, so that every batch stays the same
    nodes that have died do not count, though Ray's list of reservations still has them for 20 s
    on CPUs one is left free for reading data, or lost images could never be decoded again
    before workers that train are replaced they save, so that few steps are made twice
    they are replaced by more only if the GPUs for these are free, whoever else uses the cluster
    they are not replaced while the driver waits for its last checkpoint
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import ray
from ray.train import Result
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from pipeline.cluster.connect import DATA_CPUS
from pipeline.errors import PipelineError
from pipeline.train import stopping


def possible(
    counts: tuple[int, ...],
    *,
    reserved: Mapping[str, Mapping[str, float]],
    alive: Mapping[str, Mapping[str, float]],
    use_gpu: bool,
) -> int:
    """Return the largest of `counts` that there is room for; 0 where there is none.

    Args:
        counts: of workers that may train, with one GPU or one CPU each.
        reserved: node id -> resources that are set aside for the training.
        alive: node id -> all resources of each node that lives.
        use_gpu: whether a worker needs a GPU; a CPU otherwise.
    """
    kind = "GPU" if use_gpu else "CPU"
    room = sum(int(part.get(kind, 0)) for node, part in reserved.items() if node in alive)
    if not use_gpu:
        room = min(room, int(sum(node.get("CPU", 0) for node in alive.values())) - DATA_CPUS)
    return max((n for n in counts if n <= room), default=0)


class DividingPolicy(ElasticScalingPolicy):
    """Decisions about the number of workers.

    Args:
        scaling_config: of Ray Train, with the least and the most.
        counts: of workers that may train.
        run_uri: where the workers are asked to save.
        grace_s: how long they may take for it.
    """

    def __init__(
        self,
        scaling_config: ScalingConfig,
        counts: tuple[int, ...],
        *,
        run_uri: str,
        grace_s: float,
    ) -> None:
        super().__init__(scaling_config)
        self._counts, self._run_uri, self._grace_s = counts, run_uri, grace_s

    def _count_possible_workers(self, reserved_resources: Mapping[str, Mapping[str, float]]) -> int:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        return possible(
            self._counts,
            reserved=reserved_resources,
            alive={node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]},
            use_gpu=bool(self.scaling_config.use_gpu),
        )

    def make_decision_for_running_worker_group(
        self,
        worker_group_state: WorkerGroupState,
        worker_group_status: WorkerGroupPollStatus,
    ) -> ScalingDecision:
        """Return whether workers that train are replaced by more, or by fewer."""
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if not isinstance(decision, ResizeDecision):
            return decision
        if not self._is_free(decision.num_workers - worker_group_state.num_workers):
            return NoopDecision()
        with suppress(PipelineError):  # then the newest checkpoint before counts
            if stopping.is_asked(self._run_uri):
                return NoopDecision()
            stopping.ask(self._run_uri, grace_s=self._grace_s)
            stopping.clear(self._run_uri)
        return decision

    def _is_free(self, more: int) -> bool:
        """Return whether there are GPUs for more workers; Ray's reservations know Ray Train's."""
        if not self.scaling_config.use_gpu:  # on CPUs its own tasks of reading data come and go
            return True
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        return free.get("GPU", 0) >= more


def under(policy: DividingPolicy) -> type[TorchTrainer]:
    """Return the class of trainers that this policy decides for."""

    class Elastic(TorchTrainer):
        def _initialize_and_run_controller(self, **parts: object) -> Result:
            return super()._initialize_and_run_controller(**{**parts, "scaling_policy": policy})

    return Elastic
