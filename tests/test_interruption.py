"""Ctrl-C and SIGTERM end the program wherever Python runs their handlers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pipeline.cli.interruption import signals_raised
from pipeline.cluster import connect
from tests.conftest import REPO

# Each raises its signal where Python drops exceptions.
PLACES = {
    "finalizer": """
class Dropped:
    def __del__(self): send()
drop = Dropped()
del drop
""",
    "weak reference": """
import weakref
class Referred: pass
drop = Referred()
kept = weakref.ref(drop, lambda _: send())
del drop
""",
    "weak set": """
import weakref
class Key:
    def __hash__(self): return 1
class Set(set):
    def discard(self, item): send()
kept, drop = weakref.WeakSet(), Key()
kept.data = Set()
kept.add(drop)
del drop
""",
    "cycle": """
import gc
class Dropped:
    def __del__(self): send()
drop = Dropped()
drop.itself = drop
del drop
gc.collect()
""",
    "generator": """
def endless():
    try: yield
    finally: send()
drop = endless()
next(drop)
del drop
""",
}
PROGRAM = """
import os, signal, sys, time
from contextlib import nullcontext
from pipeline.cli.interruption import signals_raised
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell's job was begun
send = lambda: signal.raise_signal({number})
def work():
    exec(sys.argv[1], dict(globals()))
    time.sleep({pause_s})
    print("lost")
try:
    with {context}:
        work()
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(130)
except SystemExit as error:
    print("terminated")
    raise
"""


def ended(place: str, number: signal.Signals, *, context: str, pause_s: float) -> tuple[int, str]:
    program = PROGRAM.format(number=int(number), context=context, pause_s=pause_s)
    command = [sys.executable, "-c", program, PLACES[place]]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=90)
    return done.returncode, done.stdout.strip()


@pytest.mark.promise("R19")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGTERM, (143, "terminated")), (signal.SIGINT, (130, "interrupted"))],
)
def test_no_signal_is_lost(place: str, number: signal.Signals, expected: tuple[int, str]) -> None:
    assert ended(place, number, context="signals_raised()", pause_s=60) == expected


@pytest.mark.parametrize("place", PLACES)
def test_python_alone_loses_it(place: str) -> None:
    """The negative control: each of these places drops what is raised."""
    assert ended(place, signal.SIGINT, context="nullcontext()", pause_s=0) == (0, "lost")


def test_handlers_are_put_back(capfd: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli.interruption import signals_raised

    before = (signal.getsignal(signal.SIGTERM), sys.unraisablehook)
    with signals_raised():
        assert (signal.getsignal(signal.SIGTERM), sys.unraisablehook) != before
    assert (signal.getsignal(signal.SIGTERM), sys.unraisablehook) == before


@pytest.mark.parametrize(
    ("code", "lines"), [(143, ["before"]), (130, ["before"]), (3, ["before", "at exit"])]
)
def test_an_interrupted_process_ends_at_once(code: int, lines: list[str]) -> None:
    """Nothing that other packages do at the end of the interpreter may change the code."""
    program = f"""
import atexit
from pipeline.cli.interruption import leave
atexit.register(print, "at exit")
print("before")
leave({code})
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout.splitlines()) == (code, lines)


@pytest.mark.parametrize(("ended_by", "code"), [(signal.SIGTERM, 143), (3, 3)])
def test_sigterm_while_ray_starts_has_the_exit_code_of_sigterm(
    ended_by: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own handler stands in for ours meanwhile; the control ends by something else."""
    from ray._private.utils import set_sigterm_handler

    def start(_: str | None) -> None:
        set_sigterm_handler(lambda number, _: sys.exit(number))
        if ended_by != signal.SIGTERM:
            sys.exit(ended_by)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("ray.is_initialized", lambda: False)  # in this process another test has
    monkeypatch.setattr(connect, "_join_or_start", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with signals_raised(), pytest.raises(SystemExit) as ended, connect.connected():
        pass
    assert ended.value.code == code
