"""Ctrl-C and SIGTERM as exceptions of the main thread that nothing loses.

Python runs a signal's handler wherever the main thread is: also inside a finalizer or a callback
of a weak reference. What is raised there is printed and dropped, and the program would train on.
Ray Data makes and drops enough objects for that to be the usual case while it runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143
AGAIN_AFTER_S = 0.05
"""Pause before a signal whose exception was dropped is sent again."""


class Terminated(SystemExit):
    """SIGTERM: ends the process with its exit code wherever it is not caught."""


_SIGNALS: dict[type[BaseException], signal.Signals] = {
    Terminated: signal.SIGTERM,
    KeyboardInterrupt: signal.SIGINT,
}


@contextmanager
def signals_raised() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM; send a signal again whose exception Python dropped."""
    on_sigterm, shown = signal.signal(signal.SIGTERM, _terminate), sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        number = _SIGNALS.get(dropped.exc_type)
        if number is None:
            shown(dropped)
            return
        # Raised here it would be dropped as well: from another thread, once this call is over.
        again = threading.Timer(AGAIN_AFTER_S, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = shown
        signal.signal(signal.SIGTERM, on_sigterm)


def how_ended(error: BaseException) -> tuple[str, int]:
    """Return what an interruption is called, and its exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", EXIT_INTERRUPTED
    return "terminated", EXIT_TERMINATED


def leave(code: int) -> NoReturn:
    """End the process; after an interruption at once.

    All is in order then. What the interpreter does at its end is not: a thread that still computes
    aborts it, and Ray may end the process with a code of its own.
    """
    if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated(EXIT_TERMINATED)
