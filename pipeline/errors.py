"""Every failure a user can meet, in one place: id, what happened, where, what to do, exit code.

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

import json
from dataclasses import asdict, dataclass
from typing import ClassVar


class PipelineError(Exception):
    """A failure in three parts, ready to print, with the stable id of its cause.

    Args:
        id: `E-KIND-NUMBER`, one for each cause; docs/troubleshooting.md lists it with its
            fix. Texts may be reworded, the id stays: tests and alerts match it.
        what: what happened, a fact, without a final stop.
        where: the key, file, URI or worker concerned.
        todo: the next thing that the user should type or change.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, id: str, what: str, *, where: str = "", todo: str = "") -> None:
        # All parts go to Exception.args, so the error survives pickling between Ray processes.
        super().__init__(id, what, where, todo)
        self.id, self.what, self.where, self.todo = id, what, where, todo

    def __reduce__(self) -> tuple[object, ...]:
        """Rebuild from the parts: the default would pass them positionally."""
        return _rebuild, (type(self), self.id, self.what, self.where, self.todo)

    def __str__(self) -> str:
        """Format the message for the console: one line per part."""
        lines = [f"{self.what} [{self.id}]"]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.todo:
            lines.append(f"  to do: {self.todo}")
        return "\n".join(lines)


def _rebuild(kind: type[PipelineError], id: str, what: str, where: str, todo: str) -> PipelineError:
    return kind(id, what, where=where, todo=todo)


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


@dataclass(frozen=True)
class ErrorReport:
    """An error as plain values: for the driver, another process or a record.

    Attributes:
        kind: name of the class, such as `DataError`.
        id: of the cause.
        what, where, todo: as in `PipelineError`.
        exit_code: of the kind.
    """

    kind: str
    id: str
    what: str
    where: str
    todo: str
    exit_code: int

    @classmethod
    def of(
        cls,
        error: BaseException,
        *,
        where: str = "",
        todo: str = "change the keys named above and start a new run; the last checkpoint is kept",
    ) -> ErrorReport:
        """Return the report of an error; one of `sdclr` becomes a `TrainingError`.

        Args:
            error: any.
            where: the run or trial, for errors that name no place.
            todo: for errors that are not of this project.
        """
        if not isinstance(error, PipelineError):
            error = TrainingError("E-TRAIN-000", str(error), where=where, todo=todo)
        kind = type(error).__name__
        return cls(kind, error.id, error.what, error.where, error.todo, error.exit_code)

    def error(self) -> PipelineError:
        """Return the error again, of its own kind."""
        kinds = {kind.__name__: kind for kind in PipelineError.__subclasses__()}
        kind = kinds.get(self.kind, PipelineError)
        return kind(self.id, self.what, where=self.where, todo=self.todo)

    def to_json(self) -> str:
        """Return one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ErrorReport:
        """Return the report that `to_json` wrote."""
        return cls(**json.loads(text))


def reason_of(error: Exception) -> str:
    """Return the class that best names why a training stopped, for the gauge of stops."""
    # A step that was not finite arrives as a TrainingError that says where its evidence is.
    is_evidence = isinstance(error, TrainingError) and error.__cause__ is not None
    return type(error.__cause__ if is_evidence else error).__name__


def root_cause(error: BaseException) -> BaseException:
    """Return the exception that Ray wrapped, at the end of all wrappings.

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
    return 2 if is_broken_connection(error) else 1


def is_broken_connection(error: BaseException) -> bool:
    """Return whether an error is, by its words, that a worker lost the connection to another."""
    text = f"{type(error).__name__} {error}".lower()
    return any(word in text for word in ("gloo", "nccl", "connection"))
