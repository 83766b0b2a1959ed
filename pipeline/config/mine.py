"""Keys of the mine stage: which images of a data set are rare."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.types import Choices, Section

Ratio = Annotated[float, Field(gt=0, lt=1)]


class Mine(Section):
    """Rare images of a data set, and which to have labelled first."""

    score: Literal["disagreement", "knn_distance", "both", "training_loss"] = Field(
        default="knn_distance",
        description="what ranks: distance to the nearest images, change under pruning, the mean of "
        "the two ranks, or the loss in training (train.loss_memory)",
    )
    prune_ratios: Annotated[tuple[Ratio, ...], Choices] = Field(
        default=(0.5, 0.7, 0.9), description="disagreement is averaged over these"
    )
    num_views: int = Field(
        default=4,
        ge=1,
        description="views that disagreement is averaged over; the first is the plain one",
    )
    knn_k: int = Field(default=10, ge=1, description="neighbours whose distance is averaged")
    batch_images: int = Field(
        default=100, ge=1, description="how many images to suggest for annotation"
    )
