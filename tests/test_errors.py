"""Errors for people: three parts and an exit code, through Ray's wrappings and through pickling."""

from __future__ import annotations

import pickle

import pytest

from pipeline import errors
from pipeline.errors import DataError, PipelineError, root_cause


class Wrapping(Exception):
    """As Ray wraps: the failures of the workers, or one cause."""

    def __init__(self, **parts: object) -> None:
        super().__init__("wrapped")
        self.__dict__.update(parts)


def test_an_error_survives_the_way_between_processes() -> None:
    error = DataError("E-DATA-999", "what", where="where", todo="todo")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is DataError
    assert (again.what, again.where, again.todo) == ("what", "where", "todo")
    assert str(again) == "what [E-DATA-999]\n  where: where\n  to do: todo"


@pytest.mark.promise("O2")
def test_exit_codes_are_distinct() -> None:
    kinds = [
        k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, PipelineError)
    ]
    assert sorted(k.exit_code for k in kinds) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.promise("O2", control=True)
def test_an_exception_that_is_none_of_ours_is_called_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import run

    def broken(*_: object) -> int:
        raise ZeroDivisionError("somewhere")

    monkeypatch.setattr(run, "_run", broken)
    assert run.main(["train"]) == 1
    said = capsys.readouterr().err
    assert "error: this is a bug" in said and "ZeroDivisionError: somewhere" in said


@pytest.mark.parametrize("name", ["cause", "_base_exc", "training_failed_error"])
def test_the_root_is_found_below_any_wrapping(name: str) -> None:
    root = DataError("E-DATA-999", "broken")
    assert root_cause(Wrapping(**{name: Wrapping(cause=root)})) is root
    plain = ValueError("alone")
    assert root_cause(plain) is plain
    loop = Wrapping()
    loop.cause = loop  # type: ignore[attr-defined]
    assert root_cause(loop) is loop


@pytest.mark.promise("R18")
def test_of_several_workers_the_one_that_says_most_is_heard() -> None:
    lost = RuntimeError("[gloo] Connection closed by peer [127.0.0.1]")
    bug, ours = KeyError("x"), DataError("E-DATA-999", "broken shard")
    assert root_cause(Wrapping(worker_failures={0: lost, 1: bug})) is bug
    failures = {0: lost, 1: bug, 2: Wrapping(cause=ours)}
    assert root_cause(Wrapping(worker_failures=failures)) is ours
    assert root_cause(Wrapping(worker_failures={0: lost})) is lost
