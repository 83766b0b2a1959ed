"""Checkpoints written beside the training: a step waits for the copy off the device, not for disks.

One checkpoint is being written at a time. A failure of the writing is raised by the next call, in
the thread that trains, and no call waits longer than the deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from pipeline.errors import StorageError
from pipeline.model import checkpoint
from pipeline.record.gauges import Monitor
from sdclr import TrainState


class CheckpointWriter:
    """Writer of states to one folder; use as a context manager.

    Args:
        folder_uri: the checkpoints of one method of a run.
        config_hash: ties them to the configuration.
        keep: how many of the newest are kept.
        keep_every_steps: those at multiples of it are kept as well; None = none.
        keep_best: the one whose measure of this name is highest is kept as well; None = none.
        deadline_s: how long any call may wait for the storage.
        before_commit: called in the writing thread first; what the checkpoint must not be ahead of.
        monitor: gets the time of each checkpoint, and failures.
    """

    def __init__(
        self,
        folder_uri: str,
        *,
        config_hash: str,
        keep: int,
        keep_every_steps: int | None = None,
        keep_best: str | None = None,
        deadline_s: float,
        before_commit: Callable[[], None] = lambda: None,
        monitor: Monitor | None = None,
    ) -> None:
        self._folder_uri, self._config_hash = folder_uri, config_hash
        self._keep, self._keep_every_steps, self._keep_best = keep, keep_every_steps, keep_best
        self._deadline_s, self._before_commit = deadline_s, before_commit
        self._monitor = monitor
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._step = -1
        self.saved_at_s = time.monotonic()

    @property
    def is_busy(self) -> bool:
        """Whether `save` would wait."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, state: TrainState, measures: Mapping[str, float | None] | None = None) -> None:
        """Begin to write a state, once the one before is written; `measures` as `checkpoint.save`.

        Raises:
            StorageError: the one before failed, or is not written within the deadline.
        """
        self.wait()
        self._step, self.saved_at_s = int(state.numbers["step"]), time.monotonic()
        # A daemon: storage that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._write, args=(state, measures), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when everything is committed.

        Raises:
            StorageError: the writing failed, or takes longer than the deadline.
        """
        if self._thread is not None:
            self._thread.join(self._deadline_s)
            if self._thread.is_alive():
                raise StorageError(
                    "E-STORAGE-004",
                    f"the checkpoint of step {self._step} is not written after "
                    f"{self._deadline_s:g} s",
                    where=self._folder_uri,
                    todo="check whether the storage answers, and how fast it writes",
                )
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _write(self, state: TrainState, measures: Mapping[str, float | None] | None) -> None:
        start_s = time.monotonic()
        try:
            self._before_commit()
            checkpoint.save(
                self._folder_uri, state, config_hash=self._config_hash, measures=measures
            )
            checkpoint.retain(
                self._folder_uri,
                self._keep,
                newest_step=self._step,
                keep_every_steps=self._keep_every_steps,
                keep_best=self._keep_best,
            )
            if self._monitor is not None:
                self._monitor.checkpoint(time.monotonic() - start_s)
        except BaseException as error:  # kept for the thread that trains
            self._failure = error
            if self._monitor is not None:
                self._monitor.add("sdclr_checkpoint_failures")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait()
            return
        with suppress(Exception):  # the first error is the one to report
            self.wait()
