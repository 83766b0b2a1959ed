from __future__ import annotations

import csv
import io
from copy import deepcopy

from pipeline.record.scores import scores_csv, scores_table
from tests import records

EVALUATION = records.evaluation(records.DIGITS, records.counts_of(10))


def test_every_row_names_its_protocol_and_model() -> None:
    headers, rows = scores_table(EVALUATION)
    assert headers == ["Protocol", "Model", "Many", "Medium", "Few", "STD", "All", "n", "Seed"]
    assert [row[:2] for row in rows] == [
        [protocol, model]
        for protocol in ("cached-linear", "cached-fewshot", "knn-k20")
        for model in ("sdclr", "simclr", "untrained")
    ]
    assert all(len(row) == len(headers) and row[-1] == "7" for row in rows)


def test_numbers_are_percent_with_a_spread_only_for_several_draws() -> None:
    evaluation = deepcopy(EVALUATION)
    linear, fewshot, _ = evaluation["models"][0]["scores"]
    linear.update(many=0.9, medium=0.8, few=0.75, std=0.0624, all=0.81234)
    fewshot.update(all=0.5, spread={**fewshot["spread"], "all": 0.0261})
    _, rows = scores_table(evaluation)
    assert rows[0][2:8] == ["90.0", "80.0", "75.0", "6.2", "81.2", "1"]
    assert rows[3][6:8] == ["50.0 ± 2.6", "5"]


def test_an_empty_group_is_a_dash() -> None:
    evaluation = deepcopy(EVALUATION)
    evaluation["models"][0]["scores"][0].update(medium=None, std=float("nan"))
    _, rows = scores_table(evaluation)
    assert rows[0][3] == rows[0][5] == "–"
    assert "nan" not in scores_csv(evaluation)


def test_csv_has_full_precision() -> None:
    rows = list(csv.DictReader(io.StringIO(scores_csv(EVALUATION))))
    assert len(rows) == 9
    first, fewshot = EVALUATION["models"][0]["scores"][:2]
    assert float(rows[0]["all"]) == first["all"] and rows[0]["all_spread"] == ""
    assert float(rows[3]["few_spread"]) == fewshot["spread"]["few"]
    assert rows[0]["protocol"] == "cached-linear" and rows[0]["epochs"] == "60"
    assert rows[0]["note"] == first["note"]


def test_models_without_scores_give_an_empty_table() -> None:
    assert scores_table({"models": [], "seed": 0})[1] == []
