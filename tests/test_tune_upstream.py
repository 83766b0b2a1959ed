"""The private parts of Ray Tune and Optuna that sweeps use are there in the pinned versions."""

from __future__ import annotations

from importlib.metadata import version

import optuna
import pytest
from optuna.storages import BaseStorage
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from pipeline.tune import upstream
from pipeline.tune.result import common_epoch
from pipeline.tune.trials import TrialRecord


@pytest.mark.parametrize("package", upstream.READ_FROM)
def test_the_installed_version_is_the_one_that_was_read(package: str) -> None:
    assert (version(package) + ".").startswith(upstream.READ_FROM[package] + ".")


def test_every_part_is_there_and_of_its_kind() -> None:
    study = optuna.create_study()
    assert isinstance(upstream.storage_of(study), BaseStorage)
    search = OptunaSearch(space=lambda trial: None, metric="m", mode="max")
    assert upstream.asked_trials(search) == {} and upstream.ended_trials(search) == set()
    scheduler = AsyncHyperBandScheduler(
        time_attr="epoch", metric="m", mode="max", max_t=9, grace_period=3, reduction_factor=3
    )
    assert upstream.last_epoch(scheduler) == 9
    assert hasattr(upstream.only_bracket(scheduler), "on_result")


def record(name: str, *values: float) -> TrialRecord:
    rows: list[dict[str, float | int | None]] = [
        {"epoch": epoch, "fewshot": value} for epoch, value in enumerate(values, 1)
    ]
    return TrialRecord(name, "sdclr", 0, "search", {}, 0, rows=rows)


def test_trials_are_compared_at_the_last_epoch_that_all_have_reached() -> None:
    whole, stopped = record("a", 0.165, 0.15, 0.124), record("b", 0.1, 0.15)
    assert common_epoch([whole, stopped]) == 2
    assert common_epoch([whole, record("c")]) == 3  # nothing was measured of c
    assert common_epoch([record("c")]) is None
