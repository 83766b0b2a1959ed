"""Graceful stop: the driver asks for a checkpoint through storage, a worker answers.

    RUN/stop.json       written by the driver when it gets SIGTERM or Ctrl-C
    RUN/stopped.json    written by the first worker, once a checkpoint is committed

Storage is what both are sure to share: no process has to be found, and nothing else must be up.
A cloud that takes a spot instance back says so beforehand too: `Notices` asks Ray Train about it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.record.schema import Record

if TYPE_CHECKING:
    from ray.train import PreemptionInfo

_POLL_S, _POLL_REMOTE_S = 0.25, 2.0


class Stopped(Record):
    """The checkpoint that was committed on request."""

    schema_version: Literal[1] = 1
    method: str
    step: int


def clear(run_uri: str) -> None:
    """Forget an old request; call it before the workers start."""
    for name in ("stop.json", "stopped.json"):
        storage.delete_tree(storage.join(run_uri, name))


def is_asked(run_uri: str) -> bool:
    """Return whether somebody asked for a checkpoint, and the request was not cleared."""
    return storage.exists(storage.join(run_uri, "stop.json"))


def ask(
    run_uri: str, *, grace_s: float, is_over: Callable[[], bool] = lambda: False
) -> Stopped | None:
    """Ask the workers for a checkpoint and wait for it.

    Args:
        run_uri: of the run.
        grace_s: how long to wait.
        is_over: whether the training has ended, so that nobody will answer.

    Returns:
        The committed checkpoint; None when none came within `grace_s`, or before the end.

    Raises:
        StorageError: the request cannot be written.
    """
    end_s = time.monotonic() + grace_s
    storage.write_bytes(storage.join(run_uri, "stop.json"), b"{}\n")
    answer_uri = storage.join(run_uri, "stopped.json")
    while time.monotonic() < end_s:
        with suppress(PipelineError):
            if storage.exists(answer_uri):
                return Stopped.read(answer_uri)
        if is_over():
            return None
        time.sleep(_poll_s(run_uri))
    return None


class DriverEndsError(Exception):
    """End of a training in the driver's process on request, its checkpoint committed."""


class StopWatch:
    """Thread that polls for the request; use as a context manager."""

    def __init__(self, run_uri: str) -> None:
        self._run_uri = run_uri
        self._asked, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    @property
    def is_asked(self) -> bool:
        """Whether the run is to end, and nobody has answered yet."""
        return self._asked.is_set()

    def answer(self, *, method: str, step: int) -> None:
        """Say which step is safe; `is_asked` is false from then on."""
        self._asked.clear()
        Stopped(method=method, step=step).write(storage.join(self._run_uri, "stopped.json"))

    def _look(self) -> None:
        while not self._closed.wait(_poll_s(self._run_uri)):
            with suppress(PipelineError):  # storage that fails now is asked again
                if is_asked(self._run_uri):
                    self._asked.set()
                    return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._closed.set()


class Notices:
    """Notices that a node is about to be taken away; every rank asks at the same steps.

    Args:
        every_steps: how often Ray Train is asked, which takes the time of a broadcast; None =
            never, since this is no run of Ray Train.
    """

    def __init__(self, every_steps: int | None) -> None:
        self._every_steps = every_steps
        self._known: PreemptionInfo | None = None

    def is_new(self, step: int) -> bool:
        """Return whether there is a new notice."""
        import ray.train

        if self._every_steps is None or step % self._every_steps:
            return False
        notice = ray.train.get_preemption_info()
        is_new = notice is not None and notice != self._known
        self._known = notice
        return is_new


def _poll_s(uri: str) -> float:
    return _POLL_REMOTE_S if uri.startswith("s3://") else _POLL_S
