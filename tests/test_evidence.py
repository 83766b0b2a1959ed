"""The study of two cores: one training and its result, and the table of all results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import evidence
from benchmarks.evidence import ARMS, TWIN, UNTRAINED, Data, Evidence, Settings
from pipeline.ingest.sources.cifar_files import CifarImages
from pipeline.record.evaluation import Score
from sdclr.groups import groups_by_tercile

COUNTS = (30, 20, 14, 10, 8, 6, 5, 4, 4, 4)


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    # Not 4 channels: oneDNN of torch 2.14.1 then corrupts memory in float32, on AVX2 alone.
    monkeypatch.setattr(evidence, "SETTINGS", Settings(width=8, crop_px=8, batch=16, epochs=2))


@pytest.fixture
def data() -> Data:
    """Random images in place of CIFAR-10's."""
    generator = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(10), 40), np.arange(50) % 10])
    pixels = generator.integers(0, 200, (len(labels), 32, 32, 3))
    pixels[..., 0] += 5 * labels[:, None, None]
    made = object.__new__(Data)
    made.found = CifarImages(
        pixels.astype(np.uint8), labels, 400, tuple("abcdefghij"), "binary", None
    )
    rows = [40 * label + np.arange(n) for label, n in enumerate(COUNTS)]
    made.of_list = {"D_i": np.concatenate(rows), "D_b": np.arange(0, 400, 4)}
    made.labelled_N, made.test_N = np.arange(400), np.arange(400, 450)
    made.draws = [np.arange(0, 400, 10), np.arange(5, 400, 10)]
    made.groups = groups_by_tercile(COUNTS)
    return made


@pytest.mark.parametrize("arm", ["simclr", "bcl-d", "balanced-twin"])
def test_an_arm_is_trained_and_measured_alike_each_time(data: Data, arm: str) -> None:
    found = evidence.train(2, arm, data)
    again = evidence.train(2, arm, data) if arm == "bcl-d" else found  # the one with a memory
    models = {"simclr": {"simclr", UNTRAINED}, "bcl-d": {"bcl-d"}, "balanced-twin": {TWIN}}
    assert set(found.scores) == models[arm] and found.scores == again.scores
    assert (found.disagreement_auroc is not None) == (arm == "bcl-d")
    assert found.loss_ratio is not None and 0.2 < found.loss_ratio < 5
    assert [s.protocol for s in next(iter(found.scores.values()))] == [*evidence.PROTOCOLS]
    assert evidence.train(3, arm, data).scores != found.scores


def a_result(split: int, arm: str, few: float, settings: str = evidence.SETTINGS_TEXT) -> None:
    score = {"protocol": "cached-linear", "many": 0.8, "medium": 0.7, "few": few, "all": 0.7,
             "std": float(np.std([0.8, 0.7, few])), "n": 1, "spread": None,
             "per_class": (0.7,) * 10, "note": ""}  # fmt: skip
    scores = (Score(**score), Score(**score | {"protocol": "cached-fewshot"}))
    names = {"simclr": ("simclr", UNTRAINED), "balanced-twin": (TWIN,)}.get(arm, (arm,))
    Evidence(
        split=split, arm=arm, settings=settings, scores=dict.fromkeys(names, scores),
        loss_ratio=0.9, disagreement_auroc=None, train_s=60.0, score_s=6.0, machine="",
    ).write(str(evidence.file_of(split, arm)))  # fmt: skip


def test_the_table_has_pairs_of_splits_and_says_how_many() -> None:
    few = {"simclr": 0.5, "sdclr": 0.53, "simclr-ts": 0.5, "bcl-d": 0.52, "balanced-twin": 0.6}
    for split in (1, 2, 4):
        for arm in ARMS if split < 4 else ("simclr", "sdclr"):
            a_result(split, arm, few[arm] + 0.01 * split)
    a_result(5, "bcl-d", 0.9, settings="other")  # a result of other settings does not count
    found = {
        (d.a, d.b): d for d in evidence.study(evidence.results()).differences
        if d.protocol == "cached-linear"
    }  # fmt: skip
    assert found["sdclr", "simclr"].n == 3 and found["bcl-d", "simclr"].n == 2
    assert found["sdclr", "simclr"].few == pytest.approx(0.03)
    assert found[TWIN, "simclr"].few == pytest.approx(0.1)
    assert ("simclr", "untrained") in found and ("sdclr", "untrained") not in found
    gaps = evidence.study(evidence.results()).gaps
    assert {g.model for g in gaps} == {"sdclr", "simclr-ts", "bcl-d"} and gaps[0].n == 2


def test_the_next_training_is_the_first_without_a_result() -> None:
    assert evidence.todo() == [(s, arm) for s in evidence.SPLITS for arm in ARMS]
    a_result(1, "simclr", 0.5)
    a_result(1, "sdclr", 0.5, settings="other")
    assert evidence.todo()[0] == (1, "sdclr") and (1, "simclr") not in evidence.todo()
    assert evidence.todo(split=2, arm="bcl-d") == [(2, "bcl-d")]
    assert evidence.todo(split=1, arm="simclr") == []


def test_without_results_there_is_no_table() -> None:
    with pytest.raises(SystemExit, match="train"):
        evidence.show()
    a_result(1, "simclr", 0.5)
    evidence.show()
    assert "| simclr | 1 |" in (evidence.RESULTS / "evidence.md").read_text()
