"""Records on storage: one way to read and write, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from pipeline.errors import DataError
from pipeline.record.schema import Measured, Part, Record


class Score(Part):
    few: Measured
    names: tuple[str, ...] = ()


class Example(Record):
    schema_version: Literal[3] = 3
    seed: int
    scores: tuple[Score, ...]
    loss: float = 0.0


EXAMPLE = Example(seed=1, scores=(Score(few=0.5, names=("a", "ü\udce4")), Score(few=math.nan)))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    uri = str(tmp_path / "example.json")
    record = EXAMPLE.model_copy(update={"scores": EXAMPLE.scores[1:]})
    record.write(uri)
    assert Example.read(uri) == record == Example.find(uri)
    record.model_copy(update={"seed": 2}).write(uri)
    assert Example.read(uri) != record  # the comparison can fail


def test_what_is_not_finite_is_null_on_storage(tmp_path: Path) -> None:
    uri = tmp_path / "example.json"
    EXAMPLE.write(str(uri))
    assert json.loads(uri.read_text())["scores"][1]["few"] is None
    assert EXAMPLE.scores[1].few is None  # and in memory the same
    with pytest.raises(ValidationError):  # a number that must be known
        Example(seed=1, scores=(), loss=math.inf)


WHOLE = {"schema_version": 3, "seed": 1, "scores": []}


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("{", "E-DATA-086"),
        ("[" * 100_000, "E-DATA-086"),
        ("\udc80", "E-DATA-086"),
        ("[]", "E-DATA-087"),
        ('{"seed": 1, "scores": []}', "E-DATA-087"),
        (json.dumps(WHOLE | {"schema_version": 2}), "E-DATA-087"),
        (json.dumps(WHOLE | {"schema_version": True}), "E-DATA-087"),
        (json.dumps(WHOLE | {"schema_version": "3"}), "E-DATA-087"),
        (json.dumps(WHOLE | {"seed": "1"}), "E-DATA-100"),
        (json.dumps(WHOLE | {"more": 1}), "E-DATA-100"),
        (json.dumps(WHOLE | {"loss": math.nan}), "E-DATA-100"),
        (json.dumps({"schema_version": 3, "seed": 1}), "E-DATA-100"),
    ],
)
def test_what_is_no_such_record_is_refused_by_its_place(tmp_path: Path, text: str, id: str) -> None:
    uri = tmp_path / "example.json"
    uri.write_bytes(text.encode("utf-8", "surrogateescape"))
    for read in (Example.read, Example.find):
        with pytest.raises(DataError) as caught:
            read(str(uri))
        assert (caught.value.id, caught.value.where) == (id, str(uri))


def test_a_missing_record_is_refused_or_absent(tmp_path: Path) -> None:
    uri = str(tmp_path / "example.json")
    assert Example.find(uri) is None
    with pytest.raises(DataError) as caught:
        Example.read(uri)
    assert caught.value.id == "E-DATA-085"


def test_a_record_does_not_change(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        EXAMPLE.seed = 2  # type: ignore[misc]
