"""Keys of the label-free measures that are taken during training."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.types import Section


class Health(Section):
    """Measures of the features that need no labels."""

    every_epochs: int = Field(
        default=20,
        ge=1,
        description="epochs between two checks; also before training and at its end",
    )
