"""One trial in this process: what it measures, reports and resumes; and the page of a sweep."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.cluster.jobs import ThreadTasks
from pipeline.config import Config
from pipeline.config.file import config_hash, load_config
from pipeline.dataset.manifest import ImageInfo, Manifest, Rejects, SetInfo
from pipeline.evaluate.comparison import welch_half_width
from pipeline.ingest.sources.open import index_source
from pipeline.record.keeper import RunRecord
from pipeline.report.page import write_report
from pipeline.train.method_run import Job
from pipeline.tune import result
from pipeline.tune.images import DecodedSet, needed_sets
from pipeline.tune.objective import measure_of, objectives, with_rank_floor
from pipeline.tune.space import trial_config
from pipeline.tune.trial import Plan, TrialRun
from sdclr import SimCLR, Twin
from tests.pages import HOSTILE, Page, assert_inert
from tests.refusals import raises
from tests.trial_records import sweep_of

SMALL = (
    "data.num_val_per_class=8", "data.num_max=60", "train.epochs=3", "train.global_batch=64",
    "evaluate.shots_per_class=2", "evaluate.fewshot_draws=2",
    "evaluate.cv_folds=2",
)  # fmt: skip


def config(*overrides: str) -> Config:
    return load_config(None, [*SMALL, *overrides])


def decoded(c: Config) -> tuple[Manifest, dict[str, DecodedSet]]:
    """The digits as a sweep holds them; no shards."""
    index = index_source(c.data, ThreadTasks())
    assert index.pixels is not None
    sets, infos = {}, {}
    for name in ("pretrain", "probe", "val"):
        rows = index.sets[name]
        pixels = index.pixels[rows].transpose(0, 3, 1, 2)
        labels = index.labels_N[rows].astype(np.int64)
        sizes = np.full((len(rows), 2), 16)
        ids = np.array(index.ids_of(rows))
        sets[name] = DecodedSet(np.ascontiguousarray(pixels), sizes, labels, ids)
        sets[name].images_NCHW.flags.writeable = False  # as in the object store
        counts = index.class_counts(name)
        infos[name] = SetInfo(len(rows), tuple(counts or ()), ())
    manifest = Manifest(
        "digits", {}, ImageInfo("raw", 16, 16), index.class_names, infos, (),  # type: ignore[arg-type]
        Rejects(0, {}, ()), {}, "",
    )  # fmt: skip
    return manifest, sets


Rows = list[dict[str, Any]]


class Killed(Exception):
    pass


def trained(
    folder: Path, c: Config, *, stop_after: int | None = None, stop_before_row: bool = False
) -> Rows:
    """The rows that a trial sent, until it ended or was killed after some epochs."""
    manifest, sets = decoded(c)
    trial = trial_config(c, "sdclr", {"sdclr.prune_ratio": 0.6}, seed=0)
    sent: Rows = []
    saved = sorted(folder.glob("models/*/checkpoints/step-*"))
    steps = int(saved[-1].name.removeprefix("step-")) if saved else 0

    def send(row: dict[str, Any] | None, is_past: bool) -> None:
        assert row is not None
        assert is_past == (row["epoch"] <= steps // run.plan.num_steps)
        sent.append(row)
        if row["epoch"] == stop_after:
            raise Killed

    job = Job(trial.model_dump_json(), config_hash(trial), str(folder), "", None, "cpu", 1)
    run = TrialRun(job, trial, manifest, "sdclr", 0, torch.device("cpu"),
                   measure=measure_of(trial, manifest, sets), send=send)  # fmt: skip
    with contextlib.suppress(Killed):
        run.train(sets["pretrain"].image_set(), None)
    if stop_before_row:
        file = folder / "measures.jsonl"
        lines = file.read_text().splitlines()
        file.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])  # torn
    return sent


def values(rows: Rows) -> Rows:
    """Without clocks; the loss of an epoch that is measured after a restart is not known."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "train_loss")} for row in rows]


