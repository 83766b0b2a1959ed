"""A range of workers: which numbers may train, what there is room for, and when workers change."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

from pipeline import storage
from pipeline.cluster import auto
from pipeline.config import Config
from pipeline.config.file import changed_keys, dump_config, load_config, parse_config
from pipeline.errors import ConfigError
from pipeline.train import elastic, faults, stopping
from pipeline.train.torch_trainer import Workers, torch_trainer
from sdclr import EpochPlan, epoch_order
from tests.refusals import raises

BASE = "ray.train.v2._internal.execution.scaling_policy.ElasticScalingPolicy"
CPU = {"CPU": 1.0}


def config(*words: str) -> Config:
    return load_config(None, words)


@pytest.mark.parametrize(
    ("word", "batch", "counts"),
    [
        ("[4, 8]", 512, (4, 8)), ("[1, 4]", 12, (1, 2, 3, 4)), ("[2, 3]", 36, (2, 3)),
        ("3", 36, (3,)), ("auto", 36, (2,)),
    ],
)  # fmt: skip
def test_numbers_that_share_the_batch_evenly_may_train(
    word: str, batch: int, counts: tuple[int, ...]
) -> None:
    train = config(f"train.workers={word}", f"train.global_batch={batch}").train
    assert train.worker_counts == counts and train.num_workers == counts[-1]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train.workers=[4, 7]"], "ends of train.workers = [4, 7], such as 140, got 128"),
        (["train.workers=[3, 5]"], "ends of train.workers = [3, 5], such as 135, got 128"),
        (["train.workers=[4, 2]"], "train.workers: expected the least first"),
        (["train.workers=[2, 2]"], "train.workers: expected the least first"),
        (["train.workers=[0, 2]"], "train.workers"),
        (["train.workers=[1, 2, 4]"], "train.workers"),
        (["train.workers=[2]"], "train.workers"),
        (["train.workers=[1, 2]", "train.drop_last=false"], "train.drop_last: expected true"),
        (["train.workers=[1, 2]", "train.sync_batchnorm=false"], "train.sync_batchnorm: expected"),
        (["train.workers=[1, 2]", "train.micro_batch=8"], "train.micro_batch: expected null"),
    ],
)
def test_ranges_that_would_change_a_batch_are_refused_by_name(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(*words)
    assert error.value.id == "E-CONFIG-011" and named in error.value.what
    # Without a range the same keys are fine.
    fixed = [word for word in words if "workers" not in word]
    assert config(*fixed, "train.workers=2")


def cut(batch: int, num_ranks: int, planned: int) -> list[list[int]]:
    """The global batches of an epoch, as so many ranks take them by the plan of `planned` ranks."""
    plan = EpochPlan(num_images=5 * batch, global_batch=batch, drop_last=True, num_ranks=planned)
    order = epoch_order(plan.num_images, seed=0, epoch=1)
    return [
        np.concatenate([order[plan.part(step, rank)] for rank in range(num_ranks)]).tolist()
        for step in range(plan.num_steps)
    ]


def test_every_number_of_a_range_trains_on_the_same_batches() -> None:
    counts = config("train.workers=[1, 6]", "train.global_batch=12").train.worker_counts
    assert counts == (1, 2, 3, 4, 6)
    expected = epoch_order(60, seed=0, epoch=1).reshape(5, 12).tolist()
    assert all(cut(12, number, number) == expected for number in counts)
    # A control: two workers that still cut for three.
    assert cut(12, 2, 3) != expected


def test_a_range_is_kept_in_the_run_and_may_change_on_a_resume() -> None:
    ranged = config("train.workers=[2, 4]")
    assert parse_config(dump_config(ranged), origin="x").train.workers == (2, 4)
    assert not changed_keys(ranged, config("train.workers=2"))
    settled = auto.with_workers(ranged, 2)
    assert settled.train.worker_counts == (2,) and ranged.train.worker_counts == (2, 4)


def test_gpus_for_the_least_of_a_range_are_enough_to_train_on_them() -> None:
    ranged = config("train.workers=[2, 4]")
    assert auto.uses_gpu(ranged, 2) and auto.uses_gpu(ranged, 3) and not auto.uses_gpu(ranged, 1)


NODES = {name: CPU for name in "abcde"}


@pytest.mark.parametrize(
    ("counts", "reserved", "alive", "use_gpu", "number"),
    [
        ((2, 3, 4), "abc", "abcde", False, 3),
        ((2, 4), "abc", "abcde", False, 2),  # 3 do not share the batch
        ((2, 3), "abc", "abc", False, 2),  # a CPU is left for the data
        ((2, 3), "abc", "acd", False, 2),  # b has died
        ((2, 3), "ab", "ab", False, 0),
        ((2, 3), "", "abcde", False, 0),
        ((2, 3), "abc", "abc", True, 0),
    ],
)
def test_room_is_counted_on_nodes_that_live(
    counts: tuple[int, ...], reserved: str, alive: str, use_gpu: bool, number: int
) -> None:
    found = elastic.possible(
        counts,
        reserved={name: CPU for name in reserved},
        alive={name: CPU for name in alive},
        use_gpu=use_gpu,
    )
    assert found == number


def test_on_gpus_every_gpu_may_train() -> None:
    eight = {"a": {"GPU": 8.0, "CPU": 8.0}}
    assert elastic.possible((4, 8), reserved=eight, alive=eight, use_gpu=True) == 8
    # The shares of a custom resource are no whole numbers, and are not counted.
    marked = {"a": {"GPU": 3.0, "CPU": 3.0, "train": 3 * 0.001}}
    assert elastic.possible((1, 3), reserved=marked, alive=eight, use_gpu=True) == 3


def policy_of(run: Path, *, gpus: int = 0) -> elastic.DividingPolicy:
    """Return the policy that Ray's controller of such a training is given."""
    workers = Workers(4, cpus=1, gpus=gpus, fewer=(2,))
    with mock.patch.dict(os.environ):
        trainer: Any = torch_trainer(
            config("train.workers=[2, 4]", "train.stop_grace_s=0"), dict, {}, run_uri=str(run),
            workers=workers,
        )  # fmt: skip
    base = "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer"
    with mock.patch(f"{base}._initialize_and_run_controller") as run_controller:
        trainer._initialize_and_run_controller(scaling_policy="Ray's own", other=1)
    given = run_controller.call_args.kwargs
    assert given["other"] == 1
    found: elastic.DividingPolicy = given["scaling_policy"]
    return found


