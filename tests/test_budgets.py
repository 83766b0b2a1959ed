"""A file of tests that takes far longer than its budget fails the run in CI, and only there."""

from __future__ import annotations

from pathlib import Path

from tests import budgets

ROOT = Path(__file__).resolve().parents[1]


def test_only_files_far_beyond_their_budget_are_over() -> None:
    limit_s = budgets.TOLERANCE * budgets.DEFAULT_S
    seconds = {"a.py": limit_s - 1, "b.py": limit_s + 1, "tests/test_pipeline.py": limit_s + 1}
    assert budgets.over(seconds) == {"b.py": limit_s + 1}


def test_every_budget_is_that_of_a_file() -> None:
    assert all((ROOT / file).exists() for file in budgets.BUDGETS_S)


def test_the_longest_files_come_first_and_the_others_keep_their_order() -> None:
    files = ["tests/test_a.py", "tests/test_sweep.py", "tests/test_b.py", "tests/test_pipeline.py"]
    assert budgets.longest_first(files) == [files[3], files[1], files[0], files[2]]


def test_a_run_beyond_its_budget_fails_in_ci_alone() -> None:
    assert budgets.must_fail({"a.py": 1e6}, {"CI": "1"})
    assert not budgets.must_fail({"a.py": 1e6}, {}) and not budgets.must_fail({}, {"CI": "1"})