@pytest.mark.parametrize(("objective", "torn"), [("fewshot", False), ("view_retrieval", True)])
def test_a_killed_trial_reports_what_an_unbroken_one_does(
    tmp_path: Path, objective: str, torn: bool
) -> None:
    c = config(f"tune.objective={objective}")
    whole = trained(tmp_path / "whole", c)
    assert [row["epoch"] for row in whole] == [1, 2, 3]
    assert len({row[objective] for row in whole}) > 1  # it measures, and training changes it
    first = trained(tmp_path / "cut", c, stop_after=2, stop_before_row=torn)
    again = trained(tmp_path / "cut", c)
    assert values(first) == values(whole[:2])
    assert values(again) == values(whole)
    assert again[-1]["seconds"] >= first[-1]["seconds"] if not torn else True
    warmer = c.sdclr.model_copy(update={"temperature": 0.5})
    other = trained(tmp_path / "other", c.model_copy(update={"sdclr": warmer}), stop_after=1)
    assert values(other) != values(whole[:1])  # the comparison can fail


def test_measuring_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    for objective in ("fewshot", "view_retrieval"):
        c = config(f"tune.objective={objective}")
        manifest, sets = decoded(c)
        plan = Plan.of({"method": "sdclr", "number": 0}, c)
        job = Job(c.model_dump_json(), "", str(tmp_path), "", None, "cpu", 1)
        measure = measure_of(c, manifest, sets)
        run = TrialRun(job, plan.config, manifest, "sdclr", 0, torch.device("cpu"),
                       measure=measure, send=lambda row, is_past: None)  # fmt: skip
        model = run.trainer.model
        assert isinstance(model, Twin | SimCLR)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        first, second = measure(model), measure(model)
        assert first == second and set(objectives(c)) <= set(first) and 0 <= first["balance"] <= 0.5
        assert model.training
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_the_test_set_is_never_asked_for() -> None:
    manifest, _ = decoded(config())
    assert needed_sets(config(), manifest) == ("pretrain", "probe", "val")
    assert needed_sets(config("tune.objective=view_retrieval"), manifest) == ("pretrain",)
    without_val = Manifest(**{**manifest.__dict__, "sets": {"pretrain": manifest.sets["pretrain"]}})
    with raises("E-CONFIG-037"):
        needed_sets(config(), without_val)
    unlabelled = Manifest(**{**manifest.__dict__, "class_names": None})
    with raises("E-CONFIG-036"):
        needed_sets(config(), unlabelled)


def test_the_rank_floor() -> None:
    assert with_rank_floor(0.8, 20.0, 8.0) == 0.8
    assert with_rank_floor(0.8, 4.0, 8.0) == pytest.approx(0.4)
    assert with_rank_floor(0.8, 8.0, 8.0) == 0.8  # continuous at the floor
    assert math.isnan(with_rank_floor(math.nan, 4.0, 8.0))


def test_a_plan_is_complete() -> None:
    c = config()
    search = Plan.of({"method": "sdclr", "number": 7, "sdclr.temperature": 0.3}, c)
    assert (search.name, search.role, search.seed) == ("sdclr-0007", "search", 0)
    assert search.config.sdclr.temperature == 0.3 and search.params == {"sdclr.temperature": 0.3}
    point = {"method": "simclr", "number": 1001, "seed": 2, "label": "best simclr"}
    confirm = Plan.of({"point": point}, c)
    assert (confirm.name, confirm.role, confirm.seed) == ("confirm-1001", "confirm", 2)
    assert confirm.config.run.seed == 2


# --- the page


def page_of(folder: Path, *overrides: str) -> Page:
    c = load_config(None, ["train.epochs=9", *overrides])
    trials = sweep_of(folder, c)
    RunRecord.create(str(folder), name="demo-sweep", config_hash="c0ffee", seed=0, argv=["x"])
    result.summary(c, trials, 34).write(str(folder / "sweep.json"))
    return Page(Path(write_report(str(folder))).read_text())


def test_the_page_of_a_sweep(tmp_path: Path) -> None:
    page = page_of(tmp_path / "one")
    assert_inert(page)
    content = json.loads((tmp_path / "one" / "sweep.json").read_text())
    assert content["best"] in page.texts and "best.yaml" in page.text
    assert "loss nan" in page.text and "Pareto" not in page.text
    rows = [trial["name"] for trial in content["trials"]]
    assert rows and all(name in page.texts for name in rows)
    assert "best.yaml" in [a["href"] for a in page.all("a")]
    assert (tmp_path / "one" / "report.html").read_bytes() == Path(
        write_report(str(tmp_path / "one"))
    ).read_bytes()


