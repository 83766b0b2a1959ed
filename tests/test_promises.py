"""Each promise has a test, and the page of promises names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.promises import PAGE, PROMISES, Result, holders, results, told

# Promises whose danger is easy to show: without the mechanism, a test must fail.
CONTROLLED = {
    *(
        "R1",
        "R2",
        "R4",
        "R5",
        "R7",
        "R8",
        "R9",
        "R10",
        "R14",
        "R15",
        "R16",
        "R17",
        "R18",
        "R19",
        "R20",
    ),
    *("R21", "R22", "R23", "S1", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S11"),
    *("R29", "R30", "R31", "R35", "O1", "O2", "O3", "O6"),
}


def test_every_promise_is_held_by_a_test_and_no_unknown_one_is_named() -> None:
    marked = list(holders())
    named = {promise for holder in marked for promise in holder.promises}
    held = {promise for holder in marked if not holder.is_control for promise in holder.promises}
    assert named <= set(PROMISES) and set(PROMISES) == held
    controls = {promise for holder in marked if holder.is_control for promise in holder.promises}
    assert controls >= CONTROLLED


def test_the_page_names_each_promise_and_only_tests_that_exist() -> None:
    text = PAGE.read_text()
    assert set(re.findall(r"^\| ([RSO]\d+) \|", text, flags=re.MULTILINE)) == set(PROMISES)
    named = set(re.findall(r"`(test_\w+)::(test_\w+)`", text))
    assert named and named <= {(holder.file, holder.name) for holder in holders()}


def test_results_are_read_from_junit_files_and_the_newest_counts(tmp_path: Path) -> None:
    suite = (
        '<testsuites><testsuite timestamp="2030-01-0{day}T00:00:00">'
        "{cases}</testsuite></testsuites>"
    )
    case = '<testcase classname="tests.test_x" name="test_{name}">{inside}</testcase>'
    old = [case.format(name="a", inside="<failure/>"), case.format(name="b[1]", inside="")]
    new = [
        "<testcase/>",
        case.format(name="a", inside=""),
        case.format(name="c", inside="<skipped/>"),
    ]
    (tmp_path / "1.xml").write_text(suite.format(day=1, cases="".join(old) + old[1]))
    (tmp_path / "2.xml").write_text(suite.format(day=2, cases="".join(new)))
    found = results(tmp_path)
    assert found == {
        ("test_x", "test_a"): Result(passed=1, day="2030-01-02"),
        ("test_x", "test_b"): Result(passed=2, day="2030-01-01"),
        ("test_x", "test_c"): Result(skipped=1, day="2030-01-02"),
    }
    assert results(tmp_path / "none") == {}
    assert told(list(found.values())) == "**1 skipped**, 2 passed, 2030-01-01"


def test_the_table_shows_what_did_not_pass_first() -> None:
    passed, failed = Result(passed=3, day="2030-01-02"), Result(passed=2, failed=1)
    assert told([passed, passed]) == "all 2 passed, 2030-01-02"
    assert told([passed, failed, Result()]) == "**1 failed**, **1 not run**, 1 passed, 2030-01-02"
