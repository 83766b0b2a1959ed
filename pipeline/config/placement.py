"""Keys of where work runs in a cluster of different nodes."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue

from pipeline.config.types import Section, clean_text

_NAME = r"[A-Za-z][A-Za-z0-9_.-]{0,62}"
Mark = Annotated[
    str,
    Field(
        pattern=rf"^{_NAME}$|^([A-Za-z0-9.-]{{1,253}}/)?{_NAME}=[A-Za-z0-9][A-Za-z0-9_.-]{{0,62}}$"
    ),
    AfterValidator(clean_text),
]
_WORDS: dict[str, JsonValue] = {"words": "null, a label such as ray.io/market-type=spot, or the "
                                "name of a custom resource such as train"}  # fmt: skip


class Placement(Section):
    """Nodes by a label of Ray, or by a custom resource: ray start --resources='{"train": 1}'."""

    train_nodes: Mark | None = Field(
        default=None,
        description="nodes that training workers run on; null = any node",
        json_schema_extra=_WORDS,
    )
    data_nodes: Mark | None = Field(
        default=None,
        description="nodes that read, check and decode images; null = any node",
        json_schema_extra=_WORDS,
    )
    wait_s: float = Field(
        default=0.0,
        ge=0,
        description="time that an autoscaler has to add the nodes that a stage needs",
    )
