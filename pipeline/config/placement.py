"""Keys of where work runs in a cluster of different nodes."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue

from pipeline.config.types import Section, clean_text

ResourceName = Annotated[
    str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$"), AfterValidator(clean_text)
]
_WORDS: dict[str, JsonValue] = {
    "words": "null or 1 to 63 of A-Z a-z 0-9 . _ - that start with a letter"
}


class Placement(Section):
    """Nodes by custom resource, as in ray start --resources='{"train": 1}'."""

    train_resource: ResourceName | None = Field(
        default=None,
        description="resource of the nodes that training workers run on; null = any node",
        json_schema_extra=_WORDS,
    )
    data_resource: ResourceName | None = Field(
        default=None,
        description="resource of the nodes that read, check and decode images; null = any node",
        json_schema_extra=_WORDS,
    )
    wait_s: float = Field(
        default=0.0,
        ge=0,
        description="time that an autoscaler has to add the nodes that a stage needs",
    )
