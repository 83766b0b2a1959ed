"""Search, pruning and records of a sweep, without a cluster: what a restart must not change."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from pipeline.config import Config
from pipeline.config.file import config_hash, load_config
from pipeline.errors import ClusterError, ConfigError, DataError, TrainingError
from pipeline.ingest.plan import DryRun, PlannedSet
from pipeline.tune import result, study
from pipeline.tune.estimate import expected_epochs, of_seconds, probe_s
from pipeline.tune.placement import Placement, place
from pipeline.tune.search import NumberedSampler, RecordedSearch, asha, rebuild
from pipeline.tune.space import (
    Params,
    best_config,
    configured_value,
    known_points,
    parameters,
    trial_config,
)
from pipeline.tune.stage import grace_epochs
from pipeline.tune.trials import TrialRecord, Trials, trial_name
from pipeline.tune.view import View, result_table

EPOCHS = 9


def config(*overrides: str) -> Config:
    return load_config(None, [f"train.epochs={EPOCHS}", *overrides])


def quality(params: Params) -> float:
    """A smooth landscape with its top at ratio 0.8 and temperature 0.2."""
    ratio = params.get("sdclr.prune_ratio", 0.8)
    temperature = params.get("sdclr.temperature", params.get("simclr.temperature", 0.2))
    return 0.9 - (ratio - 0.8) ** 2 - 0.05 * np.log(temperature / 0.2) ** 2


def record(
    number: int, params: Params, *, epochs: int = EPOCHS, method: Any = "sdclr", **changes: Any
) -> TrialRecord:
    top = quality(params)
    rows = [
        {"epoch": e, "fewshot": top * e / EPOCHS, "balance": 0.1 + 0.01 * number, "seconds": 1.0}
        for e in range(1, epochs + 1)
    ]
    status = "complete" if epochs == EPOCHS else "pruned"
    values: dict[str, Any] = {"status": status, "rows": rows, "seconds": float(epochs)}
    values |= {"role": "search", "seed": 0} | changes
    return TrialRecord(
        name=trial_name(method, number), method=method, number=number, params=params, **values
    )


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


# --- the space


def test_the_space_depends_on_the_method_and_the_stem() -> None:
    both = ("prune_ratio", "temperature", "lr", "weight_decay", "head_depth")
    c = config(f"tune.search=[{','.join(both)}]")
    sdclr = [p.key for p in parameters(c, "sdclr")]
    simclr = [p.key for p in parameters(c, "simclr")]
    assert sdclr == ["sdclr.prune_ratio", "sdclr.temperature", "train.lr", "train.weight_decay",
                     "sdclr.head_depth"]  # fmt: skip
    assert simclr == ["simclr.temperature", "train.lr", "train.weight_decay", "simclr.head_depth"]
    cifar, imagenet = (
        parameters(config(f"model.stem={stem}"), "sdclr")[0] for stem in ("cifar", "imagenet")
    )
    assert (cifar.low, cifar.high) == (0.3, 0.98) and (imagenet.low, imagenet.high) == (0.1, 0.7)
    with pytest.raises(ConfigError, match="range of prune ratios is empty"):
        parameters(config("tune.prune_ratio_min=0.99"), "sdclr")


def test_known_points_are_the_configured_and_the_published_ones() -> None:
    assert known_points(config("sdclr.prune_ratio=0.5"), "sdclr") == [
        {"sdclr.prune_ratio": 0.5, "sdclr.temperature": 0.2},
        {"sdclr.prune_ratio": 0.9, "sdclr.temperature": 0.2},
    ]
    assert len(known_points(config(), "sdclr")) == 1  # both are the same
    assert known_points(config(), "simclr") == [{"simclr.temperature": 0.2}]
    outside = config("tune.prune_ratio_max=0.6", "sdclr.prune_ratio=0.5")
    assert known_points(outside, "sdclr") == [{"sdclr.prune_ratio": 0.5, "sdclr.temperature": 0.2}]


def test_a_trial_trains_one_method_with_its_values_and_the_best_config_is_complete() -> None:
    c = config("sdclr.random_ratio=0.5", "tune.trial_workers=1", "train.workers=2")
    params: Params = {"sdclr.prune_ratio": 0.4, "sdclr.temperature": 0.07}
    trial = trial_config(c, "sdclr", params, seed=7)
    assert trial.train.methods == ("sdclr",) and trial.train.workers == 1 and trial.run.seed == 7
    assert trial.sdclr.prune_ratio == 0.4 and trial.sdclr.random_ratio == 0.4
    best = best_config(c, "sdclr", params)
    assert best.train.workers == 2 and best.sdclr.temperature == 0.07 and best.run.seed == 0
    assert all(configured_value(best, key) == value for key, value in params.items())
    with pytest.raises(ConfigError, match="trial's configuration is not valid"):
        trial_config(config("tune.trial_workers=3"), "sdclr", params, seed=0)


@pytest.mark.parametrize("search", ["[temperature]", "[prune_ratio, lr]"])
def test_the_training_loss_is_refused_across_temperatures_and_ratios(search: str) -> None:
    with pytest.raises(ConfigError, match="values of different functions"):
        config(f"tune.search={search}", "tune.objective=train_loss")
    allowed = config("tune.search=[lr, weight_decay]", "tune.objective=train_loss")
    assert allowed.tune.objective == "train_loss"  # the same loss for all trials


def test_the_hash_of_a_sweep_allows_more_trials_and_nothing_else() -> None:
    first, longer, other = config(), config("tune.trials=99"), config("tune.sampler=random")
    assert config_hash(first, sweep=True) == config_hash(longer, sweep=True)
    assert config_hash(first, sweep=True) != config_hash(other, sweep=True)
    assert config_hash(first) == config_hash(other)  # a training does not depend on the section


def test_grace_is_longer_than_the_warm_up() -> None:
    assert grace_epochs(load_config(None, ["train.epochs=200"])) == 22
    assert grace_epochs(load_config(None, ["train.epochs=20"])) == 3
    assert grace_epochs(config("tune.grace_epochs=1", "train.warmup_epochs=0")) == 1
    with pytest.raises(ConfigError, match="warm-up of 2 epochs"):
        grace_epochs(load_config(None, ["train.epochs=20", "tune.grace_epochs=2"]))


# --- the search


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


# --- early stopping


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


# --- records


def test_records_survive_as_json(tmp_path: Path) -> None:
    trials = Trials(str(tmp_path))
    trials.save(record(3, {"sdclr.prune_ratio": 0.5}, epochs=4))
    trials.save(record(0, {"simclr.temperature": 0.5}, method="simclr"))
    again = Trials(str(tmp_path))
    assert again.all() == trials.all() and [r.number for r in again.all()] == [3, 0]
    assert again.all(method="simclr")[0].epochs == EPOCHS
    names = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert names == ["trial.json"] * 2  # no pickle
    file = tmp_path / "trials" / "sdclr-0003" / "trial.json"
    content = json.loads(file.read_text())
    for change in ({"status": "odd"}, {"schema_version": 2}, {"name": "sdclr-0004"}):
        file.write_text(json.dumps(content | change))
        with pytest.raises(DataError, match="record"):
            Trials(str(tmp_path))
    file.unlink()
    assert len(Trials(str(tmp_path)).all()) == 1


def test_a_row_replaces_those_of_a_lost_attempt() -> None:
    one = record(0, {}, epochs=6)
    one.add({"epoch": 4, "fewshot": 0.5, "seconds": 1.0})
    assert [row["epoch"] for row in one.rows] == [1, 2, 3, 4] and one.last("fewshot") == 0.5
    one.add({"epoch": 5, "fewshot": None, "seconds": 1.0})
    assert one.last("fewshot") is None and one.epochs == 5


def sweep_of(folder: Path, c: Config) -> Trials:
    """A finished search of both methods, some of it stopped or failed."""
    trials, rng = Trials(str(folder)), np.random.default_rng(1)
    for n in range(8):
        params: Params = {"sdclr.prune_ratio": float(rng.uniform(0.3, 0.98)),
                          "sdclr.temperature": float(np.exp(rng.uniform(-3, 0)))}  # fmt: skip
        trials.save(record(n, params, epochs=EPOCHS if n % 3 else 4))
    params = {"sdclr.prune_ratio": 0.97, "sdclr.temperature": 0.05}
    error = {"what": "loss nan", "where": "", "todo": ""}
    trials.save(record(8, params, epochs=1, status="failed", error=error))
    for n in range(4):
        trials.save(record(n, {"simclr.temperature": 0.13 + 0.1 * n}, method="simclr"))
    return trials


def test_the_study_opens_with_plain_optuna(tmp_path: Path) -> None:
    c = config()
    trials = sweep_of(tmp_path, c)
    study.publish(str(tmp_path), trials, c)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = JournalStorage(JournalFileBackend(str(tmp_path / study.JOURNAL)))
        found = optuna.load_study(study_name="sdclr", storage=storage)
        other = optuna.load_study(study_name="simclr", storage=storage)
    assert len(found.trials) == 9 and len(other.trials) == 4
    states = [trial.state for trial in found.trials]
    assert states.count(TrialState.PRUNED) == 3 and states.count(TrialState.FAIL) == 1
    best = result.best_of(c, trials.all(method="sdclr"))
    assert best is not None and found.best_trial.user_attrs["trial"] == best.name
    assert found.best_trial.params == best.params
    assert found.trials[0].intermediate_values == {
        e: pytest.approx(quality(found.trials[0].params) * e / EPOCHS) for e in range(1, 5)
    }


def test_best_front_and_confirmations() -> None:
    c = config("tune.balance=true")
    records = [record(n, {"sdclr.prune_ratio": r}) for n, r in enumerate((0.5, 0.8, 0.7, 0.8))]
    best = result.best_of(c, records)
    assert best is not None and best.number == 1  # the earlier of two equal ones
    # Balance grows with the number: 0 and 1 are on the front; 2 and 3 are beaten by 1.
    assert [r.number for r in result.pareto_front(c, records)] == [1, 0]
    values = [(r.last("fewshot"), r.last("balance")) for r in records]
    slow = [
        n
        for n, (a, b) in enumerate(values)
        if not any(x >= a and y <= b and (x, y) != (a, b) for x, y in values)  # type: ignore[operator]
    ]
    assert sorted(r.number for r in result.pareto_front(c, records)) == slow
    assert result.pareto_front(config(), records) == []
    assert result.best_of(c, [record(0, {}, epochs=3)]) is None


def test_the_winner_and_the_configured_setting_get_the_same_fresh_seeds(tmp_path: Path) -> None:
    c = config("tune.retrain_seeds=2")
    trials = sweep_of(tmp_path, c)
    points = result.confirmations(c, trials)
    seeds: dict[str, list[int]] = {}
    for point in points:
        seeds.setdefault(point["label"], []).append(point["seed"])
    assert set(seeds) == {"best sdclr", "best simclr", f"configured {points[0]['method']}"}
    assert all(found == [1, 2] for found in seeds.values())  # the search used seed 0
    assert len({point["number"] for point in points}) == 6
    for k, point in enumerate(points):
        params = {key: value for key, value in point.items() if "." in key}
        done = record(point["number"], params, method=point["method"], role="confirm",
                      label=point["label"], seed=point["seed"])  # fmt: skip
        done.name = f"confirm-{k:04d}"
        done.rows[-1]["fewshot"] = 0.8 + 0.01 * point["seed"]
        trials.save(done)
    found = result.summary(c, trials)
    first = found["confirmed"][0]["values"]["fewshot"]
    assert first["n"] == 2 and first["mean"] == pytest.approx(0.815)
    assert first["std"] == pytest.approx(np.std([0.81, 0.82], ddof=1))
    headers, rows = result_table(found)
    assert headers[0] == "setting" and len(rows) == 3 and "0.8150 ± 0.0071" in rows[0]
    assert found["methods"][0]["counts"] == {"complete": 5, "pruned": 3, "failed": 1}
    assert found["methods"][0]["epochs"] == 5 * 9 + 3 * 4 + 1
    importance = found["methods"][0]["importance"]
    assert importance is not None and sum(importance.values()) == pytest.approx(1)
    json.dumps(found, allow_nan=False)
    other = config("tune.retrain_seeds=3", "simclr.temperature=0.4")
    longer = result.confirmations(other, trials)
    assert {p["label"] for p in longer} - set(seeds) == {"published simclr"}
    known = {(p["label"], p["seed"], p["number"]) for p in points if "best" in p["label"]}
    assert known < {(p["label"], p["seed"], p["number"]) for p in longer}  # nothing is repeated
    with pytest.raises(TrainingError, match="no trial came to its end"):
        result.summary(c, Trials(str(tmp_path / "nothing")))


def test_a_winner_that_a_longer_sweep_replaces_keeps_its_trainings(tmp_path: Path) -> None:
    c = config("tune.retrain_seeds=2")
    trials = sweep_of(tmp_path, c)
    before = result.confirmations(c, trials)
    for point in before:
        params = {key: value for key, value in point.items() if "." in key}
        done = record(point["number"], params, method=point["method"], role="confirm",
                      label=point["label"], seed=point["seed"])  # fmt: skip
        done.name = f"confirm-{point['number']:04d}"
        trials.save(done)
    trials.save(record(9, {"sdclr.prune_ratio": 0.8, "sdclr.temperature": 0.2}))  # at the top
    after = result.confirmations(c, trials)
    best = [p["number"] for p in after if p["label"] == "best sdclr"]
    assert not set(best) & {p["number"] for p in before}
    same = [p for p in after if p["label"] == "best simclr"]
    assert all(p in before for p in same) and len(same) == 2
    found = result.summary(c, trials)["confirmed"]
    counts = {entry["label"]: entry["values"]["fewshot"]["n"] for entry in found}
    assert counts == {"best sdclr": 0, "configured sdclr": 0, "best simclr": 2}


def test_importance_names_the_parameter_that_matters(tmp_path: Path) -> None:
    trials, rng = Trials(str(tmp_path)), np.random.default_rng(2)
    for n in range(150):
        ratio, temperature = float(rng.uniform(0.3, 0.98)), float(np.exp(rng.uniform(-3, 0)))
        one = record(n, {"sdclr.prune_ratio": ratio, "sdclr.temperature": temperature})
        one.rows[-1]["fewshot"] = -((ratio - 0.4) ** 2)
        trials.save(one)
    found = study.importances(config(), trials, "sdclr")
    assert found is not None and found["sdclr.prune_ratio"] > 0.7
    assert study.importances(config(), trials, "simclr") is None


def test_the_live_table(tmp_path: Path) -> None:
    c = config("tune.trials=12")
    trials = sweep_of(tmp_path, c)
    trials.save(record(9, {"sdclr.prune_ratio": 0.6}, epochs=2, status="running"))
    nowhere: Any = None
    view = View(nowhere, trials, c, "sdclr", concurrent=2, planned=12)
    line = view.line()
    assert "9/12 trials done (3 pruned, 1 failed), 1 running, best fewshot" in line
    assert "left" in line
    headers, rows = view.table()
    assert headers == ["trial", "state", "epoch", "fewshot", "prune_ratio", "temperature"]
    assert rows[0][:3] == ["sdclr-0009", "running", "2/9"] and len(rows) == 6
    for number, method in enumerate(("sdclr", "simclr")):
        one = record(number, {f"{method}.temperature": 0.2}, method=method, role="confirm",
                     label=f"best {method}")  # fmt: skip
        one.name = f"confirm-{number:04d}"
        trials.save(one)
    headers, rows = View(nowhere, trials, c, "", concurrent=2, planned=2).table()
    assert headers[4:] == ["sdclr.temperature", "simclr.temperature"]


# --- placement


def test_placement_follows_the_resources() -> None:
    assert place(config(), num_cpus=2, num_gpus=0).concurrent == 2
    assert place(config("tune.concurrent=1"), num_cpus=2, num_gpus=0).concurrent == 1
    assert place(config("tune.cpus_per_trial=2"), num_cpus=5, num_gpus=0).concurrent == 2
    half = place(config("tune.gpus_per_worker=0.5"), num_cpus=16, num_gpus=2)
    assert half.concurrent == 4 and half.resources == {"CPU": 1.0, "GPU": 0.5}
    nested = place(config("tune.trial_workers=2"), num_cpus=16, num_gpus=4)
    assert nested.concurrent == 2 and nested.gpus == 2 and nested.resources["CPU"] < 0.1
    assert place(config("train.device=cpu"), num_cpus=4, num_gpus=4).gpus == 0
    marked = place(config("placement.train_resource=train"), num_cpus=2, num_gpus=0)
    assert marked.resources["CPU"] == 1 and 0 < marked.resources["train"] < 0.01


@pytest.mark.parametrize("override", ["tune.cpus_per_trial=8", "train.device=cuda"])
def test_a_trial_that_does_not_fit_is_refused(override: str) -> None:
    with pytest.raises(ClusterError, match="no trial can be placed"):
        place(config(override), num_cpus=4, num_gpus=0)
    with pytest.raises(ClusterError, match="on one node at most 2 CPU"):
        place(config("tune.cpus_per_trial=3"), num_cpus=8, num_gpus=0, node_cpus=2)


# --- cost


def test_expected_epochs_of_early_stopping() -> None:
    assert expected_epochs(27, 27, 3) == 27  # never judged
    assert expected_epochs(9, 1, 3) == pytest.approx(1 + 2 / 3 + 6 / 9)
    rng, reached = np.random.default_rng(0), []
    for _ in range(20_000):  # the same by chance: one in three passes each rung
        epoch = 2
        while epoch < 30 and rng.random() < 1 / 3:
            epoch = min(30, 3 * epoch)
        reached.append(epoch)
    assert expected_epochs(30, 2, 3) == pytest.approx(np.mean(reached), rel=0.03)


def test_the_estimate_adds_up() -> None:
    c = config("tune.trials=10", "tune.retrain_seeds=2", "tune.objective=view_retrieval",
               "tune.probe_images=50", "cost.price_per_gpu_hour_usd=2.0", "tune.grace_epochs=1",
               "train.warmup_epochs=0")  # fmt: skip
    sets, nothing = {"pretrain": PlannedSet(391, None, 1, 1)}, None
    plan = DryRun("", True, None, sets, 391, nothing, nothing)  # type: ignore[arg-type]
    on_gpu = Placement({}, cpus=1, gpus=1, gpus_per_worker=1, concurrent=4)
    found = of_seconds(c, plan, on_gpu, 0.5, 0.01)
    epoch_s = 3 * 0.5 + 100 * 0.01  # three steps of 128, and two views of 50 images
    assert found.most_h == pytest.approx((20 + 6) * EPOCHS * epoch_s / 4 / 3600)
    likely = (20 * expected_epochs(EPOCHS, 1, 3) + 6 * EPOCHS) * epoch_s / 4 / 3600
    assert found.likely_h == pytest.approx(likely) and likely < found.most_h
    assert found.price_usd == pytest.approx(2 * found.most_h * 4)
    assert probe_s(config("train.global_batch=4"), 16, False)[0] > 0
