"""Images that a backbone can take, and the share of it that a mask switches off."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.dataset.manifest import Manifest
from pipeline.errors import ConfigError
from pipeline.model import build
from pipeline.model.libraries import unusable
from sdclr import PruneRule
from sdclr.backbone import BackboneError, feature_width
from sdclr.batchnorm import refuse_unsynchronisable
from sdclr.methods import METHODS
from sdclr.prunable import CONV_SHARE, conv_share, is_published_rule, switched_off


def check_view(config: Config, manifest: Manifest) -> None:
    """Refuse a backbone that cannot take views of this set's images, or not on so many workers.

    Raises:
        ConfigError: it cannot, or the size of a view is not known.
    """
    name, side_px = config.model.backbone, build.crop_px(config, manifest)
    backbone = build.new_network(config, config.train.methods[0]).backbone
    try:
        feature_width(backbone, name, side_px)
    except BackboneError as error:
        raise unusable(name, error) from error
    if config.train.sync_batchnorm and config.train.num_workers > 1:
        try:
            refuse_unsynchronisable(backbone)
        except ValueError as error:
            raise ConfigError(
                "E-CONFIG-763",
                str(error),
                where=f"model.backbone={name}",
                todo="set train.sync_batchnorm=false, train.workers=1, or another backbone",
            ) from error


def pruning_texts(config: Config) -> list[str]:
    """Describe what the mask of each method with a pruned branch switches off."""
    s = config.sdclr
    rule = PruneRule(prune_ratio=s.prune_ratio, scope=s.scope, exclude_stem=s.exclude_stem)
    methods = [method for method in config.train.methods if METHODS[method].has_twin]
    if not methods:
        return []
    backbone = build.new_network(config, methods[0]).backbone
    num = sum(parameter.numel() for parameter in backbone.parameters())
    kinds = "convolutions" if conv_share(backbone) >= CONV_SHARE else "convolutions, linear layers"
    rank = "|w|" if is_published_rule(backbone) else "|w| over the root mean square of its layer"
    return [
        f"{', '.join(methods)}: prune_ratio {rule.prune_ratio:g} switches off "
        f"{100 * switched_off(backbone, rule):.1f} % of the backbone's {num / 1e6:.2f} M weights: "
        f"{kinds}, by {rank}"
    ]
