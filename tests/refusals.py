"""Refusals as tests look for them: by the id of the cause and by facts, never by wording."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipeline.config import Config
from pipeline.config.file import parse_config
from pipeline.errors import ConfigError, PipelineError


@contextmanager
def raises(
    ids: str | tuple[str, ...], *facts: str
) -> Iterator[pytest.ExceptionInfo[PipelineError]]:
    """Expect an error with one of these ids, which names these facts.

    Args:
        ids: `E-KIND-NUMBER`, or several where the cause depends on the case.
        facts: keys, paths, names and figures that occur in the message as words of their own.
    """
    with pytest.raises(PipelineError) as caught:
        yield caught
    assert_refusal(caught.value, ids, *facts)


def assert_refusal(error: BaseException, ids: str | tuple[str, ...], *facts: str) -> None:
    """Check the id of an error that was caught elsewhere, and the facts that it names."""
    assert isinstance(error, PipelineError), repr(error)
    assert error.id in ((ids,) if isinstance(ids, str) else ids), str(error)
    missing = [fact for fact in facts if not says(str(error), fact)]
    assert not missing, f"{missing} not in: {error}"


def says(text: str, fact: str) -> bool:
    """Whether a fact occurs in a text, not as a part of a longer word or number."""
    return re.search(rf"(?<![\w.]){re.escape(fact)}(?!\w|\.\d)", text) is not None


def refusal(text: str | None = None, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, origin="my.yaml", overrides=overrides)
    return caught.value


def lines(text: str | None = None, *overrides: str) -> list[str]:
    return refusal(text, *overrides).what.splitlines()


def with_overrides(*overrides: str) -> Config:
    return parse_config(None, origin="", overrides=overrides)
