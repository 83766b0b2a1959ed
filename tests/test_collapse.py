"""A network whose vectors do not distinguish images: measured, recorded and said on every page."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from pipeline.console import Console
from pipeline.dataset.manifest import Manifest
from pipeline.embed.collapse import earlier_ranks, vector_health
from pipeline.model.source import ModelSource
from pipeline.record.context import RunContext
from pipeline.record.embedding import VectorHealth
from pipeline.report.mining import score_text, vectors_warning
from pipeline.report.mining_page import show_mining, write_mining_page
from pipeline.report.page import write_report
from sdclr.health import mean_cosine
from tests import records
from tests.pages import edit
from tests.test_mine import CONFIG, data_set


def vectors(spread: float, num: int = 200, dims: int = 2) -> torch.Tensor:
    """Vectors of 64 numbers around one point, spread in some directions, and hardly in the rest."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num, 64, generator=generator) * 1e-3
    noise[:, :dims] += torch.randn(num, dims, generator=generator)
    return torch.ones(64) + spread * noise


def test_mean_cosine_equals_the_loop_over_pairs() -> None:
    features = vectors(3.0, num=7)
    rows = torch.nn.functional.normalize(features.double(), dim=1)
    pairs = [float(rows[i] @ rows[j]) for i in range(7) for j in range(7) if i != j]
    assert mean_cosine(features) == pytest.approx(sum(pairs) / len(pairs))
    assert mean_cosine(torch.ones(3, 2)) == pytest.approx(1) != mean_cosine(features)
    with pytest.raises(ValueError, match="2 rows"):
        mean_cosine(torch.ones(1, 2))


def test_collapsed_vectors_raise_an_alarm_and_others_none() -> None:
    sick, well = vectors(0.2), vectors(5.0, dims=64)
    found = vector_health(sick)
    assert found.mean_cosine is not None and found.mean_cosine > 0.99
    assert found.rankme is not None and found.rankme < 2
    assert any(alarm.name in ("collapse", "dead") for alarm in found.alarms)
    assert vector_health(well).alarms == () and vector_health(well, [60.0]).alarms == ()
    assert vector_health(well).num_images == 200


def test_a_fifth_of_the_best_rank_is_the_limit_as_in_training() -> None:
    features = vectors(5.0, dims=64)
    rank = vector_health(features).rankme
    assert rank is not None
    assert vector_health(features, [rank * 4.9, 1.0]).alarms == ()
    (alarm,) = vector_health(features, [1.0, rank * 5.1]).alarms
    assert alarm.name == "collapse" and "RankMe fell" in alarm.text


def test_ranks_of_other_images_are_no_baseline(tmp_path: Path) -> None:
    run_uri = records.write_run(tmp_path)
    fields = data_set(tmp_path / "d").__dict__ | {"hash": "ab12" * 16}
    run = RunContext(CONFIG, run_uri, "d", Manifest(**fields))
    source = ModelSource("sdclr", method="sdclr")
    ranks = earlier_ranks(run, source, 391)
    assert len(ranks) == 6 and max(ranks) > 30
    assert earlier_ranks(run, source, 390) == []  # RankMe of fewer images is smaller
    assert earlier_ranks(run, ModelSource("checkpoint", "w"), 391) == []
    other = RunContext(CONFIG, run_uri, "d", Manifest(**fields | {"hash": "cd" * 32}))
    assert earlier_ranks(other, source, 391) == []


def mined(run_uri: str, found: VectorHealth) -> tuple[str, str, str]:
    """Return mining.html, report.html and the console with such vectors in mining.json."""
    edit(run_uri, "mining.json", lambda m: m.update(vectors=found.model_dump()))
    stream = io.StringIO()
    show_mining(Console(stream), run_uri)
    pages = (write_mining_page(run_uri)[0], write_report(run_uri))
    mining, report = (Path(uri).read_text() for uri in pages)
    return mining, report, stream.getvalue()


def test_a_collapse_is_said_before_the_ranking_and_health_is_not(tmp_path: Path) -> None:
    run_uri = records.write_run(tmp_path)
    claim = "hardly distinguishes these images"
    found = vector_health(vectors(0.2))
    mining, report, console = mined(run_uri, found)
    assert mining.index(claim) < mining.index("Does the ranking find") < mining.index("<img")
    assert claim in report and console.index(claim) < console.index("better than chance")
    assert f"{found.mean_cosine:.4g}" in mining and f"{found.rankme:.4g}" in mining
    assert not any(claim in text for text in mined(run_uri, vector_health(vectors(5.0, dims=64))))
    assert vectors_warning(None) == ()


def test_small_scores_differ_as_they_are_shown() -> None:
    shown = [score_text(x) for x in (0.0032, 0.00321, 0.000041, 0.8125, 1.0, 12.34, 0.0, None)]
    assert shown == ["0.00320", "0.00321", "0.0000410", "0.812", "1.00", "12.3", "0", ""]
