from __future__ import annotations

import json
from copy import deepcopy

from pipeline.record.evaluation import Evaluation
from pipeline.record.scores import curve_table, scores_table
from tests import records

CONTENT = records.evaluation(records.DIGITS, records.counts_of(10))
EVALUATION = Evaluation.model_validate_json(json.dumps(CONTENT))


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
    evaluation = deepcopy(CONTENT)
    linear, fewshot, _ = evaluation["models"][0]["scores"]
    linear.update(many=0.9, medium=0.8, few=0.75, std=0.0624, all=0.81234)
    fewshot.update(all=0.5, spread={**fewshot["spread"], "all": 0.0261})
    _, rows = scores_table(Evaluation.model_validate_json(json.dumps(evaluation)))
    assert rows[0][2:8] == ["90.0", "80.0", "75.0", "6.2", "81.2", "1"]
    assert rows[3][6:8] == ["50.0 ± 2.6", "5"]


def test_an_empty_group_is_a_dash() -> None:
    evaluation = deepcopy(CONTENT)
    evaluation["models"][0]["scores"][0].update(medium=None, std=None)
    _, rows = scores_table(Evaluation.model_validate_json(json.dumps(evaluation)))
    assert rows[0][3] == rows[0][5] == "–"


def test_the_curve_has_a_row_for_each_protocol_and_checkpoint() -> None:
    headers, rows = curve_table(EVALUATION)
    assert headers[:4] == ["Protocol", "Model", "Epoch", "Step"]
    assert [row[:4] for row in rows[:3]] == [
        ["cached-linear", "sdclr", epoch, step]
        for epoch, step in (("20", "400"), ("40", "800"), ("60", "1200"))
    ]
    assert len(rows) == 3 * len(CONTENT["curve"])


def test_models_without_scores_give_an_empty_table() -> None:
    assert scores_table(EVALUATION.model_copy(update={"models": ()}))[1] == []
