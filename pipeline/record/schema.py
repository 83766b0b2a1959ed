"""Base of every JSON record on storage: frozen, versioned, read and written in one way.

A record is a subclass with its fields and its own `schema_version`:

    class Evaluation(Record):
        schema_version: Literal[2] = 2
        seed: int
        all: Measured

Fields are checked when a record is made and when it is read. Nothing has been released, so a record
of another version is refused, not converted.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from pipeline import storage
from pipeline.errors import DataError

_MAX_SHOWN = 3


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# A number that may be unknown: NaN and infinities, which JSON lacks, become None.
Measured = Annotated[float | None, BeforeValidator(_finite)]


class Part(BaseModel):
    """A frozen piece of a record: no field unknown, no type converted, every `float` finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Record(Part):
    """One JSON file on storage."""

    schema_version: int

    @classmethod
    def read(cls, uri: str) -> Self:
        """Return the checked record at `uri`.

        Raises:
            DataError: missing, not a JSON object, of another version, or malformed.
            StorageError: the storage does not answer or denies access.
        """
        if not storage.exists(uri):
            raise DataError(
                "E-DATA-085",
                "the record is missing",
                where=uri,
                todo="check the run's name and run.root",
            )
        data = storage.read_bytes(uri)
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DataError(
                "E-DATA-086",
                f"the record is not JSON ({error})",
                where=uri,
                todo="restore the file from a backup",
            ) from None
        expected = cls.model_fields["schema_version"].default
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != expected or isinstance(version, bool):
            raise DataError(
                "E-DATA-087",
                f"the record has schema_version {version!r:.40}, this program reads {expected}",
                where=uri,
                todo="read it with the version of this program that wrote it",
            )
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise DataError(
                "E-DATA-100",
                f"the record is malformed: {problems(error)}",
                where=uri,
                todo="restore the file from a backup",
            ) from None

    @classmethod
    def find(cls, uri: str) -> Self | None:
        """Return the record at `uri`, or None when there is none; raises as `read`."""
        return cls.read(uri) if storage.exists(uri) else None

    def write(self, uri: str) -> None:
        """Publish the record, whole or not at all; NaN and infinities become null."""
        storage.write_bytes(uri, storage.to_json(self.content(), indent=1))

    def content(self) -> dict[str, Any]:
        """Return the record as plain values, as it is written."""
        return self.model_dump()


def problems(error: ValidationError) -> str:
    """Return the first problems of a validation in one line: place and reason of each."""
    found = [
        f"{'.'.join(str(part) for part in problem['loc']) or 'record'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False)
    ]
    more = f"; {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
    return "; ".join(found[:_MAX_SHOWN]) + more
