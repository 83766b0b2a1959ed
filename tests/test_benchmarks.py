"""The table of the benchmarks, and that every benchmark has rows; no timing is asserted."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as driver
from benchmarks import curated, vectors
from benchmarks.table import Row, from_json, heading, render, to_json
from benchmarks.timing import in_turns, ratios
from pipeline.curate.selection import multiply_adds

ROWS = [
    Row(name="step", values=(1.0, 1.3, 1.2), unit="x", versus="published", target=1.15),
    Row(name="start", values=(2.0,), unit="s", target=1.5, at_most=True, note="cold"),
    Row(name="kornia", values=(), unit="x", target=1.0, note="not installed"),
    Row(name="views", values=(12345.6,), unit="views/s"),
]


def test_the_median_meets_its_target_or_misses_it() -> None:
    assert [row.met for row in ROWS] == [True, False, None, None]
    assert [row.value for row in ROWS] == [1.2, 2.0, None, 12345.6]


def test_the_table_shows_value_range_n_target_and_reference() -> None:
    lines = render(ROWS).splitlines()
    assert lines[2].split() == [*"step 1.2 x 1..1.3 3 >= 1.15 met published".split()]
    assert lines[3].split() == [*"start 2 s 2..2 1 <= 1.5 missed cold".split()]
    assert lines[4].split() == [*"kornia - 0 >= 1 not measured not installed".split()]
    assert lines[5].split() == [*"views 12,346 views/s 12,346..12,346 1".split()]


def test_json_keeps_the_rows_and_says_where_they_were_measured() -> None:
    content = json.loads(json.dumps(to_json(ROWS)))
    assert [row.cells() for row in from_json(content)] == [row.cells() for row in ROWS]
    assert "cores" in heading(content) and "torch" in heading(content)


def test_calls_take_turns_and_the_first_round_does_not_count() -> None:
    called: list[str] = []
    ticks = iter([0.0, 1.0, 1.0, 3.0, 3.0, 5.0, 5.0, 8.0])
    spent = in_turns(
        {"a": lambda: called.append("a"), "b": lambda: called.append("b")},
        repeats=2,
        clock=lambda: next(ticks),
    )
    assert called == ["a", "b"] * 3
    assert spent == {"a": [1.0, 2.0], "b": [2.0, 3.0]}
    assert ratios(spent["b"], spent["a"]) == [2.0, 1.5]


@pytest.mark.parametrize("name", driver.names())
def test_every_benchmark_has_rows(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").rows)


def test_vectors_on_paper_are_the_multiply_adds_of_docs_scale() -> None:
    adds = {
        vectors.EMBED: 1e8, "k-means of the sample": 9.0e12, "cell of each image": 2.0e15,
        "near-duplicates within cells": 2.0e15, "distance to the nearest": 4.1e15,
        "exact search": 2.0e11, "approximate search, faiss": 3.5e8,
    }  # fmt: skip
    found = {row.name: row.value for row in vectors.on_paper({name: [1e9] for name in adds})}
    for name, number in adds.items():
        per = 1e9 if "search" in name else 3600e9
        assert found[f"1e8 images: {name}"] == pytest.approx(number / per, rel=0.03)
    assert found["1e8 images: driver of curate"] == pytest.approx(1640, rel=0.01)
    of_curate = sum(list(adds.values())[1:4])
    assert multiply_adds(10**8, 2048) == pytest.approx(of_curate, rel=0.03)


def arm(split: int, name: str, counts: tuple[int, ...], every: float) -> curated.Arm:
    return curated.Arm(split, name, counts, 0, 609, every, every / 2, True, 1.0)


def test_arms_are_compared_within_their_split() -> None:
    arms = [
        arm(split, name, counts, base + gain)
        for split, base in ((1, 40.0), (2, 60.0))
        for name, counts, gain in (
            ("all", (100, 1), 5.0), ("balanced", (20, 2), split), ("random", (25, 1), 0.0)
        )
    ]  # fmt: skip
    lines = {line.partition(" n=")[0].strip(): line for line in curated.table(arms)}
    assert list(lines) == ["all", "balanced", "random", "balanced - random", "balanced - all"]
    # Half the interval of 1 and 2: 12.706 (t, 1 degree) x 0.7071 / 1.4142.
    assert "All 1.50 +-6.35 (1.00 2.00)" in lines["balanced - random"]
    assert "Few 0.75 +-3.18 (0.50 1.00)" in lines["balanced - random"]
    assert "ratio -15.00 +-0.00" in lines["balanced - random"]
    assert "All 50.00 +-127.06 (40.00 60.00)" in lines["random"]
    with pytest.raises(ValueError, match="missing"):
        curated.table(arms[:-1])


def test_parts_are_a_quarter_each_and_only_the_balanced_one_follows_the_vectors(
    tmp_path: Path,
) -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [180, 20])
    vectors = (np.eye(2, 8)[labels] + 0.05 * generator.normal(size=(200, 8))).astype(np.float32)
    chosen = {name: curated.part_of(name, vectors, tmp_path, 1)[0] for name in curated.ARMS}
    assert [len(rows) for rows in chosen.values()] == [200, 50, 50]
    rare = {name: int((labels[rows] == 1).sum()) for name, rows in chosen.items()}
    assert rare["balanced"] > rare["random"]
    again, _ = curated.part_of("random", vectors[::-1], tmp_path, 1)
    other, _ = curated.part_of("random", vectors, tmp_path, 2)
    assert again.tolist() == chosen["random"].tolist() != other.tolist()
