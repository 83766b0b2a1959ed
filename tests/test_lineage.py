"""Runs from another run's weights: alarms and pages compare with the untrained network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.manifest import Manifest
from pipeline.embed.collapse import earlier_ranks
from pipeline.model.source import ModelSource
from pipeline.record.context import RunContext
from pipeline.record.keeper import RunRecord
from pipeline.record.lineage import (
    ancestors,
    earlier_checks,
    keep_ancestors,
    steps_before,
    weights_place,
)  # fmt: skip
from pipeline.record.metrics import read_rows
from pipeline.record.rows import HealthRow
from pipeline.report.inputs import load
from pipeline.report.verdict import verdict
from pipeline.storage import LineLog
from pipeline.train import health_log
from pipeline.train.health_log import HealthLog, last_alarms
from tests.recipes import some_images, some_plan, some_trainer
from tests.records import health_row
from tests.test_health_log import CONFIG
from tests.test_mine import data_set

HASH = "ab12" * 16
WELL, COLLAPSED = (0.301, 50.5), (0.166, 7.24)


def write_run(
    root: Path,
    name: str,
    *ends: tuple[float, float],
    parent: str | None = None,
    data: str = HASH,
    crop_px: int = 8,
    num_images: int = 391,
) -> str:
    """Write a run with a check of these measures (view retrieval, RankMe) every 60 steps."""
    run = root / name
    start = weights_place(str(root / parent)) if parent else None
    config = {"augment": {"crop_px": crop_px}, "train": {"init_from": start}}
    argv = ["pipeline/run.py"]
    record = RunRecord.create(str(run), name=name, config_hash="c0" * 32, seed=0, argv=argv)
    record.set_data(uri=str(root / "data"), manifest_hash=data, name="d")
    (run / "config.yaml").write_text(json.dumps(config))
    with LineLog(str(run / "metrics.jsonl")) as log:
        for number, (found, rank) in enumerate(ends):
            row = health_row("sdclr", number, 60 * number)
            measures = row["measures"] | {"view_retrieval": found, "rankme": rank}
            log.append(row | {"measures": measures, "num_images": num_images})
    return str(run)


def test_a_chain_begins_with_the_untrained_network(tmp_path: Path) -> None:
    write_run(tmp_path, "first", WELL, COLLAPSED)
    write_run(tmp_path, "second", COLLAPSED, COLLAPSED, parent="first")
    last = write_run(tmp_path, "third", COLLAPSED, parent="second")
    found = ancestors(last, "sdclr")
    assert [(run.name, run.is_first) for run in found] == [("first", True), ("second", False)]
    rows = earlier_checks(last, "sdclr")
    assert [row.measures["rankme"] for row in rows] == [50.5, 7.24, 7.24, 7.24]
    assert steps_before(rows) == 120 and steps_before([]) == 0
    assert earlier_checks(last, "simclr") == []
    assert ancestors(str(tmp_path / "first"), "sdclr") == []


@pytest.mark.parametrize("change", [{"data": "cd" * 32}, {"crop_px": 16}])
def test_checks_of_other_images_are_not_compared(tmp_path: Path, change: dict[str, Any]) -> None:
    write_run(tmp_path, "first", WELL, COLLAPSED)
    write_run(tmp_path, "other", COLLAPSED, COLLAPSED, parent="first", **change)
    last = write_run(tmp_path, "third", COLLAPSED, parent="other")
    assert [row.measures["rankme"] for row in earlier_checks(last, "sdclr")] == [50.5, 7.24]


@pytest.mark.parametrize("fault", ["gone", "torn", "itself"])
def test_what_cannot_be_read_ends_the_chain(tmp_path: Path, fault: str) -> None:
    first = Path(write_run(tmp_path, "first", WELL, parent="third" if fault == "itself" else None))
    last = write_run(tmp_path, "third", COLLAPSED, parent="gone" if fault == "gone" else "first")
    if fault == "torn":
        (first / "metrics.jsonl").write_text("{\n{}\n")
    expected = ["first"] if fault == "itself" else []
    assert [run.name for run in ancestors(last, "sdclr") if run.checks] == expected


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_removed_ancestor_is_known_from_what_the_run_kept(tmp_path: Path, is_kept: bool) -> None:
    write_run(tmp_path, "first", WELL, COLLAPSED)
    second = write_run(tmp_path, "second", COLLAPSED, parent="first")
    if is_kept:
        keep_ancestors(second, ["sdclr"])
    third = write_run(tmp_path, "third", COLLAPSED, parent="second")
    shutil.rmtree(tmp_path / "first")
    for uri in (second, third):
        first, *_ = ancestors(uri, "sdclr")
        assert first.name == "first" and first.is_first
        assert [row.measures["rankme"] for row in first.checks] == [50.5, 7.24] * is_kept
    keep_ancestors(str(tmp_path / "first"), ["sdclr"])  # no weights were given: nothing to keep
    assert not (tmp_path / "first").exists()
    other = write_run(tmp_path, "other", COLLAPSED, parent="second", crop_px=16)
    assert not [run for run in ancestors(other, "sdclr") if run.checks]


@pytest.mark.parametrize("is_extended", [True, False])
def test_a_run_from_a_collapsed_one_keeps_its_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_extended: bool
) -> None:
    """With the rank of an untrained network far above; control: the same run from the start."""
    monkeypatch.setattr(health_log, "NUM_IMAGES", 16)
    write_run(tmp_path, "first", (-1.0, 1e6), num_images=16)  # below any share that is found now
    parent = "first" if is_extended else None
    uri = write_run(tmp_path, "second", parent=parent, num_images=16)
    log = HealthLog(CONFIG, "sdclr", some_trainer(some_plan()), some_images(), run_uri=uri)
    row = log.row(epoch=0)
    # Masks are whole before the first step: that the branches agree is no news.
    assert [alarm.name for alarm in row.alarms] == (["collapse"] if is_extended else [])
    assert row.measures["disagreement"] == pytest.approx(0, abs=1e-6)
    found = last_alarms(CONFIG, [row])
    assert [alarm.level for alarm in found] == (["alarm"] if is_extended else [])


def test_ranks_for_mining_begin_with_the_untrained_network(tmp_path: Path) -> None:
    write_run(tmp_path, "first", WELL, COLLAPSED)
    uri = write_run(tmp_path, "second", COLLAPSED, parent="first")
    manifest = Manifest(**data_set(tmp_path / "d").__dict__ | {"hash": HASH})
    run = RunContext(CONFIG, uri, "d", manifest)
    assert earlier_ranks(run, ModelSource("sdclr", method="sdclr"), 391) == [50.5, 7.24, 7.24]


def test_the_page_compares_with_the_untrained_network_and_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, "first", WELL, COLLAPSED)
    write_run(tmp_path, "second", COLLAPSED, COLLAPSED, parent="first")
    uri = write_run(tmp_path, "third", COLLAPSED, (0.9 * WELL[0], 7.24), parent="second")
    (answer,) = verdict(load(uri)).answers
    claim = "Started from the weights of second; compared with the untrained network of first."
    assert answer.word == "No" and answer.texts[0] == claim
    assert "30.1 % before training" in answer.texts[1] and "from 50.5 to 7.24" in answer.texts[1]
    # Control: the rise since its own start is one, had the run begun there.
    alone = write_run(tmp_path, "alone", COLLAPSED, (0.9 * WELL[0], 7.24))
    (answer,) = verdict(load(alone)).answers
    assert answer.word == "Yes" and len(answer.texts) == 1
    assert len(read_rows(alone, HealthRow)) == 2
    lost = write_run(tmp_path, "lost", COLLAPSED, COLLAPSED, parent="removed")
    (answer,) = verdict(load(lost)).answers
    claim = "Started from the weights of removed; compared with these weights."
    assert answer.texts[0] == claim
