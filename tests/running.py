"""Processes of a test, and waits that end at a condition or a deadline, never after a guess."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")
LOG_TAIL = 3000  # characters of a log that a failed wait shows


class NotInTimeError(AssertionError):
    """A condition that did not hold before the deadline, or whose process ended first."""


def wait_for(
    condition: Callable[[], T],
    process: subprocess.Popen[bytes] | subprocess.Popen[str] | None = None,
    *,
    deadline_s: float = 240,
    log: Path | None = None,
    every_s: float = 0.02,
) -> T:
    """Return the first true value of `condition`.

    Args:
        condition: looked at every `every_s` seconds.
        process: must live until then.
        deadline_s: seconds after which the wait fails.
        log: file whose end a failed wait shows.
        every_s: pause between two looks.

    Raises:
        NotInTimeError: the process ended, or the deadline passed.
    """
    end_s = time.monotonic() + deadline_s
    while not (found := condition()):
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() >= end_s:
            if found := condition():  # it may have come with the end
                return found
            reason = "its process ended" if ended else f"not within {deadline_s:g} s"
            raise NotInTimeError(f"{reason}{tail(log)}")
        time.sleep(every_s)
    return found


def tail(log: Path | None, num_chars: int = LOG_TAIL) -> str:
    """Return the end of a log file on lines of its own; empty without a file."""
    if log is None or not log.exists():
        return ""
    return ":\n" + log.read_text(errors="replace")[-num_chars:]


def end(process: subprocess.Popen[bytes] | subprocess.Popen[str], *, grace_s: float = 10) -> None:
    """Terminate one process, and kill it when it has not ended after `grace_s` seconds."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def started(
    command: list[str], *, folder: Path, environment: dict[str, str], log: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in `folder` during the block; what lives after it is killed.

    Args:
        command: program and words.
        folder: working directory, and the place of the log.
        environment: all its variables.
        log: name of the file that takes stdout and stderr; None drops them.
    """
    output = (folder / log).open("ab") if log else None
    try:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stderr=subprocess.STDOUT,
            stdout=output or subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()
    finally:
        if output:
            output.close()


def memory_rise_bytes(setup: str, work: str, *arguments: str) -> int:
    """Return by how much peak memory rises while `work` runs in a process of its own.

    The peak of this process would hide it: that is of the largest test so far. `ru_maxrss` of a
    child starts at the peak of its parent, so `VmHWM` is read, which starts with the program.

    Args:
        setup: code that runs first, with its imports and a first use of what loads lazily.
        work: code that is measured.
        arguments: `sys.argv[1:]` of both.
    """
    code = f"""
import sys
from pathlib import Path

def peak_kib():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

{setup}
before_kib = peak_kib()
{work}
print((peak_kib() - before_kib) * 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])
