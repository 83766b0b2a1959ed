"""Output for a person while a stage runs. The only writer to stdout; errors go to stderr.

On a terminal, progress is one line rewritten in place. Anywhere else (a log file, a pod) it is one
plain line per interval, so a log of a week stays readable and free of control characters.
Text is cleaned before it is written: secrets are masked, and control characters in class names or
paths cannot move the cursor.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from pipeline.errors import PipelineError
from pipeline.redact import redact

INTERVAL_S = 5.0
_REDRAW_S = 0.1
_BAR_CELLS = 24
_LEAST_CELLS = 6
_PACE_S = 60.0  # over which the pace behind the time left is averaged
_ASCII = str.maketrans({"±": "+-", "–": "-", "…": "...", "█": "#", "░": "."})


def program() -> str:
    """Return the words that this program is called by, for messages."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else ""
    if name == "sdclr":
        return name
    file = Path(__file__).resolve().parent / "run.py"
    called = Path(sys.argv[0]) if name == "run.py" else file
    shown = str(called) if name == "run.py" and not called.is_absolute() else os.path.relpath(file)
    return f"python {shown if not shown.startswith('../..') else file}"


def counted(number: int | str, noun: str) -> str:
    """Return a number of things in words: `1 step`, `2 steps`, `3 or 4 steps`."""
    if str(number) == "1":
        return f"{number} {noun}"
    head, of, rest = noun.partition(" of ")  # `draw of labels`
    return f"{number} {head}{'es' if head.endswith('s') else 's'}{of}{rest}"


class Console:
    """Stages, progress, tables and errors as text.

    Args:
        stream: where everything but errors goes; None = stdout.
        error_stream: where errors go; None = stderr.
        interval_s: seconds between two progress lines when `stream` is not a terminal, >= 0.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        error_stream: TextIO | None = None,
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._error_stream = sys.stderr if error_stream is None else error_stream
        self._interval_s, self._clock = interval_s, clock
        self._terminal = self._stream.isatty()
        self._stage = ""
        self._start_s = self._shown_s = 0.0
        self._start_done = 0
        self._pace_per_s = self._paced_s = 0.0  # and when it was last averaged
        self._open_line = False
        self.how_to_resume = "the same command starts again"

    def stage(self, name: str, text: str = "") -> None:
        """Announce a stage in one line."""
        self.line(f"[{name}] {text}".rstrip())

    def line(self, text: str = "") -> None:
        """Write a line, below an unfinished progress line if there is one."""
        self._end_progress()
        self._write(self._stream, "\n".join(clean(part) for part in text.split("\n")) + "\n")

    def error(self, error: PipelineError) -> None:
        """Write what happened, where and what to do to stderr, with the exit code."""
        self._end_progress()
        parts = {
            "error: ": f"{error.what} [{error.id}]",
            "  where: ": error.where,
            "  to do: ": error.todo,
        }
        text = ""
        for title, part in parts.items():
            for number, line in enumerate(part.splitlines()):
                text += (title if number == 0 else " " * len(title)) + clean(line) + "\n"
        self._write(self._error_stream, f"{text}  exit code: {error.exit_code}\n")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write rows in aligned columns; a column whose cells all start with a digit goes right."""
        body = [[clean(cell) for cell in row] for row in rows]
        titles = [clean(title) for title in headers]
        widths = [max(map(_columns, column)) for column in zip(titles, *body, strict=True)]
        to_right = [all(_is_number(row[i]) for row in body) for i in range(len(titles))]
        rule = ["-" * width for width in widths]
        for row in [titles, rule, *body]:
            cells = [
                " " * (width - _columns(cell)) + cell if right else
                cell + " " * (width - _columns(cell))
                for cell, width, right in zip(row, widths, to_right, strict=True)
            ]  # fmt: skip
            self.line("  ".join(cells).rstrip())

    def progress(
        self,
        stage: str,
        done: int,
        total: int,
        *,
        unit: str = "images",
        per_s: float | None = None,
        extra: str = "",
    ) -> None:
        """Show how far a stage is, its speed and the time left.

        Off a terminal a line is written at most every `interval_s`, plus one when `done` reaches
        `total`, so that no log ends at 97 %.

        Args:
            stage: the stage's name; a new name starts a new measurement.
            done: how many `unit`s so far, 0 <= done <= total.
            total: how many there will be; 0 = unknown.
            unit: what is counted.
            per_s: `unit`s per second; None = measured between the first call and this one.
            extra: more to show, such as "loss 4.12".
        """
        now_s = self._clock()
        if stage != self._stage:
            self._end_progress()
            self._stage, self._start_s, self._start_done = stage, now_s, done
            self._shown_s = -math.inf if self._terminal else now_s
            self._pace_per_s = 0.0
        finished = total > 0 and done >= total
        wait_s = _REDRAW_S if self._terminal else self._interval_s
        if now_s - self._shown_s < wait_s and not finished:
            return
        self._shown_s = now_s
        if per_s is not None:
            pace_per_s = self._pace(per_s, now_s)
            left_s = (total - done) / pace_per_s if pace_per_s > 0 else 0.0
        else:
            num_done, spent_s = done - self._start_done, now_s - self._start_s
            per_s = num_done / spent_s if spent_s > 0 else None
            left_s = (total - done) / per_s if per_s else 0.0
        width = shutil.get_terminal_size().columns - 1 if self._terminal else None
        text = _progress_text(stage, done, total, unit, per_s, left_s, extra, width)
        if width is not None:
            self._write(self._stream, "\r" + clean(text)[:width].ljust(width))
            self._open_line = True
        else:
            self._write(self._stream, clean(text) + "\n")
        if finished:
            self._end_progress()
            self._stage = ""

    def _pace(self, per_s: float, now_s: float) -> float:
        """Return the units a second of about the last minute, so that the time left is steady."""
        weight = 1 - math.exp((self._paced_s - now_s) / _PACE_S) if self._pace_per_s else 1.0
        self._pace_per_s += weight * (per_s - self._pace_per_s)
        self._paced_s = now_s
        return self._pace_per_s

    def _end_progress(self) -> None:
        if self._open_line:
            self._open_line = False
            self._write(self._stream, "\n")

    def _write(self, stream: TextIO, text: str) -> None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
        try:
            stream.write(text)
            stream.flush()
        except OSError:  # `... | head`, or a full disk below `> log`, must not stop a training
            return


