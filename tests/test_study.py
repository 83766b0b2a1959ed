"""A study: its file, the runs that it makes, what they say together, and that it resumes."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Hashable
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.command_line import parse
from pipeline.cli.study import reproduce
from pipeline.config.study import load_study, shipped_studies
from pipeline.console import Console
from pipeline.evaluate.comparison import gaps_closed
from pipeline.evaluate.study import rare_found, study_scores
from pipeline.ingest.plan import dry_run
from pipeline.record.aggregate import MeanDifference, MeanScore
from pipeline.record.study import GapClosed, RareFound, StudyRecord, StudyRun
from pipeline.record.study_text import markdown, sentences
from pipeline.report.study_page import render
from sdclr.groups import Groups, GroupScores, group_scores
from tests import records
from tests.conftest import REPO
from tests.refusals import raises
from tests.sources import image_bytes

SEEDS = (3, 4)
ARMS = {"long": ["sdclr", "simclr", "untrained"], "even": ["simclr", "untrained"]}


def study_file(folder: Path, text: str) -> str:
    file = folder / "study_small.yaml"
    file.write_text(text)
    return str(file)


def a_run(folder: Path, arm: str, seed: int) -> StudyRun:
    """An evaluated run; the long-tailed split of each seed has other rare classes."""
    uri = folder / f"{arm}-{seed}"
    uri.mkdir(parents=True)
    content = records.evaluation(records.DIGITS, records.counts_of(10))
    order = np.random.default_rng(seed).permutation(10).tolist()
    content["groups"] = {"many": order[:4], "medium": order[4:7], "few": order[7:]}
    if arm == "even":  # equal counts: the groups of such a set mean nothing
        content["groups"] = {"many": [0, 1, 2, 3], "medium": [4, 5, 6], "few": [7, 8, 9]}
    models = {model["name"]: model for model in content["models"]}
    content["models"] = [models[name] for name in ARMS[arm]]
    content["seed"] = seed
    (uri / "evaluation.json").write_text(json.dumps(content))
    mining = records.mining(records.DIGITS, records.counts_of(10))
    (uri / "mining.json").write_text(json.dumps(mining))
    return StudyRun(arm=arm, seed=seed, uri=str(uri))


@pytest.fixture
def runs(tmp_path: Path) -> list[StudyRun]:
    return [a_run(tmp_path, arm, seed) for seed in SEEDS for arm in ARMS]


PUBLISHED = ("cifar10-lt", "cifar100-lt", "imagenet100-lt", "imagenet-lt", "places-lt")


def test_the_shipped_studies_have_runs_of_valid_configurations() -> None:
    assert {"demo", "ablation", *PUBLISHED} == set(shipped_studies())
    for name in shipped_studies():
        study = load_study(name)
        trainings = study.trainings(tuple(f"{place}=/some/{place}" for place in study.places))
        assert len(trainings) == len(study.seeds) * len(study.arms)
        assert [t.seed for t in trainings[: len(study.arms)]] == [study.seeds[0]] * len(study.arms)
        assert all(t.config.run.seed == t.seed for t in trainings)
        drawn = name in ("demo", "ablation") or name.startswith("cifar")
        assert all(t.config.data.split_seed == (t.seed if drawn else 0) for t in trainings)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_study_asks_for_its_places_before_anything_else(name: str) -> None:
    for words, missing in (([], "data=FOLDER lists=FOLDER"), (["data=x"], "lists=FOLDER"),
                           (["data=x", "lists="], "lists=FOLDER")):  # fmt: skip
        with raises("E-CONFIG-860", name, missing):
            reproduce(parse(["reproduce", name, *words, "--dry-run"]), Console())


def test_places_and_seeds_are_put_into_keys_whatever_characters_they_hold() -> None:
    lists = '/l "x", {a: 1} é'
    first, twin, second, *_ = load_study("cifar10-lt").trainings(("data=/d", f"lists={lists}"))
    folder = f"{lists}/cifar10_imbSub_with_subsets"
    assert first.config.data.path == "/d"
    assert first.config.data.sets.pretrain == f"{folder}/split1_D_i.npy"
    assert twin.config.data.sets.pretrain == f"{folder}/split1_D_b.npy"
    assert second.config.data.sets.fewshot == (f"{folder}/split2_S_b.npy",)
    assert twin.config.train.methods == ("simclr",) and "bcl-d" in first.config.train.methods
    with raises("E-CONFIG-722", "data.path"):
        reproduce(parse(["reproduce", "cifar10-lt", "data=x", "lists=y", "data.path=z"]), Console())


def test_the_time_of_what_is_left_is_shown_before_it_starts(tmp_path: Path) -> None:
    stream = io.StringIO()
    words = [f"run.root={tmp_path}/runs", f"data.root={tmp_path}/data", "--dry-run"]
    reproduce(parse(["reproduce", "demo", *words]), Console(stream))
    (line,) = [text for text in stream.getvalue().splitlines() if "runs to train" in text]
    # Three seeds of two arms; the images of an arm are those of its first seed.
    arms = load_study("demo").trainings()[:2]
    images = [dry_run(t.config).sets["pretrain"].rows for t in arms]
    steps = [3 * 50 * (rows // 128) * len(t.config.train.methods)
             for rows, t in zip(images, arms, strict=True)]  # fmt: skip
    assert "6 runs to train" in line and f"{sum(steps)} steps" in line
    assert "of training on this machine" in line


def test_the_balanced_twin_of_the_demo_has_the_size_of_the_long_tailed_set() -> None:
    sizes = {}
    for training in load_study("demo").trainings()[:2]:
        counts = dry_run(training.config).sets["pretrain"].class_counts
        assert counts is not None
        sizes[training.arm.name] = sum(counts)
        assert (len(set(counts)) == 1) == (training.arm.name == "balanced twin")
    long_tailed, twin = sizes.values()
    assert abs(long_tailed - twin) < 10


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("config: demo.yaml\nseeds: [1]\narms: {a: []}\nmin: 1\n", "min"),
        ("config: demo.yaml\nseeds: [1, 1]\narms: {a: []}\n", "seeds"),
        ("config: demo.yaml\nseeds: []\narms: {a: []}\n", "seeds"),
        ("config: demo.yaml\nseeds: [x]\narms: {a: []}\n", "seeds.0"),
        ("config: demo.yaml\nseeds: [1]\narms: {a: [epochs]}\n", "arms.a.0"),
        ("config: demo.yaml\nseeds: [1]\narms: {a: [], b: []}\ntwin: a\n", "twin"),
        ("config: demo.yaml\nseeds: [1]\narms: {a: []}\nplaces: {data.path: x}\n", "places"),
        ("seeds: [1]\narms: {a: []}\n", "config"),
        ("- 1\n", "study_small.yaml"),
        ("a: [\n", "line"),
    ],
)
def test_a_wrong_study_is_refused_with_the_place(tmp_path: Path, text: str, fact: str) -> None:
    with raises("E-CONFIG-721", fact):
        load_study(study_file(tmp_path, text))


def test_an_unknown_study_and_a_wrong_key_are_refused(tmp_path: Path) -> None:
    with raises("E-CONFIG-720", "demo"):
        load_study("dmeo")
    with raises("E-CONFIG-010"):
        load_study(str(tmp_path / "none.yaml"))
    file = study_file(
        tmp_path, "config: tune_configs/demo.yaml\nseeds: [1]\narms: {a: [train.epoch=3]}\n"
    )
    with raises("E-CONFIG-011", "train.epochs"):
        load_study(file).trainings()


@pytest.mark.parametrize(
    ("words", "id"),
    [
        (["reproduce"], "E-CONFIG-723"),
        (["reproduce", "demo", "demo"], "E-CONFIG-723"),
        (["reproduce", "demo", "--resume", "x"], "E-CONFIG-723"),
        (["reproduce", "demo", "--config", "x"], "E-CONFIG-723"),
        (["reproduce", "demo", "--checkpoint", "x"], "E-CONFIG-222"),
        (["reproduce", "demo", "run.seed=1", "--dry-run"], "E-CONFIG-722"),
        (["reproduce", "demo", "data.num_max=1", "--dry-run"], "E-CONFIG-722"),
    ],
)
def test_words_that_a_study_cannot_take(words: list[str], id: str) -> None:
    with raises(id):
        reproduce(parse(words), Console())


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_study_of_images_without_labels_is_refused_before_it_trains(
    tmp_path: Path, more: list[str]
) -> None:
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(image_bytes(i, (32, 32)))
    file = study_file(
        tmp_path,
        f"config: {REPO}/tune_configs/photos_small.yaml\nseeds: [1]\n"
        f"arms: {{a: [data.path={tmp_path}, data.labelled=false]}}\n",
    )
    words = [f"run.root={tmp_path}/runs", f"data.root={tmp_path}/data", "train.global_batch=8"]
    with raises("E-CONFIG-724"):
        reproduce(parse(["reproduce", file, *words, *more]), Console())
    assert not (tmp_path / "runs").exists()


def test_all_arms_are_scored_by_the_groups_of_the_first(runs: list[StudyRun]) -> None:
    found = study_scores(runs)
    names = {(s.protocol, s.model): s for s in found.scores}
    assert ("knn-k20", "untrained") in names and ("knn-k20", "untrained, even") not in names
    row = names["knn-k20", "simclr, even"]
    expected = []
    for run in (run for run in runs if run.arm == "even"):
        content = json.loads((Path(run.uri) / "evaluation.json").read_text())
        (score,) = [
            s for m in content["models"] if m["name"] == "simclr"
            for s in m["scores"] if s["protocol"] == "knn-k20"
        ]  # fmt: skip
        order = np.random.default_rng(run.seed).permutation(10).tolist()
        groups = Groups(tuple(order[:4]), tuple(order[4:7]), tuple(order[7:]))
        expected.append(group_scores(score["per_class"], groups).few)
        # Control: by its own groups it would have another score.
        own = group_scores(score["per_class"], Groups((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))).few
        assert own != pytest.approx(expected[-1])
    assert row.n == 2 and row.few == pytest.approx(np.mean(expected))
    pairs = {(d.a, d.b) for d in found.differences}
    assert ("simclr", "simclr, even") in pairs and ("sdclr", "untrained") in pairs
    assert all(d.n == 2 for d in found.differences)


def test_the_spread_of_groups_over_draws_is_not_made_up(runs: list[StudyRun]) -> None:
    found = study_scores(runs)
    for score in found.scores:
        drawn = score.protocol == "cached-fewshot" and score.model == "simclr, even"
        assert (score.std is None) == drawn, score


def some_scores(stds: list[float]) -> dict[Hashable, GroupScores]:
    return {seed: GroupScores(0.9, 0.8, 0.7, std, 0.8) for seed, std in enumerate(stds)}


def test_the_gap_that_a_method_closes_has_its_closed_form() -> None:
    table = {
        ("knn", "sdclr"): some_scores([0.06, 0.08, 0.07]),
        ("knn", "simclr"): some_scores([0.10, 0.11, 0.12]),
        ("knn", "simclr, even"): some_scores([0.04, 0.05, 0.06]),
    }
    (found,) = gaps_closed(table, base="simclr", twin="simclr, even")
    assert (found.model, found.base, found.n) == ("sdclr", "simclr", 3)
    assert found.gap == pytest.approx(0.06) and found.gap_half == pytest.approx(0, abs=1e-9)
    assert found.closed == pytest.approx((0.11 - 0.07) / 0.06)
    # Without a gap that the seeds can show there is nothing to close, nor with a single seed.
    table["knn", "simclr, even"] = some_scores([0.10, 0.13, 0.09])
    (none,) = gaps_closed(table, base="simclr", twin="simclr, even")
    assert none.closed is None and none.gap_half is not None and none.gap_half > abs(none.gap)
    one = {name: some_scores([std]) for name, std in zip(table, (0.06, 0.1, 0.04), strict=True)}
    assert [g.closed for g in gaps_closed(one, base="simclr", twin="simclr, even")] == [None]
    # A protocol whose STD was not measured for the twin has no gap.
    table["knn", "simclr, even"] = some_scores([math.nan] * 3)
    assert gaps_closed(table, base="simclr", twin="simclr, even") == ()


def test_the_gaps_of_a_study_are_those_of_its_twin(runs: list[StudyRun]) -> None:
    assert study_scores(runs).gaps == ()
    found = study_scores(runs, "even").gaps
    assert {(g.model, g.base) for g in found} == {("sdclr", "simclr")}
    # Several draws leave no STD of the twin.
    assert "knn-k20" in {g.protocol for g in found} and "cached-fewshot" not in {
        g.protocol for g in found
    }


def test_rare_images_are_averaged_over_the_rankings(runs: list[StudyRun]) -> None:
    found = rare_found([run for run in runs if run.arm == "long"])
    assert found and all(row.n == 2 for row in found)
    content = json.loads((Path(runs[0].uri) / "mining.json").read_text())
    by_name = {(row.model, row.score): row for row in found}
    assert {row.score for row in found} == {content["score"]}  # however well others do
    for score in content["findings"]["scores"]:
        if score["score"] != content["score"]:
            continue
        row = by_name[score["model"], score["score"]]
        assert row.auroc == pytest.approx(score["auroc"])
        assert row.auroc_half == pytest.approx(0)  # both records are equal
        assert row.precision == pytest.approx(score["precision"][str(row.num_images)])
    assert rare_found([]) == ()


def a_record(few: float, half: float | None) -> StudyRecord:
    values = {"many": 0.9, "medium": 0.8, "std": 0.1, "all": 0.85}
    width = None if half is None else dict.fromkeys([*values, "few"], half)
    score = MeanScore(protocol="knn-k20", model="sdclr", n=3, few=0.7, spread=None, **values)
    differences = [
        MeanDifference(
            protocol="knn-k20", a=a, b=b, n=3, few=few, spread=None, half_width=width,
            **dict.fromkeys(values, few),
        )
        for a, b in (("sdclr", "simclr"), ("sdclr", "untrained"))
    ]  # fmt: skip
    rare = [
        RareFound(
            model=model, score="knn_distance", n=3, auroc=area, auroc_half=0.02, num_images=12,
            precision=share, precision_half=0.1, base_rate=0.03,
        )
        for model, area, share in (("trained", 0.95, 0.33), ("untrained", 0.8, 0.1))
    ]  # fmt: skip
    return StudyRecord(
        name="x", title="a title", command="run.py reproduce x", scored_on="test", wall_s=60.0,
        runs=(StudyRun(arm="a", seed=1, uri="runs/x"),), scores=(score,),
        differences=tuple(differences), rare=tuple(rare),
        gaps=tuple(
            GapClosed(protocol=p, model="sdclr", base="simclr", n=3, gap=0.06, gap_half=0.02,
                      closed=c)
            for p, c in (("knn-k20", 0.42), ("cached-linear", None))
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("few", "half", "is_difference"), [(0.05, 0.01, True), (0.05, 0.06, False), (0.05, None, False)]
)
def test_the_verdict_follows_the_interval(
    few: float, half: float | None, is_difference: bool
) -> None:
    (verdict,) = [s for s in sentences(a_record(few, half)) if "sdclr minus simclr" in s]
    assert ("no difference" not in verdict) == is_difference and "+5.0" in verdict


def test_the_text_has_every_number_once_said(tmp_path: Path) -> None:
    text = markdown(a_record(0.05, 0.01))
    for fact in (
        "a title",
        "70.0",
        "+5.0 ± 1.0 *",
        "33 ± 10 %",
        "3 %",
        "0.950 ± 0.020",
        "run.py",
        "+6.0 ± 2.0 *",
        "42 %",
        "no gap to close",
    ):
        assert fact in text, fact


def test_the_page_says_the_same_and_links_to_the_runs(tmp_path: Path) -> None:
    record = a_record(0.05, 0.01).model_copy(
        update={
            "title": "<b>birds</b>",
            "runs": tuple(
                StudyRun(arm=arm, seed=seed, uri=f"{tmp_path}/runs/{arm}-{seed}")
                for seed in (1, 2)
                for arm in ("a", "b")
            ),
        }
    )
    html = render(record, f"{tmp_path}/runs/study-x")
    for fact in ("70.0", "+5.0 ± 1.0 *", "42 %", "no gap to close", record.command,
                 'href="../b-2/report.html">seed 2, b<', "&lt;b&gt;birds"):  # fmt: skip
        assert fact in html, fact
    assert "<b>birds" not in html and "<script" not in html
    for sentence in sentences(record):
        assert sentence in html
    assert html.count("href=") == 4


@pytest.mark.slow
def test_a_study_ends_in_its_table_and_resumes_without_training_again(
    ray_cluster: None, tmp_path: Path
) -> None:
    import ray

    file = study_file(
        tmp_path,
        f"config: {REPO}/tune_configs/demo.yaml\nseeds: [5, 6]\nmine: true\narms:\n  long: []\n"
        '  even: [data.imbalance_ratio=1, data.num_max=37, "train.methods=[simclr]"]\n',
    )
    command = [
        sys.executable, str(REPO / "pipeline" / "run.py"), "reproduce", file, "train.epochs=2",
        "train.warmup_epochs=0", "evaluate.protocols=[knn]",
    ]  # fmt: skip
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}

    def run() -> str:
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    first = run()
    (record_file,) = tmp_path.glob("runs/study-small-*/study.json")
    record = StudyRecord.read(str(record_file))
    assert [(r.arm, r.seed) for r in record.runs] == [(a, s) for s in (5, 6) for a in ARMS]
    assert {s.model for s in record.scores} == {"sdclr", "simclr", "untrained", "simclr, even"}
    assert record.rare and "no difference" in first and "of training on this machine" in first
    assert (record_file.parent / "study.html").exists()
    trained = {r.uri: (Path(r.uri) / "metrics.jsonl").stat().st_mtime_ns for r in record.runs}
    (Path(record.runs[3].uri) / "evaluation.json").unlink()  # as if it had been interrupted
    second = run()
    assert second.count("complete, kept") == 3
    kept = {r.uri: (Path(r.uri) / "metrics.jsonl").stat().st_mtime_ns for r in record.runs}
    changed = [uri for uri in trained if kept[uri] != trained[uri]]
    assert changed in ([], [record.runs[3].uri])
    assert StudyRecord.read(str(record_file)).scores == record.scores
