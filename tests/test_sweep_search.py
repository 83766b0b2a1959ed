"""Search and pruning of a sweep, without a cluster: what a restart must not change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from pipeline.tune.asha import asha
from pipeline.tune.search import NumberedSampler, RecordedSearch, rebuild
from pipeline.tune.space import (
    known_points,
    parameters,
)
from pipeline.tune.trials import TrialRecord
from tests.trial_records import EPOCHS, config, record


def new_study(seed: int = 0, kind: str = "tpe") -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        study_name="sdclr", direction="maximize", sampler=NumberedSampler(kind, seed)
    )


def asked(records: list[TrialRecord], seed: int = 0, kind: str = "tpe") -> dict[str, Any]:
    """The next suggestion after these records."""
    c, empty = config(), new_study(seed, kind)
    searched = parameters(c, "sdclr")
    rebuild(empty, records, known_points(c, "sdclr"), searched, ["fewshot"])
    search = RecordedSearch(empty, searched, metric="fewshot", mode="max", max_epochs=EPOCHS)
    suggested = search.suggest("x")
    assert suggested is not None
    return suggested


def test_a_rebuilt_search_goes_on_with_what_did_not_finish() -> None:
    done = record(0, {"sdclr.prune_ratio": 0.9, "sdclr.temperature": 0.2})
    cut = record(1, {"sdclr.prune_ratio": 0.41, "sdclr.temperature": 0.31}, epochs=4,
                 status="running")  # fmt: skip
    suggested = asked([done, cut])
    assert suggested["number"] == 1
    assert (suggested["sdclr.prune_ratio"], suggested["sdclr.temperature"]) == (0.41, 0.31)
    assert asked([done])["number"] == 1 and asked([])["number"] == 0
    assert asked([])["sdclr.prune_ratio"] == 0.9  # the known point comes first


def test_a_number_without_a_record_is_filled_before_new_ones() -> None:
    points = [record(n, {"sdclr.prune_ratio": 0.5, "sdclr.temperature": 0.1 * n}) for n in (1, 3)]
    assert asked(points)["number"] == 0
    first = record(0, {"sdclr.prune_ratio": 0.9, "sdclr.temperature": 0.2})
    assert asked([first, *points])["number"] == 2


@pytest.mark.promise("R20", control=True)
def test_ray_tunes_own_search_would_repeat_finished_trials() -> None:
    """What a new search of Ray's on the study of a killed sweep asks first: the known points."""
    c = config()
    (known,), searched = known_points(c, "sdclr"), parameters(c, "sdclr")
    storage = optuna.storages.InMemoryStorage()
    for _ in range(2):  # the sweep, and the sweep again
        plain = OptunaSearch(
            {p.key: p.distribution() for p in searched}, metric="fewshot", mode="max",
            points_to_evaluate=[known], storage=storage, study_name="sdclr",
        )  # fmt: skip
        first = plain.suggest("first")
        assert first == known
        plain.on_trial_complete("first", {"fewshot": 0.5})
    ours = asked([record(0, known)])
    assert ours["number"] == 1 and ours["sdclr.prune_ratio"] != known["sdclr.prune_ratio"]


@pytest.mark.promise("R20")
@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_trial_n_is_the_same_in_every_invocation(kind: str) -> None:
    """An unbroken search and one that is rebuilt before every trial suggest the same points."""
    c, searched = config(), parameters(config(), "sdclr")
    unbroken = new_study(3, kind)
    rebuild(unbroken, [], known_points(c, "sdclr"), searched, ["fewshot"])
    search = RecordedSearch(unbroken, searched, metric="fewshot", mode="max", max_epochs=EPOCHS)
    records: list[TrialRecord] = []
    for number in range(12):
        whole = search.suggest(str(number))
        assert whole is not None and whole == asked(records, 3, kind)
        params = {key: value for key, value in whole.items() if "." in key}
        done = record(number, params)
        for row in done.rows:
            search.on_trial_result(str(number), dict(row))
        search.on_trial_complete(str(number), dict(done.rows[-1]))
        records.append(done)
    assert len({r.params["sdclr.prune_ratio"] for r in records}) == 12
    assert asked(records, 4, kind) != asked(records, 3, kind)  # another seed, another search


