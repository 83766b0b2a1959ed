"""Log a run to a tracker: once, or for as long as the run goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.record.metrics import read_metrics
from pipeline.record.run import RUNNING, Run
from pipeline.track.points import pictures, points
from pipeline.track.trackers import Seen, Tracker, opened

POLL_S = 5.0


class Log:
    """The way of one run into one tracker.

    Args:
        run_uri: folder of the run.
        tracker: of that run.
    """

    def __init__(self, run_uri: str, tracker: Tracker) -> None:
        self._uri, self._tracker = run_uri, tracker
        self._seen: dict[str, Seen] = {}

    def update(self) -> int:
        """Add what the tracker does not have yet, and return how much that was."""
        added, last_step = 0, dict[str, int]()
        for point in points(read_metrics(self._uri)):
            last_step[point.method] = max(point.step, last_step.get(point.method, 0))
            if self._is_new(point.method, point.kind, point.step):
                self._tracker.write(point)
                added += 1
        for picture in pictures(self._uri, last_step):
            if self._is_new(picture.method, picture.name, picture.step):
                self._tracker.show(picture)
                added += 1
        self._tracker.flush()
        return added

    def _is_new(self, method: str, kind: str, step: int) -> bool:
        if method not in self._seen:
            self._seen[method] = self._tracker.seen(method)
        is_new = (kind, step) not in self._seen[method]
        self._seen[method].add((kind, step))
        return is_new


def log_run(
    run_uri: str,
    name: str,
    *,
    follow: bool = False,
    stop: threading.Event | None = None,
    poll_s: float = POLL_S,
) -> tuple[int, str]:
    """Log a run, and return how many points and pictures were new, and where they are.

    Args:
        run_uri: folder of the run, local or s3://.
        name: tensorboard, mlflow or wandb.
        follow: go on until the run is no longer running.
        stop: ends the following as well, after a last look.
        poll_s: time between two looks.

    Raises:
        ConfigError: the tracker's package is not installed.
        DataError, StorageError: the run's record cannot be read.
    """
    stop = stop or threading.Event()
    tracker = opened(name, run_uri.rstrip("/").rpartition("/")[2])
    try:
        log, added = Log(run_uri, tracker), 0
        while True:
            is_last = not follow or stop.is_set() or not _is_running(run_uri)
            added += log.update()
            if is_last:
                return added, tracker.where
            stop.wait(poll_s)
    finally:
        tracker.close()


def _is_running(run_uri: str) -> bool:
    return Run.read(storage.join(run_uri, "run.json")).status == RUNNING


@contextmanager
def following(
    run_uri: str, names: Sequence[str], warn: Callable[[str], None], *, poll_s: float = POLL_S
) -> Iterator[None]:
    """Log a run from beside its driver; a tracker that fails is warned of and ends nothing.

    Args:
        run_uri: folder of the run, which exists.
        names: of the trackers.
        warn: shows a line to the user.
        poll_s: time between two looks.
    """
    stop = threading.Event()

    def work(name: str) -> None:
        try:
            log_run(run_uri, name, follow=True, stop=stop, poll_s=poll_s)
        except PipelineError as error:
            warn(f"{name}: {error}")
        except Exception as error:  # a tracker may raise anything: the run is worth more
            warn(f"{name}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
