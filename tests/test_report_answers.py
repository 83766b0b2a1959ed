"""The answers at the top of report.html, and what a reader sees below them."""

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.record.evaluation import Score
from pipeline.record.keeper import RunRecord
from pipeline.record.provenance import versions
from pipeline.record.rows import AlarmPart, HealthRow
from pipeline.record.scores import ABSENT
from pipeline.report.charts.svg import shorten
from pipeline.report.facts import facts_section
from pipeline.report.head import head
from pipeline.report.inputs import load
from pipeline.report.page import write_report
from pipeline.report.verdict import Answer, few_variance, learned, verdict
from tests import records
from tests.pages import (
    COLLAPSE,
    MANIFEST,
    Page,
    edit,
    page_of,
)


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return records.write_run(tmp_path)


# --- the answers at the top


def test_the_answers_come_first_with_their_numbers(run_uri: str) -> None:
    text = page_of(run_uri).text
    first, last = text.index("Did it learn?"), text.index("Accuracy in percent")
    for question in ("Is SDCLR better than SimCLR on Few?", "than the untrained network on Few?"):
        assert first < text.index(question) < last
    assert "% before training), RankMe from" in text and "95 % interval" in text
    assert "n = 60 images" in text  # three rare classes with 20 test images each


@pytest.mark.parametrize(
    ("sdclr", "simclr", "word"),
    [(0.9, 0.4, "Yes"), (0.4, 0.9, "No, worse"), (0.62, 0.6, "No difference shown")],
)
def test_a_difference_counts_only_beyond_its_interval(
    run_uri: str, sdclr: float, simclr: float, word: str
) -> None:
    def level(evaluation: dict[str, Any]) -> None:
        for model, few in zip(evaluation["models"], (sdclr, simclr, 0.1), strict=True):
            for score in model["scores"]:
                score["few"] = few
                score["per_class"] = [few] * 10

    edit(run_uri, "evaluation.json", level)
    found = load(run_uri)
    _, answer, _ = verdict(found).answers
    assert answer.word == word
    edit(run_uri, MANIFEST, lambda m: m["sets"]["test"].update(class_counts=None))
    _, answer, _ = verdict(load(run_uri)).answers
    assert answer.word == "Unclear"  # without the numbers of images there is no interval


def test_protocols_that_disagree_are_not_one_answer(run_uri: str) -> None:
    def split(evaluation: dict[str, Any]) -> None:
        for model, levels in zip(
            evaluation["models"], ((0.9, 0.2, 0.5), (0.2, 0.9, 0.5), (0.1,) * 3), strict=True
        ):
            for score, few in zip(model["scores"], levels, strict=True):
                score.update(few=few, per_class=[few] * 10)

    edit(run_uri, "evaluation.json", split)
    _, answer, _ = verdict(load(run_uri)).answers
    assert answer.word == "It depends on the protocol"
    assert [" by " in text for text in answer.texts[1:]] == [True] * 3
    assert [text.partition(" by ")[0] for text in answer.texts[1:]] == [
        "Better", "Worse", "No difference",
    ]  # fmt: skip


def test_more_test_images_narrow_the_interval() -> None:
    score = Score(
        protocol="x",
        n=1,
        many=None,
        medium=None,
        few=0.5,
        std=None,
        all=None,
        per_class=(0.5, 0.5),
        spread=None,
        note="",
    )
    wide, narrow = (few_variance(score, (0, 1), (n, n)) for n in (10, 1000))
    assert narrow == pytest.approx(0.25 / 1004 / 2) and wide > 50 * narrow
    certain = score.model_copy(update={"per_class": (1.0, 1.0)})
    assert few_variance(certain, (0, 1), (10, 10)) > 0


def test_a_class_without_test_images_makes_no_interval_narrower() -> None:
    def of(*per_class: float | None) -> Score:
        return Score(
            protocol="x", n=1, many=None, medium=None, few=0.5, std=None, all=None,
            per_class=per_class, spread=None, note="",
        )  # fmt: skip

    three = few_variance(of(0.0, 0.0, 2 / 3), (0, 1, 2), (3, 3, 3))
    assert few_variance(of(0.0, 0.0, 2 / 3, None), (0, 1, 2, 3), (3, 3, 3, 0)) == three
    # 2 of 9 images against 0 of 9 is no difference.
    other = few_variance(of(0.0, 0.0, 0.0), (0, 1, 2), (3, 3, 3))
    assert 1.96 * (three + other) ** 0.5 > 2 / 9