def test_optuna_learns_what_became_of_a_trial() -> None:
    c, searched = config(), parameters(config(), "sdclr")
    empty = new_study()
    rebuild(empty, [], known_points(c, "sdclr"), searched, ["fewshot"])
    search = RecordedSearch(empty, searched, metric="fewshot", mode="max", max_epochs=EPOCHS)
    for name in ("whole", "stopped", "failed", "crashed", "nan"):
        search.suggest(name)
    for epoch in range(1, EPOCHS + 1):
        search.on_trial_result("whole", {"epoch": epoch, "fewshot": 0.1 * epoch})
    search.on_trial_result("stopped", {"epoch": 1, "fewshot": 0.2})
    search.on_trial_result("stopped", {"epoch": 1, "fewshot": 0.2})  # told again after a restart
    search.on_trial_result("failed", {"epoch": 0, "error": "{}"})
    search.on_trial_complete("whole", {"epoch": EPOCHS, "fewshot": 0.9})
    search.on_trial_complete("stopped", {"epoch": 1, "fewshot": 0.2})
    search.on_trial_complete("failed", {"epoch": 0, "error": "{}"})
    search.on_trial_complete("crashed", {"epoch": 3, "fewshot": 0.3}, error=True)
    search.on_trial_complete("nan", {"epoch": EPOCHS, "fewshot": float("nan")})
    states = [trial.state for trial in empty.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, *[TrialState.FAIL] * 3]
    assert empty.trials[0].value == 0.9 and empty.trials[1].intermediate_values == {1: 0.2}


def stopped_at(scheduler: Any, number: int, course: list[float]) -> int | None:
    (bracket,) = scheduler._brackets
    for epoch, value in enumerate(course, 1):
        trial = SimpleNamespace(trial_id=f"t{number}")
        if bracket.on_result(trial, epoch, value) == "STOP":
            return epoch
    return None


@pytest.mark.promise("R20")
def test_rungs_are_filled_from_the_records() -> None:
    """A scheduler made from records stops what the scheduler that saw the trials stops."""
    settings: dict[str, Any] = {"metric": "fewshot", "mode": "max", "max_epochs": EPOCHS}
    settings |= {"grace_epochs": 1, "reduction_factor": 3}
    rng = np.random.default_rng(0)
    courses = [np.sort(rng.random(EPOCHS)).tolist() for _ in range(12)]
    unbroken = asha([], **settings)
    ends = [stopped_at(unbroken, n, course) for n, course in enumerate(courses)]
    assert sum(end is not None for end in ends) >= 4 and None in ends
    for cut in (4, 8):
        records = []
        for n, course in enumerate(courses[:cut]):
            length = ends[n] or EPOCHS
            rows: list[dict[str, Any]] = [
                {"epoch": e, "fewshot": v, "seconds": 1.0} for e, v in enumerate(course[:length], 1)
            ]
            records.append(record(n, {"sdclr.prune_ratio": 0.5}, rows=rows))
        again = asha(records, **settings)
        assert [stopped_at(again, n, courses[n]) for n in range(cut, 12)] == ends[cut:]
    empty = asha([], **settings)
    assert [stopped_at(empty, n, courses[n]) for n in range(4, 12)] != ends[
        4:
    ]  # the check can fail


@pytest.mark.promise("R20")
def test_the_past_of_a_resumed_trial_is_not_judged_again() -> None:
    """It passed its first rung before the others were there, and lies below them now."""
    others = [record(n, {}, rows=[{"epoch": 1, "fewshot": 0.6 + n / 10}]) for n in range(3)]

    def told(epoch: int, value: float, *, is_past: bool) -> str:
        result = {"epoch": epoch, "fewshot": value, "is_past": is_past}
        return str(scheduler.on_trial_result(None, resumed, result))

    resumed: Any = SimpleNamespace(trial_id="resumed")
    for is_past, action in ((True, "CONTINUE"), (False, "STOP")):  # the second is the control
        scheduler = asha(
            others, metric="fewshot", mode="max", max_epochs=EPOCHS, grace_epochs=1,
            reduction_factor=3,
        )  # fmt: skip
        scheduler.on_trial_add(None, resumed)  # type: ignore[arg-type]
        assert told(1, 0.5, is_past=is_past) == action
        assert scheduler._brackets[0]._rungs[-1][1]["resumed"] == 0.5  # others are judged by it
    assert told(EPOCHS, 0.5, is_past=True) == "STOP"
