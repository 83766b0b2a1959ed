"""Records of trials, and what is made of them: study, winner, importance, table."""

from __future__ import annotations

import errno
import io
import json
import os
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from pipeline.console import Console
from pipeline.errors import ClusterError, TrainingError
from pipeline.record.sweep import Confirmed, SweepResult
from pipeline.tune import result, runner, study
from pipeline.tune.trials import Trials
from pipeline.tune.view import View, result_table, show_result
from tests.refusals import raises
from tests.trial_records import EPOCHS, config, quality, record, sweep_of


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
        with raises(("E-DATA-093", "E-DATA-094")):
            Trials(str(tmp_path))
    file.unlink()
    assert len(Trials(str(tmp_path)).all()) == 1


def test_records_are_told_while_tune_adds_to_them(tmp_path: Path) -> None:
    trials = Trials(str(tmp_path))

    class Adding(str):
        """A method whose comparison lets another record in, as Tune's thread may at any time."""

        def __eq__(self, other: object) -> bool:
            trials.save(record(len(list(tmp_path.rglob("trial.json"))), {}))
            return super().__eq__(other)

        __hash__ = str.__hash__

    for number in range(2):
        trials.save(record(number, {}))
    assert len(trials.all(method=Adding("sdclr"))) == 2
    assert len(trials.all()) > 2


def test_a_file_that_tune_still_writes_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of Tune's own files cannot be deleted while its thread writes there."""
    rmdir, given_up = os.rmdir, threading.Event()

    def busy(path: str, **options: Any) -> None:
        if "sdclr-tune-" in str(path):
            raise OSError(errno.ENOTEMPTY, "not empty")
        rmdir(path, **options)

    def refresh() -> None:
        raise ClusterError("E-CLUSTER-999", "no trial could be placed", where="x", todo="y")

    tune = MagicMock()
    tune.Tuner.return_value.fit = lambda: given_up.wait(60)
    monkeypatch.setattr(runner, "tune", tune)
    monkeypatch.setattr(runner, "Recorder", MagicMock())
    monkeypatch.setattr(runner, "_check_placed", lambda *given: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "rmdir", busy)
    with raises("E-CLUSTER-999"):
        runner.run_trials(
            job=MagicMock(), base=config(), trials=MagicMock(), sets={}, placement=MagicMock(),
            num_trials=1, refresh=refresh,
        )  # fmt: skip
    given_up.set()


def test_a_row_replaces_those_of_a_lost_attempt() -> None:
    one = record(0, {}, epochs=6)
    one.add({"epoch": 4, "fewshot": 0.5, "seconds": 1.0})
    assert [row["epoch"] for row in one.rows] == [1, 2, 3, 4] and one.last("fewshot") == 0.5
    one.add({"epoch": 5, "fewshot": None, "seconds": 1.0})
    assert one.last("fewshot") is None and one.epochs == 5


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
        seeds.setdefault(point.label, []).append(point.seed or 0)
    assert set(seeds) == {"best sdclr", "best simclr", f"configured {points[0].method}"}
    assert all(found == [1, 2] for found in seeds.values())  # the search used seed 0
    assert len({point.number for point in points}) == 6
    for k, point in enumerate(points):
        done = record(point.number, point.params, method=point.method, role="confirm",
                      label=point.label, seed=point.seed)  # fmt: skip
        done.name = f"confirm-{k:04d}"
        done.rows[-1]["fewshot"] = 0.8 + 0.01 * (point.seed or 0)
        trials.save(done)
    found = result.summary(c, trials, 34)
    first = found.confirmed[0].values["fewshot"]
    assert first.n == 2 and first.mean == pytest.approx(0.815)
    assert first.std == pytest.approx(np.std([0.81, 0.82], ddof=1))
    headers, rows = result_table(found)
    assert headers[0] == "setting" and len(rows) == 3 and "0.8150 ± 0.0071" in rows[0]
    assert found.methods[0].counts == {"complete": 5, "pruned": 3, "failed": 1}
    assert found.methods[0].epochs == 5 * 9 + 3 * 4 + 1
    stream = io.StringIO()
    show_result(Console(stream), "/runs/some", found)
    assert "may be chance" not in stream.getvalue()  # all settings are equal
    label, *_ = [entry.label for entry in found.confirmed if entry.label.startswith("configured")]
    confirmed = tuple(_moved(e, 0.01 if e.label == label else 0.0) for e in found.confirmed)
    show_result(Console(stream), "/runs/some", found.model_copy(update={"confirmed": confirmed}))
    assert f"{label} did better than {confirmed[0].label}" in stream.getvalue()
    short = tuple(_moved(e, 0.01, n=1 if e.label == label else 2) for e in confirmed)
    for other in (
        {"confirmed": confirmed, "objectives": {"fewshot": "min"}},  # lower is better
        {"confirmed": short},  # of another number of seeds
    ):
        stream = io.StringIO()
        show_result(Console(stream), "/runs/some", found.model_copy(update=other))
        assert f"{label} did better" not in stream.getvalue()
    importance = found.methods[0].importance
    assert importance is not None and sum(importance.values()) == pytest.approx(1)
    found.write(str(tmp_path / "sweep.json"))
    assert SweepResult.read(str(tmp_path / "sweep.json")) == found
    other = config("tune.retrain_seeds=3", "simclr.temperature=0.4")
    longer = result.confirmations(other, trials)
    assert {p.label for p in longer} - set(seeds) == {"published simclr"}
    known = {(p.label, p.seed, p.number) for p in points if "best" in p.label}
    assert known < {(p.label, p.seed, p.number) for p in longer}  # nothing is repeated
    with pytest.raises(TrainingError, match="no trial came to its end"):
        result.summary(c, Trials(str(tmp_path / "nothing")), 34)


def _moved(entry: Confirmed, by: float, *, n: int = 2) -> Confirmed:
    spread = entry.values["fewshot"]
    moved = spread.model_copy(update={"mean": (spread.mean or 0.0) + by, "n": n})
    return entry.model_copy(update={"values": {"fewshot": moved}})


def test_a_winner_that_a_longer_sweep_replaces_keeps_its_trainings(tmp_path: Path) -> None:
    c = config("tune.retrain_seeds=2")
    trials = sweep_of(tmp_path, c)
    before = result.confirmations(c, trials)
    for point in before:
        done = record(point.number, point.params, method=point.method, role="confirm",
                      label=point.label, seed=point.seed)  # fmt: skip
        done.name = f"confirm-{point.number:04d}"
        trials.save(done)
    trials.save(record(9, {"sdclr.prune_ratio": 0.8, "sdclr.temperature": 0.2}))  # at the top
    after = result.confirmations(c, trials)
    best = [p.number for p in after if p.label == "best sdclr"]
    assert not set(best) & {p.number for p in before}
    same = [p for p in after if p.label == "best simclr"]
    assert all(p in before for p in same) and len(same) == 2
    found = result.summary(c, trials, 34).confirmed
    counts = {entry.label: entry.values["fewshot"].n for entry in found}
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
    # An epoch takes a second here; one trial lacks 7 of 9 epochs, two are to come.
    epochs = [r.epochs for r in view._records() if r.status != "running"]
    assert view._left_s([*view._records()][:-1], 12) == pytest.approx(
        (7 + 2 * sum(epochs) / len(epochs)) / 2
    )
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