@pytest.mark.parametrize(
    ("before", "after", "alarms", "word"),
    [
        (0.01, 0.5, (), "Yes"),
        (0.2, 0.21, (), "Not shown"),
        (0.2, 0.2, (), "No"),
        (1.0, 1.0, (), "Not shown"),
        (0.2, 0.21, (COLLAPSE,), "No"),
        (0.2, 0.26, (), "Yes"),
        (0.5, 0.1, (), "No"),
        (0.01, 0.5, (COLLAPSE,), "With alarms"),
        (0.5, 0.1, (COLLAPSE,), "No"),
        (0.1, None, (), "No"),
    ],
)
def test_learning_is_a_rise_beyond_chance(
    before: float, after: float | None, alarms: tuple[AlarmPart, ...], word: str
) -> None:
    rows = [
        HealthRow(
            method="sdclr", seed=0, epoch=step, step=step, num_images=400, alarms=found,
            measures={"view_retrieval": value, "rankme": 9.0}, wall_s=0.1, time_s=1.0,
        )
        for step, value, found in ((0, before, ()), (9, after, alarms))
    ]  # fmt: skip
    assert learned({"sdclr": rows[-1]}, rows).word == word


def test_a_rise_within_chance_has_its_figures_and_margin_and_two_methods_one_word() -> None:
    def row(method: str, step: int, share: float) -> HealthRow:
        return HealthRow(
            method=method, seed=0, epoch=step, step=step, num_images=250, alarms=(),
            measures={"view_retrieval": share, "rankme": 9.0}, wall_s=0.1, time_s=1.0,
        )  # fmt: skip

    def answer(**ends: tuple[float, float]) -> Answer:
        rows = [row(m, step, pair[step]) for m, pair in ends.items() for step in (0, 1)]
        return learned({one.method: one for one in rows}, rows)

    slight = answer(sdclr=(0.08, 0.104))
    assert (slight.word, slight.tone) == ("Not shown", "open")
    claim = "8.0 to 10.4 %: a rise of less than 5.2 points is within chance for 250 images"
    assert claim in slight.texts[0]
    sure = answer(sdclr=(0.08, 0.14))
    assert (sure.word, sure.tone) == ("Yes", "good") and "within chance" not in sure.texts[0]
    for other, word, tone in (((0.08, 0.5), "Partly", "open"), ((0.08, 0.02), "No", "bad")):
        found = answer(sdclr=(0.08, 0.104), simclr=other)
        assert (found.word, found.tone) == (word, tone)


# --- what a reader sees


def test_only_an_axis_that_does_not_begin_at_0_is_said_not_to(run_uri: str) -> None:
    def classes(low: float) -> Page:
        def change(evaluation: Any) -> None:
            for model in evaluation["models"]:
                model["scores"][0]["per_class"][-1] = low
                for score in model["scores"][1:]:
                    score["per_class"] = [0.9] * len(score["per_class"])

        edit(run_uri, "evaluation.json", change)
        return page_of(run_uri)

    sentence = "The axis does not begin at 0."
    cut, whole = classes(0.9).text.count(sentence), classes(0.0).text.count(sentence)
    assert (cut, whole) == (3, 2)


def test_layers_differ_after_shortening(tmp_path: Path) -> None:
    layers = [f"backbone.layer1.{i}.conv1.weight" for i in range(4)]
    page = page_of(records.write_run(tmp_path, layers=layers))
    assert {f"layer1.{i}.conv1" for i in range(4)} <= set(page.texts)
    assert "backbone." not in page.text


def test_a_cut_name_keeps_its_end() -> None:
    names = [f"a long name of a class of animals, number {n}" for n in range(20)]
    cut = [shorten(name, 16) for name in names]
    assert len(set(cut)) == 20 and max(map(len, cut)) == 16 and cut[0].startswith("a long")
    assert [shorten("ab", n) for n in (1, 2)] == ["a…", "ab"]


