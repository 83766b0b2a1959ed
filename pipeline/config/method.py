"""Keys of the method: network, objectives, views."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline.config.types import Pair, Section

_SMALL_STEM = ("resnet", "resnext", "densenet")
"""Families whose first layers are a 7x7 convolution and a max-pool."""


def ordered(
    section: type[Section], key: str, pair: tuple[float, float], *, highest: float = math.inf
) -> tuple[float, float]:
    """Return a pair above 0 with the least first, or raise ValueError in the key's words."""
    least, most = pair
    if not 0 < least <= most <= highest:
        words = section.model_json_schema()["properties"][key]["words"]
        raise ValueError(f"expected {words}, got [{least:g}, {most:g}]")
    return pair


class Model(Section):
    """The network."""

    backbone: Annotated[str, Field(pattern=r"^(timm/)?[A-Za-z0-9_.-]{1,100}$")] = Field(
        default="resnet8",
        description="without its classifier; docs/backbones.md says what is pruned in which",
        json_schema_extra={
            "words": "resnet8, a classification network of torchvision, or timm/NAME with timm "
            "installed"
        },
    )
    stem: Literal["cifar", "imagenet"] = Field(
        default="cifar",
        description="cifar: 3x3 stride 1, no max-pool; imagenet: 7x7 stride 2, max-pool",
    )
    embedding_dim: int = Field(default=128, ge=2, description="output of the projection head")

    @field_validator("stem")
    @classmethod
    def _stem_fits_backbone(cls, stem: str, info: ValidationInfo) -> str:
        backbone = info.data.get("backbone")
        if stem == "cifar" and backbone and not any(name in backbone for name in _SMALL_STEM):
            raise ValueError(f"expected imagenet with model.backbone = {backbone}, got cifar")
        return stem


class SDCLR(Section):
    """The self-damaging method (Jiang et al. 2021)."""

    prune_ratio: float = Field(
        default=0.9, ge=0, le=1, description="fraction of prunable weights the twin lacks"
    )
    temperature: float = Field(default=0.2, gt=0, le=10, description="of NT-Xent")
    head_depth: int = Field(default=2, ge=2, le=3, description="linear layers of the head")
    scope: Literal["global", "layerwise"] = Field(
        default="global", description="one magnitude threshold for all layers, or one for each"
    )
    exclude_stem: bool = Field(default=False, description="leave the first convolution whole")
    random_ratio: float = Field(
        default=0.0, ge=0, le=1, description="part of prune_ratio that is drawn at random"
    )
    refresh_epochs: float = Field(
        default=1.0, gt=0, description="between two masks; 0.5 = twice an epoch; at least one step"
    )
    dual_norm: bool = Field(
        default=True, description="norms of its own for the pruned branch; false = shared"
    )

    @field_validator("random_ratio")
    @classmethod
    def _random_part(cls, ratio: float, info: ValidationInfo) -> float:
        whole = info.data.get("prune_ratio")
        if whole is not None and ratio > whole:
            raise ValueError(f"expected at most sdclr.prune_ratio = {whole}, got {ratio}")
        return ratio


class SimCLR(Section):
    """The baseline (Chen et al. 2020)."""

    temperature: float = Field(default=0.2, gt=0, le=10, description="of NT-Xent")
    head_depth: int = Field(default=2, ge=2, le=3, description="linear layers of the head")


class TS(Section):
    """The temperature schedule of simclr-ts and sdclr-ts (Kukleva et al. 2023)."""

    temperature: Pair = Field(
        default=(0.1, 1.0),
        description="between which it swings, in place of the method's own; high at the start",
        json_schema_extra={"words": "two numbers > 0, the least first"},
    )
    period_epochs: float | None = Field(
        default=None, gt=0, description="from high to low and back; null = a fifth of the run"
    )

    @field_validator("temperature")
    @classmethod
    def _in_order(cls, pair: tuple[float, float]) -> tuple[float, float]:
        return ordered(cls, "temperature", pair)


class BCL(Section):
    """The boosted views of bcl-i and bcl-d (Zhou et al. 2022)."""

    operations: int = Field(
        default=1, ge=0, le=11, description="RandAugment's, on top of each view of a hard image"
    )
    strength: float = Field(default=1.0, ge=0, le=1, description="the largest magnitude of them")


class Augment(Section):
    """The two random views of an image."""

    crop_px: int | None = Field(
        default=None, ge=4, description="side of a view; null = side of the stored images"
    )
    crop_scale: Pair = Field(
        default=(0.4, 1.0),
        description="area of the crop as a fraction of the image",
        json_schema_extra={"words": "two numbers in (0, 1], the least first"},
    )
    crop_ratio: Pair = Field(
        default=(0.75, 4 / 3),
        description="width / height of the crop",
        json_schema_extra={"words": "two numbers > 0, the least first"},
    )
    hflip_prob: float = Field(default=0.0, ge=0, le=1, description="mirror left and right")
    jitter_prob: float = Field(default=0.8, ge=0, le=1, description="of the four that follow")
    brightness: float = Field(default=0.4, ge=0, le=1, description="factor 1 +- this")
    contrast: float = Field(default=0.4, ge=0, le=1, description="factor 1 +- this")
    saturation: float = Field(default=0.0, ge=0, le=1, description="factor 1 +- this")
    hue: float = Field(default=0.0, ge=0, le=0.5, description="shift +- this, in turns")
    gray_prob: float = Field(default=0.0, ge=0, le=1, description="drop the colours")
    blur_prob: float = Field(default=0.0, ge=0, le=1, description="Gaussian blur")
    blur_sigma: Pair = Field(
        default=(0.1, 2.0),
        description="sigma of the blur, px",
        json_schema_extra={"words": "two numbers > 0, the least first"},
    )

    @field_validator("crop_scale", "crop_ratio", "blur_sigma")
    @classmethod
    def _in_order(cls, pair: tuple[float, float], info: ValidationInfo) -> tuple[float, float]:
        highest = 1.0 if info.field_name == "crop_scale" else math.inf
        return ordered(cls, str(info.field_name), pair, highest=highest)
