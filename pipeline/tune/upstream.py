"""Parts of Ray Tune and Optuna that have no public name, each read in one place.

Read from the source of the versions below; the test of this module fails when one of them moves.
"""

from __future__ import annotations

from typing import Any

import optuna
from optuna.storages import BaseStorage
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

RayTrial = Trial

READ_FROM = {"ray": "2.60", "optuna": "5"}


def storage_of(study: optuna.Study) -> BaseStorage:
    """Return where a study keeps its trials: `OptunaSearch` makes its own study on it."""
    return study._storage


def asked_trials(search: OptunaSearch) -> dict[str, optuna.Trial]:
    """Return the trials that `search` asked of its study, by the id that Tune gave them."""
    asked: dict[str, optuna.Trial] = search._ot_trials
    return asked


def ended_trials(search: OptunaSearch) -> set[str]:
    """Return the ids of trials whose end `search` has reported; a caller may add to it."""
    ended: set[str] = search._completed_trials
    return ended


def only_bracket(scheduler: AsyncHyperBandScheduler) -> Any:
    """Return the rungs of ASHA, which takes values by `on_result(trial, epoch, value)`."""
    (bracket,) = scheduler._brackets
    return bracket


def last_epoch(scheduler: AsyncHyperBandScheduler) -> int:
    """Return the epoch at which the scheduler ends every trial."""
    return int(scheduler._max_t)
