"""Checks of everything that is known to fail before a worker starts."""

from __future__ import annotations

from pipeline import feed
from pipeline.cluster import auto
from pipeline.cluster.connect import Cluster, check_workers, smallest_object_store_bytes
from pipeline.config import Config
from pipeline.config.stages import NEEDS_VAL
from pipeline.dataset.manifest import Manifest
from pipeline.errors import ConfigError
from pipeline.model import build


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
    check_split(config, manifest)
    feed.check_fits(config, manifest, object_store_bytes=object_store_bytes)


def check_split(config: Config, manifest: Manifest) -> None:
    """Refuse a labelled data set that lacks the set to score on, or to choose an epoch on.

    Raises:
        ConfigError: naming the sets that there are.
    """
    if manifest.class_names is not None and config.evaluate.split not in manifest.sets:
        raise ConfigError(
            "E-CONFIG-034",
            f"the data set has no {config.evaluate.split} set, it has {', '.join(manifest.sets)}",
            where=f"evaluate.split={config.evaluate.split}",
            todo="set data.num_test_per_class or data.num_val_per_class and ingest, or another "
            "split; set data.labelled=false if the labels are not to be used",
        )
    wanting = [p for p in config.evaluate.protocols if p in NEEDS_VAL]
    if manifest.class_names is not None and wanting and "val" not in manifest.sets:
        raise ConfigError(
            "E-CONFIG-035",
            f"{' and '.join(wanting)} choose the epoch on a val set, which the data set lacks",
            where=f"evaluate.protocols, data set {manifest.name}",
            todo="set data.sets.val and ingest, or leave these protocols out",
        )


def uses_gpu(config: Config, cluster: Cluster) -> bool:
    """Return whether the workers train on GPUs."""
    return auto.uses_gpu(config, cluster.num_gpus)
