"""Seconds of each file of tests: shown after every run, bounded where CI is set.

A noisy machine must not fail a change, so a file fails at ten times its budget only: when it hangs
rather than lags.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping

import pytest

DEFAULT_S = 20.0
# On two quiet cores. What starts Ray, or trains, takes longer.
BUDGETS_S = {
    "tests/test_docs.py": 40.0,
    "tests/test_evidence.py": 40.0,
    "tests/test_export.py": 60.0,
    "tests/test_gpu_benchmarks.py": 60.0,
    "tests/test_gpu_training.py": 60.0,
    "tests/test_gradcache.py": 40.0,
    "tests/test_ingest.py": 40.0,
    "tests/test_methods.py": 60.0,
    "tests/test_pipeline.py": 90.0,
    "tests/test_refusals.py": 40.0,
    "tests/test_rendering.py": 60.0,
    "tests/test_replicas.py": 40.0,
    "tests/test_step_graph.py": 60.0,
    "tests/test_sweep.py": 60.0,
    "tests/test_sweep_trial.py": 30.0,
    "tests/test_trainer.py": 30.0,
}
TOLERANCE = 10.0
SHOWN = 25
_seconds: Counter[str] = Counter()


def longest_first(files: Iterable[str]) -> list[str]:
    """Return the files in the order of their budgets: two processes end at about the same time."""
    return sorted(files, key=lambda file: -BUDGETS_S.get(file, DEFAULT_S))


def over(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the files that take more than their budget allows, with their seconds."""
    return {
        file: spent
        for file, spent in seconds.items()
        if spent > TOLERANCE * BUDGETS_S.get(file, DEFAULT_S)
    }


def must_fail(seconds: Mapping[str, float], environment: Mapping[str, str]) -> bool:
    """Return whether a run with these seconds fails in this environment."""
    return "CI" in environment and bool(over(seconds))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; within a file the order stays."""
    by_file: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_file.setdefault(item.nodeid.partition("::")[0], []).append(item)
    items[:] = [item for file in longest_first(by_file) for item in by_file[file]]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add the seconds of one phase of a test to those of its file."""
    _seconds[report.nodeid.partition("::")[0]] += report.duration  # type: ignore[assignment]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the files that took longest, and those beyond their budget."""
    terminalreporter.section(f"seconds per file, {sum(_seconds.values()):.0f} in all")
    for file, spent in _seconds.most_common(SHOWN):
        budget = BUDGETS_S.get(file, DEFAULT_S)
        terminalreporter.line(f"{spent:7.1f} of {budget:3.0f}  {file}")
    for file in over(_seconds):
        terminalreporter.line(f"BEYOND {TOLERANCE:g} TIMES ITS BUDGET: {file}", red=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in CI when a file is far beyond its budget."""
    if must_fail(_seconds, os.environ) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
