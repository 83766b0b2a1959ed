"""Checks of everything that is known to fail before a worker starts."""

from __future__ import annotations

from pipeline import feed
from pipeline.cluster import auto
from pipeline.cluster.connect import Cluster, check_workers, smallest_object_store_bytes
from pipeline.config import Config
from pipeline.dataset.checks import check_scored_sets
from pipeline.dataset.manifest import Manifest
from pipeline.model import build
from pipeline.model.backbone import check_view


def check(config: Config, manifest: Manifest, cluster: Cluster) -> None:
    """Refuse everything that is known to fail before a worker starts.

    Raises:
        PipelineError: too few images, too many workers, sizes that are missing or do not fit.
    """
    check_data(config, manifest, object_store_bytes=smallest_object_store_bytes())
    build.new_network(config, config.train.methods[0], init_from=build.init_uri(config))
    check_workers(cluster, config.train.num_workers, use_gpu=uses_gpu(config, cluster))


def check_data(config: Config, manifest: Manifest, *, object_store_bytes: int) -> None:
    """Check what `check` can check without a cluster.

    Raises:
        PipelineError: as `check`.
    """
    feed.epoch_plan(config, manifest)
    build.resize_px(config, manifest)
    check_view(config, manifest)
    if manifest.class_names is not None:
        check_scored_sets(config, manifest)
    feed.check_fits(config, manifest, object_store_bytes=object_store_bytes)


def uses_gpu(config: Config, cluster: Cluster) -> bool:
    """Return whether the workers train on GPUs."""
    return auto.uses_gpu(config, cluster.num_gpus)
