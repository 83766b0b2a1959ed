"""Rows of kind "health": schema, resume, and what the console says of them."""

from __future__ import annotations

import io
import math
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.console import Console
from pipeline.errors import DataError
from pipeline.record.gauges import Monitor
from pipeline.record.metrics import Newest, newest_rows, read_metrics, read_rows, truncate_metrics
from pipeline.record.rows import AlarmPart, Cause, HealthRow, RestoreRow, StageRow
from pipeline.storage import LineLog
from pipeline.train import health_log
from pipeline.train.health_log import HealthLog, last_alarms
from pipeline.train.progress import ProgressView
from pipeline.train.step_log import MethodLog
from sdclr import StepReport
from sdclr.checkup import ADVISED_STEPS, MIN_STEPS_TO_LEARN
from sdclr.transfer import HostCopy
from tests.recipes import some_images, some_plan, some_trainer

CONFIG: Config = load_config(None, ["health.every_epochs=2"])


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_log, "NUM_IMAGES", 16)


def train(run: Path, *, epochs: int = 3) -> list[HealthRow]:
    """Train with a look at the features wherever one is due; the rows that were written."""
    images, plan = some_images(), some_plan()
    trainer = some_trainer(plan, epochs=epochs)
    log = HealthLog(CONFIG, "sdclr", trainer, images, run_uri=str(run))
    with LineLog(str(run / "metrics.jsonl")) as lines:
        lines.append(log.row(epoch=0).model_dump())
        for report in trainer.run(images.feed(plan, seed=0)):
            if log.is_due():
                lines.append(log.row(epoch=report.epoch).model_dump())
    return read_rows(str(run), HealthRow, method="sdclr")


def test_rows_come_before_training_every_few_epochs_and_at_the_end(tmp_path: Path) -> None:
    rows = train(tmp_path)
    assert [(row.epoch, row.step) for row in rows] == [(0, 0), (1, 10), (2, 15)]
    assert all(row.num_images == 16 and row.wall_s > 0 for row in rows)
    assert rows[0].measures != rows[2].measures


def names(row: HealthRow) -> set[str]:
    return {alarm.name for alarm in row.alarms}


def test_a_resumed_run_remembers_the_best_that_it_had(tmp_path: Path) -> None:
    best = WELL.model_copy(update={"step": 1, "measures": WELL.measures | {"rankme": 1e6}})
    with LineLog(str(tmp_path / "metrics.jsonl")) as lines:
        lines.append(best.model_dump())
    trainer = some_trainer(some_plan())
    resumed = HealthLog(CONFIG, "sdclr", trainer, some_images(), run_uri=str(tmp_path))
    assert "collapse" in names(resumed.row(epoch=1))
    other = HealthLog(CONFIG, "simclr", trainer, some_images(), run_uri=str(tmp_path))
    assert "collapse" not in names(other.row(epoch=1))


@pytest.mark.promise("R36")
def test_a_loss_at_chance_is_an_alarm_once_there_were_steps(tmp_path: Path) -> None:
    trainer = some_trainer(some_plan())
    log = HealthLog(CONFIG, "sdclr", trainer, some_images(), run_uri=str(tmp_path))
    batch = CONFIG.train.global_batch
    figures = HostCopy(torch.tensor([math.log(2 * batch - 1), 1.0]))
    report = StepReport(
        epoch=0, step=1, figures=figures, lr=0.1, temperature=0.2,
        num_images=batch, wait_s=0.0, kept_frac=None,
    )  # fmt: skip
    for _ in range(3):
        log.see(report)
    assert "stuck loss" not in names(log.row(epoch=0))  # no step yet
    with mock.patch.object(trainer, "step", MIN_STEPS_TO_LEARN):
        assert "stuck loss" in names(log.row(epoch=1))
        for _ in range(20):
            log.see(replace(report, figures=HostCopy(figures.read() / 2)))
        assert "stuck loss" not in names(log.row(epoch=1))


def test_a_start_from_nothing_drops_the_row_before_training(tmp_path: Path) -> None:
    train(tmp_path)
    assert truncate_metrics(str(tmp_path), "sdclr", 10) == 1
    assert truncate_metrics(str(tmp_path), "sdclr", -1) == 2


def test_the_schema_is_held(tmp_path: Path) -> None:
    with LineLog(str(tmp_path / "metrics.jsonl")) as lines:
        lines.append({**WELL.model_dump(), "alarms": "none"})
    with pytest.raises(DataError) as caught:
        read_metrics(str(tmp_path))
    assert caught.value.id == "E-DATA-084" and "alarms" in caught.value.what


def test_newest_rows_by_kind(tmp_path: Path) -> None:
    assert newest_rows(str(tmp_path)) == Newest()
    rows = [WELL, sick(10)]
    with LineLog(str(tmp_path / "metrics.jsonl")) as lines:
        for row in rows:
            lines.append(row.model_dump())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "health", "measures": {"a": 1}\n')
        file.write('{"kind": "health", "measures": {}')  # being written, and just behind a brace
    assert newest_rows(str(tmp_path)) == Newest(health=rows[-1])


def sick(step: int, name: str = "collapse") -> HealthRow:
    alarm = AlarmPart(name=name, level="alarm", text=f"bad at {step}", change="rest")
    return replace_alarms(WELL, step, (alarm,))


