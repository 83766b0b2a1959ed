"""Records that have no class of their own yet: any JSON object with `schema_version` 1."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict

from pipeline.record.schema import Record


class _Untyped(Record):
    model_config = ConfigDict(extra="allow", strict=False)

    schema_version: Literal[1] = 1


def read_json(uri: str) -> dict[str, Any]:
    """Return the content of a record file; raises as `Record.read`."""
    return _Untyped.read(uri).model_dump()
