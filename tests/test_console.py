from __future__ import annotations

import ast
import errno
import io
import itertools
import os
import re

import pytest

from pipeline import console as console_module
from pipeline.console import Console, clean, counted, duration
from pipeline.errors import TrainingError
from tests.conftest import REPO


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def console(stream: io.StringIO, clock: Clock, errors: io.StringIO | None = None) -> Console:
    return Console(stream, errors or io.StringIO(), clock=clock)


@pytest.mark.promise("O3")
def test_off_a_terminal_one_line_per_interval_and_one_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = console(stream, clock)
    for done in range(131):
        shown.progress("train", done, 130, per_s=10.0, extra="loss 4.12")
        clock.now_s += 0.125  # exact in binary
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["31", "62", "92", "100"]
    assert "\r" not in stream.getvalue() and "█" not in stream.getvalue()
    assert lines[0] == "train   31 %  40/130 images  10 images/s  9.0 s left  loss 4.12"
    assert "left" not in lines[-1]


@pytest.mark.promise("O3", control=True)
def test_without_the_interval_every_call_would_be_a_line() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = Console(stream, io.StringIO(), interval_s=0.0, clock=clock)
    for done in range(131):
        shown.progress("train", done, 130)
        clock.now_s += 0.125
    assert len(stream.getvalue().splitlines()) >= 130


def test_the_interval_is_configurable() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = Console(stream, io.StringIO(), interval_s=1.0, clock=clock)
    for done in range(10):
        shown.progress("train", done, 100)
        clock.now_s += 1.0
    assert len(stream.getvalue().splitlines()) == 9


@pytest.mark.promise("O3")
def test_on_a_terminal_one_line_is_rewritten() -> None:
    stream, clock = Terminal(), Clock()
    shown = console(stream, clock)
    for done in (0, 50, 100):
        shown.progress("train", done, 100)
        clock.now_s += 2.0
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    frames = text.strip("\n").split("\r")[1:]
    assert len(frames) == 3 and len({len(frame) for frame in frames}) == 1  # old text is covered
    assert "25 images/s" in frames[1] and "2.0 s left" in frames[1]
    assert frames[2].count("█") == 24 and "░" not in frames[2]


def test_on_a_terminal_redraws_are_bounded() -> None:
    stream, clock = Terminal(), Clock()
    shown = console(stream, clock)
    for done in range(1000):
        shown.progress("train", done, 10_000)
        clock.now_s += 0.001
    assert stream.getvalue().count("\r") <= 11


def test_a_line_goes_below_an_unfinished_progress_line() -> None:
    stream, clock = Terminal(), Clock()
    shown = console(stream, clock)
    shown.progress("train", 1, 100)
    shown.line("saved")
    assert stream.getvalue().endswith("\nsaved\n")


def test_speed_is_measured_from_where_a_resume_begins() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = console(stream, clock)
    shown.progress("train", 900, 1000)
    clock.now_s += 10
    shown.progress("train", 920, 1000)
    assert "2.0 images/s" in stream.getvalue() and "40 s left" in stream.getvalue()


def test_an_unknown_total_shows_no_percent() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = console(stream, clock)
    shown.progress("ingest", 0, 0)
    clock.now_s += 5
    shown.progress("ingest", 50, 0, unit="files")
    assert stream.getvalue() == "ingest  50 files  10 files/s\n"


def test_table_is_aligned() -> None:
    stream = io.StringIO()
    console(stream, Clock()).table(["Model", "All"], [["sdclr", "9.1"], ["日本", "10.0 ± 0.1"]])
    assert stream.getvalue().splitlines() == [
        "Model         All",
        "-----  ----------",
        "sdclr         9.1",
        "日本   10.0 ± 0.1",
    ]


@pytest.mark.promise("O2")
def test_error_goes_to_stderr_in_four_parts() -> None:
    stream, errors = io.StringIO(), io.StringIO()
    error = TrainingError(
        "E-TRAIN-999", "The loss is not finite", where="step 12", todo="lower train.lr_per_256"
    )
    console(stream, Clock(), errors).error(error)
    assert stream.getvalue() == ""
    assert errors.getvalue().splitlines() == [
        "error: The loss is not finite [E-TRAIN-999]",
        "  where: step 12",
        "  to do: lower train.lr_per_256",
        "  exit code: 6",
    ]


def test_control_characters_cannot_reach_the_terminal() -> None:
    stream = Terminal()
    console(stream, Clock()).line("a\x1b[2Jb\rc\u202ed")
    assert stream.getvalue() == "a�[2Jb�c�d\n"


@pytest.mark.promise("S5")
def test_secrets_cannot_reach_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "hunter2-Zq81" in clean("it is hunter2-Zq81")
    monkeypatch.setenv("MY_PASSWORD", "hunter2-Zq81")
    assert clean("it is hunter2-Zq81") == "it is ***"


