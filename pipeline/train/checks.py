"""Checks of everything that is known to fail before a worker starts."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import feed
from pipeline.cluster import auto
from pipeline.cluster.connect import Cluster, check_workers, smallest_object_store_bytes
from pipeline.cluster.preflight import GpuReport
from pipeline.config import Config
from pipeline.console import counted
from pipeline.dataset.checks import check_scored_sets
from pipeline.dataset.manifest import Manifest
from pipeline.errors import ConfigError
from pipeline.model import build, memory
from pipeline.model.backbone import check_view
from pipeline.model.public import own_config


def check(config: Config, manifest: Manifest, cluster: Cluster) -> None:
    """Refuse everything that is known to fail before a worker starts.

    Raises:
        PipelineError: too few images, too many workers, sizes that are missing or do not fit.
    """
    check_data(config, manifest, object_store_bytes=smallest_object_store_bytes())
    build.new_network(config, config.train.methods[0], init_from=build.init_uri(config))
    check_workers(cluster, config.train.worker_counts[0], use_gpu=uses_gpu(config, cluster))


def check_data(config: Config, manifest: Manifest, *, object_store_bytes: int) -> None:
    """Check what `check` can check without a cluster.

    Raises:
        PipelineError: as `check`.
    """
    feed.epoch_plan(config, manifest)
    build.resize_px(config, manifest)
    check_view(config, manifest)
    for uri in config.evaluate.public:
        check_view(own_config(config, uri), manifest)
    if manifest.has_labels():
        check_scored_sets(config, manifest)
    for number in config.train.worker_counts:
        settled = auto.with_workers(config, number)
        feed.check_fits(settled, manifest, object_store_bytes=object_store_bytes)


def uses_gpu(config: Config, cluster: Cluster) -> bool:
    """Return whether the workers train on GPUs."""
    return auto.uses_gpu(config, cluster.num_gpus)


def check_memory(config: Config, manifest: Manifest, gpus: Sequence[GpuReport]) -> None:
    """Refuse a step that by estimate needs more memory than a GPU has free.

    Raises:
        ConfigError: with both sizes, and the `train.micro_batch` that fits.
    """
    # The fewest workers hold the most images each.
    config = auto.with_workers(config, config.train.worker_counts[0])
    crop_px, held = build.crop_px(config, manifest), memory.images_held(config)
    for gpu in gpus:
        needed = memory.worker_bytes(config, crop_px, held)
        if needed <= gpu.free_bytes:
            continue
        fits = memory.fitting_micro_batch(config, crop_px, gpu.free_bytes)
        raise ConfigError(
            "E-CONFIG-872",
            f"a step of {counted(held, 'image')} a worker needs about {needed / 2**30:.1f} GiB "
            "of GPU memory, "
            f"{gpu.name} of node {gpu.node} has {gpu.memory}",
            where=_sizes(config),
            todo=f"set train.micro_batch={fits}, use more train.workers, or lower augment.crop_px",
        )


def out_of_memory(config: Config, error: BaseException) -> ConfigError:
    """Return what a step for which the GPU has no memory means to the user."""
    held = memory.images_held(config)
    half = max(memory.LEAST_MICRO_BATCH, held // 2)
    words = (str(error).splitlines() or [""])[0]
    return ConfigError(
        "E-CONFIG-873",
        f"a step of {counted(held, 'image')} a worker does not fit the GPU: {words}",
        where=_sizes(config),
        todo=f"set train.micro_batch={half}, use more train.workers, or lower augment.crop_px",
    )


def _sizes(config: Config) -> str:
    t = config.train
    return (
        f"train.global_batch={t.global_batch}, train.workers={t.num_workers}, "
        f"train.micro_batch={t.micro_batch or 'null'}"
    )
