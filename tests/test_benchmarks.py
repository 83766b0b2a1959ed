"""The table of the benchmarks, and that every benchmark has rows; no timing is asserted."""

from __future__ import annotations

import importlib
import json

import pytest

from benchmarks import __main__ as driver
from benchmarks import gpu, vectors
from benchmarks.table import Row, from_json, heading, render, to_json
from benchmarks.timing import in_turns, ratios

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


def test_the_gpu_script_runs_through_on_a_cpu() -> None:
    rows = gpu.measure("cpu", small=True)
    assert [row for row in rows if row.note] == []
    agreement = [row for row in rows if "differ" in row.name]
    assert len(agreement) == 3 and all(row.met for row in agreement)
    shown = {row.name.partition(": ")[2] for row in rows if row.unit == "x"}
    assert {"float32", "bfloat16", "bfloat16, micro batch of an eighth"} <= shown


def test_vectors_on_paper_are_the_multiply_adds_of_docs_scale() -> None:
    adds = {
        "k-means of the sample": 9.0e12, "cell of each image": 2.0e15,
        "near-duplicates within cells": 2.0e15, "distance to the nearest": 4.1e15,
        "exact search": 2.0e11, "approximate search, faiss": 3.5e8,
    }  # fmt: skip
    found = {row.name: row.value for row in vectors.on_paper({name: [1e9] for name in adds})}
    for name, number in adds.items():
        per = 1e9 if "search" in name else 3600e9
        assert found[f"1e8 images: {name}"] == pytest.approx(number / per, rel=0.03)
    assert found["1e8 images: driver of curate"] == pytest.approx(1640, rel=0.01)