@pytest.mark.parametrize(
    ("few", "says"),
    [
        ({}, "+0.158 ± 0.051: pruning forgets rare classes first"),
        ({"half": 0.2}, "± 0.200: pruning is not shown to forget rare classes first"),
        ({"mean": 0.1}, "-0.113 ± 0.051: pruning forgets frequent classes first"),
        ({"images": 1, "half": None}, "0.371, 1 image"),
    ],
)
def test_disagreement_by_group_has_its_images_and_what_it_shows(
    run_uri: str, few: dict[str, Any], says: str
) -> None:
    edit(run_uri, "forgotten.json", lambda f: f["group_mean"]["few"].update(few))
    text = page_of(run_uri).text
    assert says in text and "0.213 ± 0.010, 400 images" in text


def test_facts_that_are_not_known_are_left_out(run_uri: str) -> None:
    def forget(run: dict[str, Any]) -> None:
        run["versions"]["jinja2"] = None
        run["hardware"]["memory_bytes"] = None
        run["data"] = None

    edit(run_uri, "run.json", forget)
    facts = {name: dict(pairs) for name, pairs in facts_section(load(run_uri))}
    assert "jinja2" not in facts["Versions"] and "torch" in facts["Versions"]
    assert "Data" not in facts and "CPUs" in facts["Hardware"]
    assert not {ABSENT, ""} & {value for pairs in facts.values() for value in pairs.values()}
    assert versions()["sdclr"]  # a checkout knows its own


def test_the_rankme_of_an_alarm_says_what_it_is_of(run_uri: str) -> None:
    """Pages that rank have another one, of the vectors they rank by."""
    inputs = load(run_uri)
    assert not head(inputs, "", ()).alarms
    health = [row.model_copy(update={"alarms": (COLLAPSE,)}) for row in inputs.health]
    (_, text, _), *_ = head(replace(inputs, health=health), "", ()).alarms
    assert text == "collapsing (random crops of 391 images, in training)"


def test_epochs_count_trained_ones_everywhere(run_uri: str) -> None:
    page = page_of(run_uri)
    assert "60 epochs" in page.text and "Weights kept per layer, epoch 60" in page.text
    row = page.texts.index("1198 of 1200")
    assert page.texts[row + 1] == "60"


def test_only_what_resumed_the_training_is_listed_as_resumed(run_uri: str) -> None:
    stages = ("report", "mine", "evaluate", "export", "train")
    notes = [{"utc": s, "command": f"pipeline/run.py {s} --resume {run_uri}"} for s in stages]
    edit(run_uri, "run.json", lambda r: r.update(resumes=notes))
    page = page_of(run_uri)
    assert page.texts.count("Resumed") == 1 and "train --resume" in page.text
    assert "report --resume" not in page.text


def test_every_value_shows_under_the_pointer(run_uri: str) -> None:
    text = Path(write_report(run_uri)).read_text()
    for value in ("zero: 150", "epochs trained 0: SDCLR", "zero, SDCLR: ", "SDCLR minus SimCLR, "):
        assert re.search(rf"<title>[^<]*{value}", text), value


@pytest.mark.parametrize(
    ("stage", "command"), [("train", "--resume"), ("tune", "tune --resume"), ("evaluate", None)]
)
def test_an_interrupted_run_says_the_whole_command(
    stage: str, command: str | None, tmp_path: Path
) -> None:
    uri = str(tmp_path / "my run")
    record = RunRecord.create(uri, name="r", config_hash="ab", seed=0, argv=["x"])
    with suppress(KeyboardInterrupt), record.stage(stage):
        raise KeyboardInterrupt
    record.finish()
    error = head(load(uri), "", ()).error
    assert error is not None and error.id == "E-STOP-001"
    whole = f"run.py {command} '{uri}'"
    assert error.todo.endswith(whole) if command else error.todo == "resume with --resume"


def test_a_failed_run_says_what_its_error_does(tmp_path: Path) -> None:
    record = RunRecord.create(str(tmp_path), name="r", config_hash="ab", seed=0, argv=["x"])
    record.fail(DataError("E-DATA-001", "a", where="b", todo="start a new run"), stage="train")
    error = head(load(str(tmp_path)), "", ()).error
    assert error is not None and error.todo == "start a new run"