@pytest.mark.parametrize(
    ("means", "std", "n", "word"),
    [
        ((0.9, 0.5), 0.01, 4, "Yes"),
        ((0.9, 0.5), 0.9, 4, "No difference shown"),
        ((0.9, 0.88), 0.007, 2, "No difference shown"),  # 2.9 standard errors, of two seeds
        ((0.9, 0.88), 0.007, 4, "Yes"),
        ((0.9, 0.5, 0.89), 0.01, 4, "Better than some of them"),
        ((0.9, 0.5), None, 1, "Not known"),  # one seed
        ((0.9,), 0.01, 4, "It is the same"),
    ],
)
def test_a_sweep_answers_by_fresh_seeds(
    tmp_path: Path, means: tuple[float, ...], std: float | None, n: int, word: str
) -> None:
    page_of(tmp_path)
    file = tmp_path / "sweep.json"
    content = json.loads(file.read_text())
    entry = content["confirmed"][0]
    spread = {"std": std, "n": n, "by_seed": []}
    labels = ("best sdclr", "configured sdclr", "published sdclr")
    content["confirmed"] = [
        entry | {"label": label, "values": {"fewshot": spread | {"mean": mean}}}
        for label, mean in zip(labels, means, strict=False)
    ]
    file.write_text(json.dumps(content))
    texts = Page(Path(write_report(str(tmp_path))).read_text()).texts
    asked = texts.index("Is the best setting better than the configured one?")
    assert texts[asked + 1] == word and asked < texts.index("Result")


@pytest.mark.parametrize(
    ("label", "std", "n", "word"),
    [
        ("configured sdclr", None, 1, "Not known"),
        ("configured sdclr", 0.05, 4, "No difference shown"),
        ("configured sdclr", 0.01, 4, "No, another did better"),
        ("published sdclr", None, 1, "It is the same"),
        ("published sdclr", 0.05, 4, "It is the same"),
        ("published sdclr", 0.01, 4, "No, another did better"),
    ],
)
def test_a_setting_beside_the_best_may_be_as_good_or_better(
    label: str, tmp_path: Path, std: float | None, n: int, word: str
) -> None:
    page_of(tmp_path)
    file = tmp_path / "sweep.json"
    content = json.loads(file.read_text())
    spread = {"std": std, "n": n, "by_seed": []}
    content["confirmed"] = [
        content["confirmed"][0] | {"label": name, "values": {"fewshot": spread | {"mean": mean}}}
        for name, mean in (("best sdclr", 0.1333), (label, 0.1667))
    ]
    file.write_text(json.dumps(content))
    texts = Page(Path(write_report(str(tmp_path))).read_text()).texts
    assert texts[texts.index("Is the best setting better than the configured one?") + 1] == word
    more = f"{label} reached 0.1667 (n = 1), best sdclr 0.1333 (n = 1)"
    told = more if n == 1 else f"± {welch_half_width(std or 0, n, std or 0, n):.4f} worse than"
    assert any(told in text for text in texts)


def test_two_objectives_have_a_front(tmp_path: Path) -> None:
    page = page_of(tmp_path / "two", "tune.balance=true")
    content = json.loads((tmp_path / "two" / "sweep.json").read_text())
    assert content["pareto"] and "Pareto front" in page.text
    assert ", ".join(content["pareto"]) in page.text


def test_hostile_text_in_a_sweep_is_inert(tmp_path: Path) -> None:
    page_of(tmp_path / "one")
    file = tmp_path / "one" / "sweep.json"
    content = json.loads(file.read_text())
    content["trials"][0].update(name=HOSTILE[0], error=HOSTILE[1])
    content["confirmed"][0]["label"] = HOSTILE[4]
    file.write_text(json.dumps(content))
    assert_inert(Page(Path(write_report(str(tmp_path / "one"))).read_text()))
