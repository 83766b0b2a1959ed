"""Actor of the mine stage: what pruning changes in the embedding of an image.

Shapes: n rows of one shard, B images of one forward pass, R prune ratios, V views.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Config
from pipeline.dataset.decoding import Columns
from pipeline.embed.features import BATCH_IMAGES
from pipeline.errors import ConfigError
from pipeline.model import build
from pipeline.model.source import UNTRAINED, ModelSource, load_model
from sdclr import (
    PruneRule,
    SimCLR,
    StarvedLayerError,
    Twin,
    ViewParams,
    centre_view,
    render_views,
    sample_view,
)
from sdclr.checkup import probe_views
from sdclr.health import disagreement
from sdclr.seeds import numpy_generator

TRAINED = "trained"
_SEED = 0


class DisagreementExtractor:
    """Actor with a trained twin and, where labels allow a comparison, the untrained network.

    Args:
        config_json: the run's configuration.
        source: a checkpoint of the run.
        init_from: URI of the weights that the run started from; None = by the seed.
        crop_px, resize_px: of the plain view, as in `centre_view`.
        with_untrained: score with the network before training as well.
        device: `cpu` or `cuda`.
        num_threads: threads on a CPU.

    Raises:
        ConfigError: a prune ratio leaves a layer without weights.
    """

    def __init__(
        self,
        config_json: str,
        source: ModelSource,
        init_from: str | None,
        crop_px: int,
        resize_px: int | None,
        with_untrained: bool,
        device: str,
        num_threads: int,
    ) -> None:
        torch.set_num_threads(num_threads)
        self.config = Config.model_validate_json(config_json)
        self.crop_px, self.resize_px = crop_px, resize_px
        self.recipe = probe_views(crop_px)
        self.device = torch.device(device)
        self.twins = {TRAINED: as_twin(load_model(self.config, source, init_from=init_from))}
        if with_untrained:
            method = source.method or self.config.train.methods[0]
            fresh = build.new_network(self.config, method, init_from=init_from)
            self.twins[UNTRAINED] = Twin(fresh)
        for twin in self.twins.values():
            twin.to(self.device).eval()
        self.masks = {name: masks_by_ratio(self.config, twin) for name, twin in self.twins.items()}

    @torch.inference_mode()
    def __call__(self, batch: Columns) -> Columns:
        """Replace the pixels of `ShardDecoder`'s rows by disagreements.

        Returns:
            row as it came; for each model its name (n, R), the mean over views.
        """
        images_nCHW, sizes_n2 = (torch.from_numpy(batch[n].copy()) for n in ("pixels", "size"))
        views = self._random_views(sizes_n2, first_row=int(batch["row"][0]))
        parts: dict[str, list[Tensor]] = {name: [] for name in self.twins}
        for start in range(0, len(images_nCHW), BATCH_IMAGES):
            stop = min(start + BATCH_IMAGES, len(images_nCHW))
            images_BCHW = images_nCHW[start:stop].to(self.device)
            shown = [
                centre_view(
                    images_BCHW,
                    sizes_n2[start:stop],
                    crop_px=self.crop_px,
                    resize_px=self.resize_px,
                )
            ]
            params = [view.rows(start, stop) for view in views]
            shown += render_views(images_BCHW, params, self.recipe)
            for name in self.twins:
                changes_VBR = torch.stack([self._changes(name, view) for view in shown])
                parts[name].append(changes_VBR.mean(0).cpu())
        found = {name: torch.cat(tensors).numpy() for name, tensors in parts.items()}
        return {"row": batch["row"]} | found

    def _changes(self, name: str, view_BCHW: Tensor) -> Tensor:
        """Return 1 - cosine of the dense and each pruned embedding (B, R)."""
        twin = self.twins[name]
        dense_BD = twin.network(view_BCHW)
        return torch.stack(
            [
                disagreement(dense_BD, self._pruned(twin, masks, view_BCHW))
                for masks in self.masks[name]
            ],
            dim=1,
        )

    def _random_views(self, sizes_n2: Tensor, *, first_row: int) -> list[ViewParams]:
        """Draw views 2..V of a shard, the same for whichever actor and at any time."""
        return [
            sample_view(self.recipe, sizes_n2, numpy_generator(_SEED, "mine", first_row, view))
            for view in range(1, self.config.mine.num_views)
        ]

    def _pruned(self, twin: Twin, masks: dict[str, Tensor], view_BCHW: Tensor) -> Tensor:
        for weight, mask in twin.mask_by_weight().items():
            mask.copy_(masks[weight])
        return twin.pruned(view_BCHW)


def as_twin(model: Twin | SimCLR) -> Twin:
    """Return a model with a pruned branch; a SimCLR network is pruned as it is."""
    return model if isinstance(model, Twin) else Twin(model.network)


def masks_by_ratio(config: Config, twin: Twin) -> list[dict[str, Tensor]]:
    """Return the masks of every prune ratio.

    Raises:
        ConfigError: a ratio leaves a layer without weights.
    """
    s = config.sdclr
    found = []
    for ratio in config.mine.prune_ratios:
        rule = PruneRule(prune_ratio=ratio, scope=s.scope, exclude_stem=s.exclude_stem)
        try:
            twin.refresh_masks(rule)
        except StarvedLayerError as error:
            raise ConfigError(
                "E-CONFIG-025",
                str(error),
                where=f"mine.prune_ratios, {ratio}",
                todo="leave this ratio out, or lower it",
            ) from error
        found.append({name: mask.clone() for name, mask in twin.mask_by_weight().items()})
    return found


def reference_sample(num_images: int, num_reference: int) -> NDArray[np.int64]:
    """Return sorted rows of the fixed sample in which neighbours are sought."""
    order = numpy_generator(_SEED, "reference").permutation(num_images)
    return np.sort(order[:num_reference])
