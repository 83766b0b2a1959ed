"""Files of vectors: RUN/embeddings/NAME/embedding.json says whose they are, and of which images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.record.rows import AlarmPart
from pipeline.record.run import DataRef
from pipeline.record.schema import Measured, Part, Record

FILE = "embedding.json"
GIVEN_FILE = "weights.json"
DType = Literal["float32", "float16"]


class VectorShard(Part):
    """One Parquet file of `rows` vectors of `dim` numbers, by the place of its first image."""

    name: str
    first_row: int = Field(ge=0)
    rows: int = Field(ge=1)
    dim: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str


class EmbeddedBy(Part):
    """The frozen network: its name in tables, where its weights were, and their hash."""

    name: str
    uri: str | None
    sha256: str


class PlainView(Part):
    """The one view of an image: short side resized to `resize_px`, then the centre crop."""

    crop_px: int
    resize_px: int | None


class VectorHealth(Part):
    """The spread of a network's vectors over the images of a set, measured without labels.

    Args:
        num_images: that were measured.
        rankme: effective rank, from 1 to the smaller of images and numbers a vector.
        mean_cosine: of two images, in [-1, 1].
        alarms: empty while the network distinguishes the images.
    """

    num_images: int
    rankme: Measured
    mean_cosine: Measured
    alarms: tuple[AlarmPart, ...] = ()


class Embedding(Record):
    """embedding.json; it comes last, so a folder without it is unfinished.

    Args:
        data: the data set.
        set: which of its sets.
        backbone: architecture of the network.
        weights: of the network.
        view: that it saw.
        dtype: of a vector's numbers.
        rows: images in all.
        shards: by the place of their first image.
    """

    schema_version: Literal[1] = 1
    data: DataRef
    set: str
    backbone: str
    weights: EmbeddedBy
    view: PlainView
    dtype: DType
    rows: int = Field(ge=1)
    shards: tuple[VectorShard, ...]

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.shards[0].dim


class GivenWeights(Record):
    """RUN/weights.json: the weights that stand in place of a run's own models, by their URI."""

    schema_version: Literal[1] = 1
    uri: str
