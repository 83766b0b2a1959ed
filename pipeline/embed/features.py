"""Frozen features of many images under several networks, in one pass through Ray Data.

Images are read, checked and decoded once; each worker holds all networks. The features of a set
come back as arrays in the set's own order, whatever order the workers finished in.

Shapes: n rows of one shard, N rows of a set, F feature size of the backbone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline import feed
from pipeline.cluster.connect import Cluster
from pipeline.cluster.marked_nodes import on_nodes
from pipeline.config import Config
from pipeline.dataset.decoding import Columns
from pipeline.dataset.sets import places_in
from pipeline.feed.rows import in_order
from pipeline.model import build
from pipeline.model.source import PIXELS, ModelSource, load_model
from pipeline.record.context import RunContext
from sdclr import SimCLR, Twin, centre_view
from sdclr.health import disagreement
from sdclr.logistic import kept_threads

BATCH_IMAGES = 256
"""Images of one forward pass."""
_THUMBNAIL_PX = 8


@dataclass
class SetFeatures:
    """Features of one set.

    Args:
        ids: names of the samples.
        labels_N: int64, -1 where there is no label.
        by_model: model name -> (N, F) float32.
        disagreement_N: 1 - cosine between the dense and the pruned branch; None without SDCLR.
    """

    ids: list[str]
    labels_N: NDArray[np.int64]
    by_model: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    disagreement_N: NDArray[np.float32] | None = None


class Extractor:
    """Worker that turns decoded rows into features.

    Args:
        config_json: the run's configuration.
        sources: the models; a twin among them is called `sdclr`. `PIXELS` has no network.
        crop_px, resize_px: of the evaluated view, as in `centre_view`.
        init_from: URI of the weights that the run started from; None = by the seed.
        device: `cpu` or `cuda`.
        num_threads: threads on a CPU.
        pruned_set: of its images, what pruning changes in the twin is measured.
        with_features: whether their features are extracted as well.
    """

    def __init__(
        self,
        config_json: str,
        sources: list[ModelSource],
        crop_px: int,
        resize_px: int | None,
        init_from: str | None,
        device: str,
        num_threads: int,
        pruned_set: str | None = None,
        with_features: bool = False,
    ) -> None:
        torch.set_num_threads(num_threads)
        self.pruned_set, self.with_features = pruned_set, with_features
        self.config = Config.model_validate_json(config_json)
        self.crop_px, self.resize_px = crop_px, resize_px
        self.device = torch.device(device)
        self.models: dict[str, Twin | SimCLR] = {
            source.name: load_model(self.config, source, init_from=init_from)
            for source in sources
            if source.name != PIXELS
        }
        self.with_pixels = any(source.name == PIXELS for source in sources)
        for model in self.models.values():
            model.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, batch: Columns) -> Columns:
        """Replace the pixels of `ShardDecoder`'s rows by what `_measure` makes of them."""
        out = {name: batch[name] for name in ("set", "row", "id", "label")}
        images_nCHW, sizes_n2 = (torch.from_numpy(batch[n].copy()) for n in ("pixels", "size"))
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(images_nCHW), BATCH_IMAGES):
            part = slice(start, start + BATCH_IMAGES)
            views_BCHW = centre_view(
                images_nCHW[part].to(self.device),
                sizes_n2[part],
                crop_px=self.crop_px,
                resize_px=self.resize_px,
            )
            parts.append(self._measure(views_BCHW, str(batch["set"][0])))
        for name in parts[0]:
            out[name] = torch.cat([part[name].float().cpu() for part in parts]).numpy()
        return out

    def _measure(self, views_BCHW: Tensor, set_name: str) -> dict[str, Tensor]:
        """Extract features of each model; of the pruned set, what pruning changes."""
        is_pruned = set_name == self.pruned_set
        found: dict[str, Tensor] = {}
        if not is_pruned or self.with_features:
            for name, model in self.models.items():
                found[f"feature_{name}"] = model.network.features(views_BCHW)
            if self.with_pixels:
                found[f"feature_{PIXELS}"] = thumbnails(views_BCHW)
        if is_pruned:
            twins = [(n, m) for n, m in self.models.items() if isinstance(m, Twin)]
            if not twins:
                raise ValueError("only a method with a pruned branch has one to compare with")
            name, twin = twins[0]
            features_BF = found.get(f"feature_{name}")
            if features_BF is None:
                features_BF = twin.network.features(views_BCHW)
            found["disagreement"] = disagreement(
                twin.network.head(features_BF), twin.pruned(views_BCHW)
            )
        return found


def thumbnails(views_BCHW: Tensor) -> Tensor:
    """Return raw pixels as features (B, 192): 8 x 8 RGB, less the mean of the image."""
    small_BF = F.adaptive_avg_pool2d(views_BCHW.float(), _THUMBNAIL_PX).flatten(1)
    return small_BF - small_BF.mean(dim=1, keepdim=True)