def test_ray_train_is_given_the_range_and_the_policy(tmp_path: Path) -> None:
    policy = policy_of(tmp_path)
    scaling = policy.scaling_config
    assert isinstance(policy, elastic.DividingPolicy) and scaling.elasticity_enabled
    assert (scaling.min_workers, scaling.max_workers) == (2, 4)
    assert scaling.elastic_resize_monitor_interval_s == config().train.checkpoint_every_s
    nodes = [{"NodeID": n, "Alive": n != "b", "Resources": {"CPU": 2.0}} for n in "ab"]
    with mock.patch("ray.nodes", return_value=nodes):
        assert policy._count_possible_workers({"a": {"CPU": 2.0}, "b": {"CPU": 2.0}}) == 0
        nodes[1]["Alive"] = True
        assert policy._count_possible_workers({"a": {"CPU": 2.0}, "b": {"CPU": 2.0}}) == 2


def test_a_group_that_cannot_be_formed_waits_and_is_formed_when_it_can(tmp_path: Path) -> None:
    policy, parts = policy_of(tmp_path), {name: {"CPU": 1.0} for name in "abc"}
    nodes = [{"NodeID": n, "Alive": True, "Resources": {"CPU": 1.0}} for n in "abc"]
    with (
        mock.patch(f"{BASE}._maybe_send_resource_request"),
        mock.patch(f"{BASE}._get_reserved_resources", return_value=parts),
        mock.patch("ray.nodes", side_effect=lambda: nodes),
    ):
        nodes[2]["Alive"] = False
        assert policy.make_decision_for_non_running_worker_group() == NoopDecision()
        nodes[2]["Alive"] = True
        decision = policy.make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision) and decision.num_workers == 2


def decided(policy: elastic.DividingPolicy, now: int, ray_says: object) -> tuple[object, int]:
    """Return what becomes of Ray's decision, and how often the workers are asked to save."""
    asked: list[float] = []

    def ask(run_uri: str, *, grace_s: float) -> None:
        storage.write_bytes(storage.join(run_uri, "stop.json"), b"{}\n")
        asked.append(grace_s)

    state: Any = SimpleNamespace(num_workers=now)
    name = f"{BASE}.make_decision_for_running_worker_group"
    with (
        mock.patch(name, return_value=ray_says),
        mock.patch("pipeline.train.stopping.ask", ask),
    ):
        found = policy.make_decision_for_running_worker_group(state, state)
    assert asked in ([], [0])  # train.stop_grace_s
    return found, len(asked)


@pytest.mark.parametrize(("now", "wanted"), [(2, 4), (4, 2), (4, None)])
def test_workers_that_train_save_before_others_replace_them(
    now: int, wanted: int | None, tmp_path: Path
) -> None:
    ray_says = NoopDecision() if wanted is None else ResizeDecision(wanted, {})
    found = decided(policy_of(tmp_path), now, ray_says)
    assert found == (ray_says, int(wanted is not None))
    assert faults.take(str(tmp_path)) is None  # it is none
    assert not stopping.is_asked(str(tmp_path))  # the next workers would save and hear no more


def test_workers_stay_while_the_driver_waits_for_their_last_checkpoint(tmp_path: Path) -> None:
    storage.write_bytes(storage.join(str(tmp_path), "stop.json"), b"{}\n")
    assert decided(policy_of(tmp_path), 2, ResizeDecision(4, {})) == (NoopDecision(), 0)
    assert stopping.is_asked(str(tmp_path))


@pytest.mark.parametrize(("free", "grows"), [(1.0, False), (2.0, True)])
def test_more_workers_replace_others_only_if_their_gpus_are_free(
    free: float, grows: bool, tmp_path: Path
) -> None:
    """Ray's reservations do not know the actors of others: the start would wait in vain."""
    four = ResizeDecision(4, {})
    with mock.patch("ray.available_resources", return_value={"GPU": free}):
        found = decided(policy_of(tmp_path, gpus=1), 2, four)
    assert found == ((four, 1) if grows else (NoopDecision(), 0))
    with mock.patch("ray.available_resources", return_value={}):
        assert decided(policy_of(tmp_path, gpus=1), 4, ResizeDecision(2, {}))[1] == 1


def test_room_for_too_few_workers_is_refused_by_name() -> None:
    from pipeline.cluster.connect import Cluster, check_workers

    cluster = Cluster(
        "x", is_local=False, num_cpus=2, num_gpus=0, dashboard_url="", largest_node_cpus=1
    )
    counts = config("train.workers=[2, 4]").train.worker_counts
    with raises("E-CLUSTER-002"):
        check_workers(cluster, counts[0], use_gpu=False)
