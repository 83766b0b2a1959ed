"""Facts of an exported backbone: what the metadata of its files and its model card say."""

from __future__ import annotations

import json

from pipeline.record.evaluation import Score
from pipeline.record.schema import Part
from sdclr.twin import IMAGENET_MEAN, IMAGENET_STD

_OF_SCORES_LEFT_OUT = {"scores": {"__all__": {"per_class", "group_confusion"}}}


class Facts(Part):
    """Origin, input and scores of one backbone.

    Args:
        architecture, stem: of the backbone, as in `model.backbone` and `model.stem`.
        method: that trained it.
        crop_px: side of its input.
        resize_px: short side before the crop; None when the crop is all.
        seed, config_hash: of the run.
        data_name, data_hash: of the data set.
        pretrain_images: number of images in the pre-training set.
        step, epochs: that it was trained for.
        versions: of the packages that made it; None where one is absent.
        scores: of this checkpoint; empty when it was not evaluated.
        scored_on: the held-out set of the scores; None without any.
        alarms: of the training, in words; empty for a network that learned.
        input_mean, input_std: of the three channels, for an input in [0, 1].
    """

    architecture: str
    stem: str
    method: str
    crop_px: int
    resize_px: int | None
    seed: int
    config_hash: str
    data_name: str
    data_hash: str
    pretrain_images: int
    step: int
    epochs: int
    versions: dict[str, str | None]
    scores: tuple[Score, ...] = ()
    scored_on: str | None = None
    alarms: tuple[str, ...] = ()
    input_mean: tuple[float, float, float] = IMAGENET_MEAN
    input_std: tuple[float, float, float] = IMAGENET_STD

    def metadata(self, key_names: str) -> str:
        """Write the facts as JSON with sorted keys; scores without their values by class.

        Args:
            key_names: whose names the tensors of the file have.
        """
        content = self.model_dump(mode="json", exclude=_OF_SCORES_LEFT_OUT)
        return json.dumps(content | {"key_names": key_names}, sort_keys=True)
