"""Every failure a user can meet, in one place: what happened, where, what to do, exit code.

    PipelineError             1  anything below, or a bug
    ├── ConfigError           2  the configuration or the command line is wrong
    ├── DataError             3  source images, shards or manifests are missing, broken or unfit
    ├── StorageError          4  a file or object could not be read or written
    ├── ClusterError          5  the Ray cluster lacks the resources, or could not be reached
    ├── TrainingError         6  training stopped: non-finite loss, starved layer, failed workers
    └── CheckpointError       7  a checkpoint is missing, torn, foreign, or of another configuration

An interrupted process ends with 130 (Ctrl-C) or 143 (SIGTERM).
"""

from __future__ import annotations

from typing import ClassVar


class PipelineError(Exception):
    """A failure told in three parts, ready to print.

    Args:
        what: what happened, one sentence without a final stop.
        where: the key, file, URI or worker concerned.
        todo: the next thing the user should type or change.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        # All three go to Exception.args, so the error survives pickling between Ray processes.
        super().__init__(what, where, todo)
        self.what, self.where, self.todo = what, where, todo

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the three parts: the default would pass them positionally."""
        return _rebuild, (type(self), self.what, self.where, self.todo)

    def __str__(self) -> str:
        """The message as the console shows it: one line per part."""
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.todo:
            lines.append(f"  to do: {self.todo}")
        return "\n".join(lines)


def _rebuild(kind: type[PipelineError], what: str, where: str, todo: str) -> PipelineError:
    return kind(what, where=where, todo=todo)


class ConfigError(PipelineError):
    """The configuration or the command line is wrong."""

    exit_code = 2


class DataError(PipelineError):
    """Source images, shards or manifests are missing, broken or unfit."""

    exit_code = 3


class StorageError(PipelineError):
    """A file or object could not be read or written."""

    exit_code = 4


class ClusterError(PipelineError):
    """The Ray cluster lacks the resources, or could not be reached."""

    exit_code = 5


class TrainingError(PipelineError):
    """Training stopped: non-finite loss, starved layer, failed workers."""

    exit_code = 6


class CheckpointError(PipelineError):
    """A checkpoint is missing, torn, foreign, or of another configuration."""

    exit_code = 7


def told(error: Exception, *, where: str) -> dict[str, str]:
    """An error of a training that no restart cures, as plain values for the driver.

    Args:
        error: one of this project, or of `sdclr`, which is then told as a `TrainingError`.
        where: the run, for errors that name no place.
    """
    # A step that was not finite arrives as a TrainingError that says where its evidence is.
    is_evidence = isinstance(error, TrainingError) and error.__cause__ is not None
    reason = type(error.__cause__ if is_evidence else error).__name__
    if not isinstance(error, PipelineError):
        todo = "change the keys named above and start a new run; the last checkpoint is kept"
        error = TrainingError(str(error), where=where, todo=todo)
    parts = {"what": error.what, "where": error.where, "todo": error.todo}
    return {"kind": type(error).__name__, "reason": reason, **parts}


def root_cause(error: BaseException) -> BaseException:
    """The exception that Ray wrapped, at the end of all wrappings.

    When several workers failed, the one that says most: an error of this project, else one that is
    not merely the loss of the connection to a worker that failed before.
    """
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, PipelineError) and not hasattr(error, "cause"):
            return error  # not one of Ray's wrappings, which are instances of what they wrap
        failures = getattr(error, "worker_failures", None)
        if failures:
            return min((root_cause(failure) for failure in failures.values()), key=_vagueness)
        names = ("_base_exc", "cause", "training_failed_error", "__cause__")
        causes = [getattr(error, name, None) for name in names]
        error = next((c for c in causes if isinstance(c, BaseException)), error)
    return error


def _vagueness(error: BaseException) -> int:
    if isinstance(error, PipelineError):
        return 0
    text = f"{type(error).__name__} {error}".lower()
    return 2 if any(word in text for word in ("gloo", "nccl", "connection")) else 1