def replace_alarms(row: HealthRow, step: int, alarms: tuple[AlarmPart, ...]) -> HealthRow:
    return row.model_copy(update={"step": step, "alarms": alarms})


WELL = HealthRow(
    method="sdclr", seed=0, epoch=2, step=9, num_images=16, alarms=(), wall_s=0.1, time_s=1.0,
    measures={"view_retrieval": 0.25, "rankme": 9.0, "balance_few": 0.5, "disagreement": None},
)  # fmt: skip


def test_the_console_shows_each_alarm_once_and_the_last_measures(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(stream)
    view = ProgressView(CONFIG, str(tmp_path), console)
    for step in (20, 21):
        with LineLog(str(tmp_path / "metrics.jsonl")) as lines:
            lines.append(sick(step).model_dump())
        view.refresh()
    health_log.show_measures(console, [WELL])
    text = stream.getvalue()
    assert text.count("bad at") == 1
    assert "[health] alarm: sdclr, epoch 3: bad at 20; rest" in text
    assert "[health] sdclr: view retrieval 25.0 %, in small clusters 50.0 %, RankMe 9\n" in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("collapse", "train.lr_per_256=0.125"),
        ("stuck loss", "train.lr_per_256=0.125"),
        ("branches agree", "sdclr.prune_ratio=0.65"),
        ("branches unrelated", "sdclr.prune_ratio=0.15"),
        ("falling rank", None),
    ],
)
def test_the_last_alarms_name_keys_that_can_be_pasted(name: str, words: str | None) -> None:
    config = load_config(None, ["sdclr.prune_ratio=0.3", "train.lr_per_256=0.5"])
    (found,) = last_alarms(config, [sick(1), sick(2, name)])
    assert found.name == name and found.words == ((words,) if words else ())
    load_config(None, found.words)  # as the user would
    assert last_alarms(config, [sick(1), WELL]) == ()  # it passed


@pytest.mark.parametrize(
    ("level", "words"), [("alarm", "train.lr_per_256=0.125"), ("warning", "train.epochs=134")]
)
def test_a_run_of_a_few_steps_is_told_to_train_for_longer(level: Any, words: str) -> None:
    """Six epochs of three steps: 134 make 400. Half of that must count as enough to have learned.

    What follows the advice must not end at the first step that alarms.
    """
    alarm = AlarmPart(name="not learned", level=level, text="not found", change="more epochs")
    config = load_config(None, ["train.epochs=6", "train.lr_per_256=0.5"])
    (found,) = last_alarms(config, [replace_alarms(WELL, 18, (alarm,))])
    assert found.words == (words,)
    assert 2 * MIN_STEPS_TO_LEARN < ADVISED_STEPS <= 134 * 3


def restored(
    step: int, *refused: str, cause: Cause = "node", time_s: float | None = None, **more: int
) -> RestoreRow:
    time_s = time.time() if time_s is None else time_s
    return RestoreRow(
        method="sdclr", step=step, refused=refused, cause=cause, time_s=time_s, **more
    )


def test_a_resume_says_from_which_step_and_what_it_skipped(tmp_path: Path) -> None:
    config, stream = load_config(None, ["train.methods=[sdclr]"]), io.StringIO()
    earlier = MethodLog(str(tmp_path), config, "sdclr", num_steps=9, rank=0)
    with earlier, mock.patch("time.time", return_value=1.0):
        earlier.restore(restored(3, time_s=1.0), [])
    view = ProgressView(config, str(tmp_path), Console(stream))
    with MethodLog(str(tmp_path), config, "sdclr", num_steps=9, rank=0) as log:
        log.restore(restored(0, cause="start"), [])  # a start from nothing is no resume
        log.restore(restored(5, "step-00000006: torn", num_workers=3), [])
    view.show_restores()
    view.show_restores()
    assert stream.getvalue().splitlines() == [
        "[train] sdclr: skipped step-00000006: torn",
        "[train] sdclr: resumes from step 5 on 3 workers",
    ]


def test_a_resume_is_counted_and_a_start_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: Counter[str] = Counter()
    shown: dict[tuple[str, ...], float] = {}

    def add(_: Monitor, name: str, amount: float = 1, **tags: str) -> None:
        raised.update({" ".join([name, *tags.values()]): int(amount)})

    def see(_: Monitor, name: str, value: float, **tags: str) -> None:
        shown[name, *tags.values()] = value

    monkeypatch.setattr(Monitor, "add", add)
    monkeypatch.setattr(Monitor, "set", see)
    config = load_config(None, ["train.methods=[sdclr]"])
    began = StageRow(stage="train", event="start", wall_s=0.0, time_s=1.0)
    with MethodLog(str(tmp_path), config, "sdclr", num_steps=9, rank=0) as log:
        log.restore(restored(0, cause="start"), [began])
        assert not +raised and shown == {("sdclr_lost_s", "start"): 0}
        again = restored(5, "step-00000006: torn").model_copy(update={"lost_s": 20.0})
        log.restore(again, [began])
    assert +raised == {"sdclr_restarts node": 1, "sdclr_checkpoints_refused": 1}
    assert shown["sdclr_lost_s", "node"] == 20
