"""Several runs together: means by hand, pairs within and between runs, runs that do not belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.file import dump_config, load_config
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate.aggregate import aggregate as aggregated
from pipeline.evaluate.aggregate import write
from pipeline.record.aggregate import Aggregate
from pipeline.record.keeper import RunRecord
from pipeline.record.scores import aggregate_tables
from tests import records
from tests.refusals import raises

# Few of (sdclr, simclr) on three splits: the splits differ more than the methods.
FEW = ((0.50, 0.48), (0.70, 0.67), (0.90, 0.89))


def a_run(folder: Path, split: int, **levels: float) -> str:
    """A finished run on a split; `levels` are the Few accuracies of its models."""
    uri = folder / f"run-{split}-{'-'.join(levels)}"
    uri.mkdir(parents=True)
    evaluation = records.evaluation(records.DIGITS, records.counts_of(10))
    models = {model["name"]: model for model in evaluation["models"]}
    evaluation["models"] = [models[name] for name in levels]
    for model in evaluation["models"]:
        for score in model["scores"]:
            score["few"] = levels[model["name"]]
    (uri / "evaluation.json").write_text(json.dumps(evaluation))
    record = RunRecord.create(str(uri), name=uri.name, config_hash="c0ffee" * 8, seed=0, argv=["x"])
    record.set_data(uri=str(folder / "data"), manifest_hash=f"split{split}", name="digits")
    config = load_config(None, [f"data.split_seed={split}"])
    (uri / "config.yaml").write_text(dump_config(config))
    return str(uri)


def aggregate(uris: list[str]) -> dict[str, Any]:
    return aggregated(uris).content()


def entry(rows: list[dict[str, Any]], **wanted: str) -> dict[str, Any]:
    (found,) = [row for row in rows if all(row[k] == v for k, v in wanted.items())]
    return found


def check(averaged: dict[str, Any]) -> None:
    few = np.array(FEW)
    mean = entry(averaged["scores"], protocol="knn-k20", model="sdclr")
    assert mean["n"] == 3 and mean["few"] == pytest.approx(few[:, 0].mean())
    assert mean["spread"]["few"] == pytest.approx(few[:, 0].std(ddof=1))
    difference = entry(averaged["differences"], protocol="knn-k20", a="sdclr", b="simclr")
    d = few[:, 0] - few[:, 1]
    assert difference["n"] == 3 and difference["few"] == pytest.approx(d.mean())
    assert difference["spread"]["few"] == pytest.approx(d.std(ddof=1))
    assert difference["half_width"]["few"] == pytest.approx(4.303 * d.std(ddof=1) / 3**0.5)


def test_means_and_paired_differences_by_hand(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, i, sdclr=a, simclr=b, untrained=0.2) for i, (a, b) in enumerate(FEW)]
    averaged = aggregate(runs)
    check(averaged)
    assert averaged["notes"] == ()
    names = [(s["protocol"], s["model"]) for s in averaged["scores"]]
    protocols = ("cached-linear", "cached-fewshot", "knn-k20")
    assert names == [(p, m) for p in protocols for m in ("sdclr", "simclr", "untrained")]
    write(str(tmp_path / "out"), aggregated(runs))
    assert Aggregate.read(str(tmp_path / "out" / "aggregate.json")) == aggregated(runs)


def test_methods_of_different_runs_are_paired_by_split_and_seed(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, i, sdclr=a, untrained=0.2) for i, (a, _) in enumerate(FEW)]
    runs += [
        a_run(tmp_path, i, simclr=b, untrained=0.2) for i, (_, b) in reversed([*enumerate(FEW)])
    ]
    check(aggregate(runs))
    # Control: a method that lacks a split is compared on the others only.
    partial = aggregate([*runs[:3], runs[3]])
    assert entry(partial["differences"], protocol="knn-k20", a="sdclr", b="simclr")["n"] == 1


def test_tables_mark_differences_that_exclude_zero(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, i, sdclr=a, simclr=b) for i, (a, b) in enumerate(FEW)]
    means, differences = aggregate_tables(aggregated(runs))
    assert means[1][0][:2] == ["cached-linear", "sdclr"] and means[1][0][4] == "70.0 ± 20.0"
    assert differences[1][0][:2] == ["cached-linear", "sdclr - simclr"]
    assert differences[1][0][4] == "+2.0 ± 2.5"
    assert differences[1][0][2].endswith("± 0.0 *")  # Many is the same difference in all runs


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one, two = (a_run(tmp_path, i, sdclr=0.5) for i in range(2))
    with pytest.raises(ConfigError) as twice:
        aggregate([one, two, one])
    assert twice.value.id == "E-CONFIG-012" and one in twice.value.what
    again = a_run(tmp_path / "again", 0, sdclr=0.6)
    with pytest.raises(ConfigError) as same:
        aggregate([one, again])
    assert same.value.id == "E-CONFIG-560" and "sdclr" in same.value.what
    other = Path(a_run(tmp_path, 5, sdclr=0.5))
    content = json.loads((other / "evaluation.json").read_text())
    names = list(content["class_names"])
    content["class_names"][0] = "cat"
    (other / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as differ:
        aggregate([one, str(other)])
    assert differ.value.id == "E-DATA-088" and "cat" in differ.value.what
    content["class_names"][0], content["scored_on"] = names[0], "val"
    (other / "evaluation.json").write_text(json.dumps(content))
    with raises("E-DATA-028"):
        aggregate([one, str(other)])
    (other / "evaluation.json").unlink()
    with pytest.raises(DataError) as caught:
        aggregate([one, str(other)])
    assert caught.value.id == "E-DATA-027" and "evaluate --resume" in caught.value.todo


def test_protocols_that_only_some_runs_have_are_told(tmp_path: Path) -> None:
    one, two = (a_run(tmp_path, i, sdclr=0.5) for i in range(2))
    assert aggregate([one, two])["notes"] == ()
    file = Path(two) / "evaluation.json"
    content = json.loads(file.read_text())
    for model in content["models"]:
        model["scores"] = model["scores"][:1]
        model["scores"][0]["protocol"] = "paper-linear"
    file.write_text(json.dumps(content))
    (note,) = aggregate([one, two])["notes"]
    assert note.startswith("not all pairs of split and seed have cached-linear (1 of 2), ")
    assert note.endswith(", paper-linear (1 of 2)")


def test_other_keys_that_differ_are_told(tmp_path: Path) -> None:
    one, two = (a_run(tmp_path, i, sdclr=0.5) for i in range(2))
    changed = load_config(None, ["data.split_seed=1", "train.epochs=7", "run.seed=3"])
    (Path(two) / "config.yaml").write_text(dump_config(changed))
    assert aggregate([one, two])["notes"] == ("the runs differ in train.epochs: 200 -> 7",)
