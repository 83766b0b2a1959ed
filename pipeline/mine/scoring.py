"""All images of a set, scored by Ray: vectors of the embed stage, density and change by tasks.

Vectors stay in Ray's object store, which spills to disk; the driver holds a few numbers an image.

Shapes: N images of the set, n of a block, M reference images, F features, R prune ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import feed
from pipeline.cluster.connect import Cluster
from pipeline.cluster.marked_nodes import on_nodes
from pipeline.dataset.manifest import SetName
from pipeline.embed.features import over_blocks, placement
from pipeline.embed.shards import read_vectors
from pipeline.feed.rows import RowLedger
from pipeline.mine.extractor import DisagreementExtractor, reference_sample
from pipeline.model import build
from pipeline.model.source import ModelSource
from pipeline.record.context import RunContext
from pipeline.record.embedding import DType, Embedding, VectorShard
from sdclr.rarity import knn_distance

if TYPE_CHECKING:
    import ray

REFERENCE_IMAGES = 20_000
"""At most: a fixed sample in which neighbours are sought."""

Progress = Callable[[str, int, int], None]
Floats = NDArray[np.float32]


@dataclass
class ScoredSet:
    """Scores of the N images of a set, in its order.

    Args:
        ids: names of the samples.
        labels_N: int64, -1 where there is no label.
        disagreement: model -> (N, R) float32; empty where it was not measured.
        knn_distance: model -> (N,) float32.
        blocks: for each block its rows, and model -> reference to its features (n, F).
        training_loss_N: float32, the running mean of each image's loss in training, nan for one
            that was never used; None where the run kept none, or another set is scored.
    """

    ids: list[str]
    labels_N: NDArray[np.int64]
    disagreement: dict[str, Floats] = field(default_factory=dict)
    knn_distance: dict[str, Floats] = field(default_factory=dict)
    blocks: list[tuple[NDArray[np.int64], dict[str, ray.ObjectRef[Floats]]]] = field(
        default_factory=list
    )
    training_loss_N: Floats | None = None

    def features(self, model: str, rows: NDArray[np.int64]) -> Floats:
        """Return features (len(rows), F) of some images, in the order of `rows`."""
        import ray

        place = {int(row): i for i, row in enumerate(rows)}
        found: Floats | None = None
        for block_rows, refs in self.blocks:
            wanted = np.flatnonzero(np.isin(block_rows, rows))
            if not len(wanted):
                continue
            block = ray.get(refs[model])
            if found is None:
                found = np.empty((len(rows), block.shape[1]), np.float32)
            found[[place[int(row)] for row in block_rows[wanted]]] = block[wanted]
        if found is None:
            raise ValueError("no rows were asked for")
        return found


def scored_set(
    embedded: Mapping[str, tuple[str, Embedding]],
    *,
    k: int,
    mark: str | None,
    progress: Progress,
) -> ScoredSet:
    """Read the vectors of a set under each model, and measure how thin the set is around each.

    Args:
        embedded: model -> folder and manifest of its vectors.
        k: neighbours whose distance is averaged.
        mark: of the nodes for the tasks; None = any node.
        progress: gets (what, images done, images in all).

    Raises:
        DataError: a file of vectors is broken.
    """
    found = _read(embedded, mark)
    for model in embedded:
        found.knn_distance[model] = _density(found, model, k, mark, progress)
    return found


def _read(embedded: Mapping[str, tuple[str, Embedding]], mark: str | None) -> ScoredSet:
    import ray

    task = ray.remote(num_returns=2, **on_nodes(mark))(_read_block)
    num_images = next(iter(embedded.values()))[1].rows
    found = ScoredSet([], np.full(num_images, -1, np.int64))
    ids = np.empty(num_images, object)
    tasks = {
        model: [task.remote(folder, shard, record.dtype) for shard in record.shards]
        for model, (folder, record) in embedded.items()
    }
    ledger = RowLedger("mine --set", num_images)
    for blocks in zip(*tasks.values(), strict=True):
        rows_n, ids_n, labels_n = ray.get(blocks[0][0])
        ledger.add(rows_n)
        ids[rows_n], found.labels_N[rows_n] = ids_n, labels_n
        refs = dict(zip(tasks, (block[1] for block in blocks), strict=True))
        found.blocks.append((rows_n, refs))
    ledger.close()
    found.ids = ids.tolist()
    return found


def _read_block(
    folder: str, shard: VectorShard, dtype: DType
) -> tuple[tuple[NDArray[np.int64], list[str], NDArray[np.int64]], Floats]:
    vectors = read_vectors(folder, shard, dtype)
    return (vectors.rows, vectors.ids, vectors.labels_n), vectors.values_nF


def disagreements(
    run: RunContext,
    source: ModelSource,
    *,
    set_name: SetName,
    with_untrained: bool,
    cluster: Cluster,
    progress: Progress,
) -> dict[str, Floats]:
    """Return how much pruning changes each image's embedding: model -> (N, R).

    Raises:
        PipelineError: a shard is broken, a checkpoint or a prune ratio does not fit.
    """
    config, manifest = run.config, run.manifest
    place = placement(config, cluster)
    arguments = (
        run.config_json,
        source,
        build.init_uri(config),
        build.crop_px(config, manifest),
        build.resize_px(config, manifest),
        with_untrained,
        place.device,
        place.num_threads,
    )
    rows = feed.decoded_rows(config, run.data_uri, manifest, set_name)
    measured = over_blocks(
        rows, DisagreementExtractor, arguments, place, mark=config.placement.train_nodes
    )
    num_images = manifest.sets[set_name].rows
    ledger = RowLedger("mine --set", num_images)
    found: dict[str, Floats] = {}
    progress("disagreement", 0, num_images)
    for batch in measured:
        rows_n = batch.pop("row")
        ledger.add(rows_n)
        for model, values in batch.items():
            table = np.empty((num_images, values.shape[1]), np.float32)
            found.setdefault(model, table)[rows_n] = values
        progress("disagreement", ledger.num_arrived, num_images)
    ledger.close()
    return found


def _density(found: ScoredSet, model: str, k: int, mark: str | None, progress: Progress) -> Floats:
    """Return distances to the nearest of a fixed sample, one task for each block."""
    import ray

    num_images = len(found.ids)
    chosen_M = reference_sample(num_images, REFERENCE_IMAGES)
    own_N = np.full(num_images, -1, np.int64)
    own_N[chosen_M] = np.arange(len(chosen_M))
    distance = ray.remote(_block_distance).options(**on_nodes(mark))
    reference = ray.put(found.features(model, chosen_M))
    tasks = {
        distance.remote(refs[model], reference, own_N[rows], k): rows for rows, refs in found.blocks
    }
    distances_N = np.empty(num_images, np.float32)
    done, waiting = 0, list(tasks)
    while waiting:
        (ready, *_), waiting = ray.wait(waiting)
        distances_N[tasks[ready]] = ray.get(ready)
        done += len(tasks[ready])
        progress(f"density, {model}", done, num_images)
    return distances_N


def _block_distance(
    features_nF: Floats, reference_MF: Floats, own_n: NDArray[np.int64], k: int
) -> Floats:
    torch.set_num_threads(1)
    as_tensors: Sequence[torch.Tensor] = [
        torch.from_numpy(array.copy()) for array in (features_nF, reference_MF, own_n)
    ]
    distances: Floats = knn_distance(as_tensors[0], as_tensors[1], k=k, own_N=as_tensors[2]).numpy()
    return distances