def clean(text: str) -> str:
    """Return one line of text that is safe to show: secrets and control characters replaced."""
    shown = redact(text)
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cs", "Cf") else c for c in shown)


def duration(seconds: float) -> str:
    """Format seconds for people: 0.4 s, 42 s, 3 min 05 s, 2 h 07 min, 3 d 04 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def _progress_text(
    stage: str,
    done: int,
    total: int,
    unit: str,
    per_s: float | None,
    left_s: float,
    extra: str,
    width: int | None = None,
) -> str:
    """Return the line of progress; in `width` columns the least important parts give way.

    First the bar shrinks and goes, then the counts and the speed. What remains is the share, the
    time left and `extra`.
    """
    fraction = min(1.0, done / total) if total > 0 else 0.0
    share = f"{100 * fraction:3.0f} %" if total > 0 else ""
    count = f"{done}/{total} {unit}" if total > 0 else f"{done} {unit}"
    speed = left = ""
    if per_s is not None and per_s > 0:
        speed = f"{per_s:.0f} {unit}/s" if per_s >= 10 else f"{per_s:.1f} {unit}/s"
        left = f"{duration(left_s)} left" if total > done else ""

    def joined(*parts: str) -> str:
        return "  ".join(part for part in parts if part)

    whole = joined(stage, share, count, speed, left, extra)
    if width is None:
        return whole
    room = min(_BAR_CELLS, width - _columns(whole) - 2)
    if total > 0 and room >= _LEAST_CELLS:
        filled = int(fraction * room)
        return joined(stage, "█" * filled + "░" * (room - filled), share, count, speed, left, extra)
    texts = (
        whole,
        joined(stage, share, speed, left, extra),
        joined(stage, share, left, extra),
        joined(share, extra),
    )
    return next((text for text in texts if _columns(text) <= width), texts[-1])


def _columns(text: str) -> int:
    """Count the terminal columns of a text: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _is_number(cell: str) -> bool:
    return cell.strip() in ("", "–") or cell.strip().lstrip("+-")[:1].isdigit()