def extract(
    run: RunContext,
    *,
    sources: list[ModelSource],
    set_names: tuple[str, ...],
    cluster: Cluster,
    progress: Callable[[int, int], None],
) -> dict[str, SetFeatures]:
    """Extract features of the named sets; of `pretrain`, the disagreement only.

    Where both are wanted and `probe` holds the images of `pretrain`, each is decoded once.
    `progress` is called with (images done, images in all).

    Raises:
        PipelineError: a shard is broken, or a checkpoint does not fit.
    """
    config, manifest = run.config, run.manifest
    place = placement(config, cluster)
    places_N = None
    if {"pretrain", "probe"} <= {*set_names}:
        places_N = places_in(run.data_uri, manifest, "probe", "pretrain")
    read_names = [name for name in set_names if places_N is None or name != "probe"]
    rows = feed.decoded_rows(config, run.data_uri, manifest, *read_names)
    arguments = (*extractor_arguments(run, sources, place), "pretrain", places_N is not None)
    extracted = over_blocks(rows, Extractor, arguments, place, mark=config.placement.train_nodes)
    parts: dict[str, list[Columns]] = {name: [] for name in read_names}
    num_rows = {str(name): info.rows for name, info in manifest.sets.items()}
    total = sum(num_rows[name] for name in read_names)
    done = 0
    progress(done, total)
    for batch in extracted:
        parts[str(batch["set"][0])].append(batch)
        done += len(batch["row"])
        progress(done, total)
    found = {name: _assemble(name, parts.pop(name), num_rows[name]) for name in read_names}
    if places_N is not None:
        found["probe"] = _reordered(found["pretrain"], places_N)
        found["pretrain"].by_model = {}
    return {name: found[name] for name in set_names}


def extractor_arguments(
    run: RunContext, sources: Sequence[ModelSource], place: Placement
) -> tuple[Any, ...]:
    """Return what an `Extractor` on a worker of this placement is made of."""
    return (
        run.config_json,
        list(sources),
        build.crop_px(run.config, run.manifest),
        build.resize_px(run.config, run.manifest),
        build.init_uri(run.config),
        place.device,
        place.num_threads,
    )


@dataclass(frozen=True)
class Placement:
    """Distribution of work on frozen networks over the cluster: resources of one worker.

    Args:
        device: `cpu` or `cuda`.
        num_workers: actors.
        num_cpus, num_gpus: of each.
        num_threads: of each on a CPU.
        is_here: the one worker is this process: an actor on the same CPUs would only start later.
    """

    device: str
    num_workers: int
    num_cpus: int
    num_gpus: int
    num_threads: int
    is_here: bool = False


def over_blocks(
    rows: Any,
    worker: Callable[..., Callable[[Columns], Columns]],
    arguments: tuple[Any, ...],
    place: Placement,
    *,
    mark: str | None,
) -> Iterator[Columns]:
    """Yield what workers make of decoded rows, each block whole, in arbitrary order.

    Args:
        rows: of `feed.decoded_rows`.
        worker: class, made of `arguments`, called with one block.
        arguments: plain values.
        place: resources of each worker.
        mark: of the nodes for them; None = any node.
    """
    if place.is_here:
        with kept_threads():
            work = worker(*arguments)
            for block in rows.iter_batches(batch_size=None, batch_format="numpy"):
                yield work(block)
        return
    from ray.data import ActorPoolStrategy

    with warnings.catch_warnings():
        # `max_restarts` has no named parameter yet. Without it Ray logs an error for each actor:
        # it replaces a lost actor by itself, and a restart in place could not find its arguments.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        # Not `map_batches`: with GPUs it takes batches of a size only, which mix blocks.
        made = rows.map_batches_internal(
            worker,
            fn_constructor_args=arguments,
            batch_size=None,
            compute=ActorPoolStrategy(size=place.num_workers),
            num_cpus=place.num_cpus,
            num_gpus=place.num_gpus,
            **on_nodes(mark),
            max_restarts=0,
        )
    yield from made.iter_batches(batch_size=None, batch_format="numpy")


def placement(config: Config, cluster: Cluster) -> Placement:
    """Return a worker for each GPU, or for four CPUs; one CPU is left to read and decode.

    On a small machine without a GPU the one worker is this process.
    """
    free_cpus = max(1, cluster.num_cpus - 1)
    if config.train.device != "cpu" and cluster.num_gpus > 0:
        num_threads = max(1, min(4, free_cpus // cluster.num_gpus))
        return Placement("cuda", cluster.num_gpus, 1, 1, num_threads)
    num_workers = max(1, free_cpus // 4)
    num_threads = max(1, min(4, free_cpus // num_workers, cluster.largest_node_cpus))
    is_here = cluster.is_local and num_workers == 1
    return Placement("cpu", num_workers, num_threads, 0, num_threads, is_here)


def _reordered(features: SetFeatures, places_N: NDArray[np.int64]) -> SetFeatures:
    by_model = {name: values_NF[places_N] for name, values_NF in features.by_model.items()}
    ids = [features.ids[place] for place in places_N]
    return SetFeatures(ids, features.labels_N[places_N], by_model)


def _assemble(set_name: str, parts: list[Columns], num_rows: int) -> SetFeatures:
    columns = in_order(parts, f"set {set_name}", num_rows)
    found = SetFeatures(columns["id"].tolist(), columns["label"])
    found.disagreement_N = columns.get("disagreement")
    prefix = "feature_"
    for name, values in columns.items():
        if name.startswith(prefix):
            found.by_model[name.removeprefix(prefix)] = values
    return found