def test_a_stream_without_unicode_gets_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(stream, io.StringIO()).line("1.0 ± 0.1 – é")
    assert stream.buffer.getvalue() == b"1.0 +- 0.1 - ?\n"


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "no space")])
def test_a_closed_pipe_or_a_full_disk_does_not_stop_the_work(error: OSError) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise error

    shown = console(Closed(), Clock())
    shown.line("x")
    shown.progress("train", 1, 1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (42, "42 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"),
     (273600, "3 d 04 h"), (59.7, "1 min 00 s"), (3599.8, "1 h 00 min")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
@pytest.mark.parametrize("done", [640, 153_000])
def test_epoch_step_and_loss_are_seen_at_any_width(
    columns: int, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        console_module.shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24))
    )
    stream = Terminal()
    extra = "sdclr  epoch 103/200  step 400/600  loss 3.491"
    shown = Console(stream)
    shown.progress("train", done, 153_600, per_s=353.0, extra=extra)
    (line,) = [part.rstrip() for part in stream.getvalue().split("\r") if part]
    assert len(line) < columns
    if columns >= 80:
        assert extra in line and " left" in line
    assert ("█" in line or "░" in line) == (columns == 200)


@pytest.mark.parametrize("between_s", [5.0, 30.0])
def test_the_time_left_is_steady_where_the_speed_jumps(between_s: float) -> None:
    stream, clock = io.StringIO(), Clock()
    shown = console(stream, clock)
    for done in range(0, 400, 10):  # at 5 and 20 images/s in turns
        shown.progress("train", done, 10_000, per_s=5.0 if done % 20 else 20.0)
        clock.now_s += between_s
    parts = [line.split("  ") for line in stream.getvalue().splitlines()[-10:]]
    assert {"5.0 images/s", "20 images/s"} == {part[4] for part in parts}
    left = [part[5].removesuffix(" s left").split(" min ") for part in parts]
    left_s = [60 * int(minutes) + int(seconds) for minutes, seconds in left]
    assert max(left_s) < (1.1 if between_s == 5 else 1.5) * min(left_s)


def test_a_slow_first_step_does_not_spoil_the_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = console(stream, clock)
    total = 3_600_000
    for number in range(40):
        shown.progress("train", 5000 * number, total, per_s=1000.0 if number > 1 else 8.5)
        clock.now_s += 5.0
    left = [line.partition("images/s  ")[2] for line in stream.getvalue().splitlines()]
    assert "d " in left[0]  # the first line knows no better
    assert left[20].startswith("1 h 1") and left[-1].startswith("59 min")  # 57 min by the speed


def test_one_of_a_thing_is_singular() -> None:
    assert [counted(number, "step") for number in (0, 1, 2, "1", "1 or 2")] == [
        "0 steps", "1 step", "2 steps", "1 step", "1 or 2 steps",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "class", "1 class"), (2, "class", "2 classes"), (0, "image", "0 images"),
        ("1", "forward pass", "1 forward pass"), ("2 to 3", "worker", "2 to 3 workers"),
        (2, "draw of labels", "2 draws of labels"),
    ],
)  # fmt: skip
def test_things_are_counted_in_words(number: int | str, noun: str, text: str) -> None:
    assert counted(number, noun) == text


_PLURALS = (
    "images|epochs|steps|checkpoints|forward passes|trials|trainings|workers|runs|files|vectors|"
    "classes|clusters|neighbours|seeds|labels"
)


def bare_counts(source: str) -> list[str]:
    """Return the counts that stand before a plural as they are: `1 epochs` one day.

    A sentence whose verb depends on the number as well is another matter.
    """
    verb = "are|have|were|hold|need|lack|has|that|cannot"
    plural = re.compile(rf" (?!over |of |more )(?:[a-z-]+ )?({_PLURALS})\b(?! (?:{verb})\b)")
    return [
        ast.unparse(value.value) + str(after.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.JoinedStr)
        for value, after in itertools.pairwise(node.values)
        if isinstance(value, ast.FormattedValue) and value.format_spec is None
        and isinstance(value.value, ast.Attribute | ast.Name | ast.Call)
        and isinstance(after, ast.Constant) and plural.match(str(after.value))
    ]  # fmt: skip


@pytest.mark.parametrize("room", ["cli", "export", "report", "track", "train", "tune", "cluster"])
def test_what_a_user_reads_has_singulars(room: str) -> None:
    assert bare_counts("f'{n} epochs, {m} labelled images'") and not bare_counts(
        "f'{x} over steps'"
    )
    found = {p: bare_counts(p.read_text()) for p in (REPO / "pipeline" / room).rglob("*.py")}
    texts = {"evaluation.scored_on", "join("}  # words, no numbers
    assert not [t for one in found.values() for t in one if not any(w in t for w in texts)]
