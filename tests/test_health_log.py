"""Rows of kind "health": schema, resume, and what the console says of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.console import Console
from pipeline.record.metrics import newest_rows, read_metrics, truncate_metrics
from pipeline.storage import LineLog
from pipeline.train import health_log
from pipeline.train.driver import _ProgressView
from pipeline.train.health_log import HealthLog
from tests.recipes import some_images, some_plan, some_trainer
from tests.refusals import raises

CONFIG: Config = load_config(None, ["health.every_epochs=2"])


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_log, "NUM_IMAGES", 16)


def train(run: Path, *, epochs: int = 3) -> list[dict[str, Any]]:
    """Train with a look at the features wherever one is due; the rows that were written."""
    images, plan = some_images(), some_plan()
    trainer = some_trainer(plan, epochs=epochs)
    log = HealthLog(CONFIG, "sdclr", trainer, images, run_uri=str(run))
    with LineLog(str(run / "metrics.jsonl")) as lines:
        lines.append(log.row(epoch=0))
        for report in trainer.run(images.feed(plan, seed=0)):
            if log.is_due():
                lines.append(log.row(epoch=report.epoch))
    return read_metrics(str(run), kind="health", method="sdclr")


def test_rows_come_before_training_every_few_epochs_and_at_the_end(tmp_path: Path) -> None:
    rows = train(tmp_path)
    assert [(row["epoch"], row["step"]) for row in rows] == [(0, 0), (1, 10), (2, 15)]
    assert all(row["num_images"] == 16 and row["wall_s"] > 0 for row in rows)
    assert rows[0]["measures"] != rows[2]["measures"]


def test_a_resumed_run_remembers_the_best_that_it_had(tmp_path: Path) -> None:
    (row, *_) = train(tmp_path, epochs=1)
    best = row | {"step": 1, "measures": row["measures"] | {"rankme": 1e6}}
    with LineLog(str(tmp_path / "metrics.jsonl")) as lines:
        lines.append(best)
    trainer = some_trainer(some_plan())
    resumed = HealthLog(CONFIG, "sdclr", trainer, some_images(), run_uri=str(tmp_path))
    assert "features are collapsing" in " ".join(resumed.row(epoch=1)["alarms"])
    other = HealthLog(CONFIG, "simclr", trainer, some_images(), run_uri=str(tmp_path))
    assert "features are collapsing" not in " ".join(other.row(epoch=1)["alarms"])


def test_a_start_from_nothing_drops_the_row_before_training(tmp_path: Path) -> None:
    train(tmp_path)
    assert truncate_metrics(str(tmp_path), "sdclr", 10) == 1
    assert truncate_metrics(str(tmp_path), "sdclr", -1) == 2


def test_the_schema_is_held(tmp_path: Path) -> None:
    rows = train(tmp_path, epochs=1)
    with LineLog(str(tmp_path / "metrics.jsonl")) as lines:
        lines.append({**rows[0], "alarms": "none"})
    with raises("E-DATA-084", "none"):
        read_metrics(str(tmp_path))


def test_newest_rows_by_kind(tmp_path: Path) -> None:
    assert newest_rows(str(tmp_path), "step", "health") == {}
    rows = train(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "health", "measures": {"a": 1}\n')
        file.write('{"kind": "health", "measures": {}')  # being written, and just behind a brace
    assert newest_rows(str(tmp_path), "step", "health") == {"health": rows[-1]}
    assert newest_rows(str(tmp_path), "step") == {}


def test_the_console_tells_each_alarm_once_and_the_last_measures(tmp_path: Path) -> None:
    rows = train(tmp_path)
    stream = io.StringIO()
    console = Console(stream)
    view = _ProgressView(CONFIG, str(tmp_path), console)
    collapse = "features are collapsing: RankMe fell from 9.0 to "
    for number, value in enumerate(("4.0", "3.0")):
        with LineLog(str(tmp_path / "metrics.jsonl")) as lines:
            lines.append({**rows[-1], "step": 20 + number, "alarms": [collapse + value]})
        view.refresh()
    health_log.tell(console, rows)
    text = stream.getvalue()
    assert text.count("features are collapsing") == 1
    assert f"[health] sdclr, epoch 3: {collapse}4.0" in text
    retrieval = 100 * rows[-1]["measures"]["view_retrieval"]
    assert f"[health] sdclr: view retrieval {retrieval:.1f} %, in small clusters " in text
