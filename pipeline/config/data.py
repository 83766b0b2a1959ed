"""Keys of the data: source images, their way into shards, and from shards to batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline.config.types import GIB, KIB, MIB, Place, Places, Section, Text

Source = Literal["digits", "cifar10", "cifar100", "folder", "list", "parquet", "webdataset"]
_NEEDS_PATH = ("folder", "list", "parquet", "webdataset")


class Sets(Section):
    """Files that name the images of a set."""

    pretrain: Place | None = None
    probe: Place | None = None
    val: Place | None = None
    test: Place | None = None
    fewshot: Places = ()

    @property
    def given(self) -> tuple[str, ...]:
        """The sets that a file names."""
        return tuple(name for name in type(self).model_fields if getattr(self, name))


class Data(Section):
    """Source images, and the long-tailed set made of them."""

    source: Source = Field(
        default="digits",
        description="digits: scikit-learn's handwritten digits, upscaled to 16 px, no download; "
        "folder: image files, flat (unlabelled) or one folder per class; list: a .csv, .tsv or "
        ".txt file of path[,label]; parquet: tables with a column of image bytes; webdataset: "
        "tar files",
    )
    download: bool = Field(default=False, description="fetch CIFAR when data.path lacks it")
    path: Place | None = Field(
        default=None,
        description="where the source images are, local or s3://; needed by all but digits and "
        "CIFAR with download",
    )
    root: Place = Field(default="data", description="where shards go: local path or s3:// URI")
    imbalance_ratio: Annotated[float, Field(ge=1)] | Literal["auto"] | None = Field(
        default="auto",
        description="most over least frequent class of the long tail that is drawn; null = none is "
        "drawn, counts stay as they are; auto = 50 for digits, null for all else",
    )
    num_max: int | None = Field(
        default=None, ge=1, description="images of the most frequent class; null = all there are"
    )
    profile: Literal["exponential", "pareto"] = Field(
        default="exponential", description="how class counts fall from the first to the last rank"
    )
    balanced_twin: bool = Field(
        default=False,
        description="draw as many images of every class instead, as many in all as the long tail "
        "would have; what it trains shows whether there is a deficit of rare classes to repair",
    )
    split_seed: int = Field(
        default=0, ge=0, lt=2**31, description="draws the order of classes and their images"
    )
    sets: Sets = Field(
        default=Sets(),
        description="files that name the images of a set, in place of a draw. cifar10, cifar100: "
        "indices as .npy, .txt or .json for pretrain, probe, val and fewshot (one file per draw). "
        "list: files like data.path for val and test",
        json_schema_extra={
            "words": "a mapping of pretrain, probe, val and test to a file, and of fewshot to a "
            "list of files"
        },
    )
    num_test_per_class: int | None = Field(
        default=None, ge=1, description="for sources without a test set; null = the source decides"
    )
    num_val_per_class: int | None = Field(
        default=None,
        ge=1,
        description="labelled images set aside to tune on; null = none, or those of data.sets",
    )
    labelled: bool | None = Field(
        default=None, description="false = ignore labels; null = seen from the source's layout"
    )
    image_root: Place | None = Field(
        default=None, description="list only: where its paths start; null = the list's own folder"
    )
    image_column: Text = Field(
        default="image",
        description="parquet: column of image bytes, such as image.bytes; list: of paths",
    )
    label_column: Text | None = Field(
        default=None, description="parquet, list: column of class numbers or names"
    )

    @property
    def drawn_imbalance(self) -> float | None:
        """`imbalance_ratio` with `auto` resolved."""
        if self.imbalance_ratio != "auto":
            return self.imbalance_ratio
        return 50.0 if self.source == "digits" else None

    @field_validator("path")
    @classmethod
    def _path_fits_source(cls, path: str | None, info: ValidationInfo) -> str | None:
        source, download = info.data.get("source"), info.data.get("download")
        if source == "digits" and path is not None:
            raise ValueError("has no use with data.source = digits; set data.source as well")
        if source in _NEEDS_PATH and path is None:
            raise ValueError(f"is needed with data.source = {source}")
        if source in ("cifar10", "cifar100") and path is None and download is False:
            raise ValueError(f"is needed with data.source = {source}, or set data.download = true")
        return path


class Ingest(Section):
    """From source images to verified shards."""

    shard_bytes: int = Field(default=64 * MIB, ge=64 * KIB, description="size of a shard, about")
    max_reject_frac: float = Field(
        default=0.001, ge=0, le=1, description="rejected images above this fraction fail the stage"
    )
    resize_short_px: int | None = Field(
        default=None,
        ge=8,
        description="photos with a longer short side are reduced to it once and stored as JPEG; "
        "null = the files' own bytes are stored",
    )
    drop_duplicates: bool = Field(
        default=False, description="keep one of several images with the same bytes"
    )


class Feed(Section):
    """From shards to batches."""

    canvas_px: int | None = Field(
        default=None,
        ge=8,
        description="square that photographs are reduced to fit when decoded; null = 1.5 times the "
        "short side of evaluation, so 384 for augment.crop_px = 224",
    )
    cache: Literal["auto", "device", "host", "none"] = Field(
        default="auto",
        description="keep the decoded set on the device or the host, or stream it every epoch "
        "(none); auto: keep it if it fits feed.max_memory_bytes",
    )
    max_memory_bytes: int = Field(
        default=2 * GIB, ge=MIB, description="memory that images may take on a node"
    )
