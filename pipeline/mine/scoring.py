"""All images of a set, scored by Ray: features and disagreement by actors, density by tasks.

Features stay in Ray's object store, which spills to disk; the driver holds a few numbers an image.

Shapes: N images of the set, M reference images, F features, R prune ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import feed
from pipeline.cluster.connect import Cluster, on_nodes_with
from pipeline.config import Config
from pipeline.dataset.manifest import Manifest, SetName
from pipeline.evaluate.features import over_blocks, placement
from pipeline.feed.rows import RowLedger
from pipeline.mine.extractor import RarityExtractor, reference_sample
from pipeline.model import build
from sdclr.rarity import knn_distance

if TYPE_CHECKING:
    import ray
    from ray.data import Dataset

REFERENCE_IMAGES = 20_000
"""At most: a fixed sample in which neighbours are sought."""

Progress = Callable[[str, int, int], None]


@dataclass
class ScoredSet:
    """Scores of the N images of a set, in its order.

    Args:
        ids: names of the samples.
        labels_N: int64, -1 where there is no label.
        disagreement: model -> (N, R) float32.
        knn_distance: model -> (N,) float32.
        blocks: for each block its rows, and model -> reference to its features (n, F).
        training_loss_N: float32, the running mean of each image's loss in training, nan for one
            that was never used; None where the run kept none, or another set is scored.
    """

    ids: list[str]
    labels_N: NDArray[np.int64]
    disagreement: dict[str, NDArray[np.float32]]
    knn_distance: dict[str, NDArray[np.float32]]
    blocks: list[tuple[NDArray[np.int64], dict[str, ray.ObjectRef[NDArray[np.float32]]]]]
    training_loss_N: NDArray[np.float32] | None = None

    def features(self, model: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return features (len(rows), F) of some images, in the order of `rows`."""
        import ray

        place = {int(row): i for i, row in enumerate(rows)}
        found: NDArray[np.float32] | None = None
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


def score_set(
    config: Config,
    config_json: str,
    *,
    set_name: SetName,
    config_hash: str,
    method: str,
    checkpoint_uri: str,
    data_uri: str,
    manifest: Manifest,
    with_untrained: bool,
    cluster: Cluster,
    progress: Progress,
) -> ScoredSet:
    """Score every image of a set; `progress` gets (what, images done, images in all).

    Raises:
        PipelineError: a shard is broken, a checkpoint or a prune ratio does not fit.
    """
    place = placement(config, cluster)
    arguments = (
        config_json,
        config_hash,
        method,
        checkpoint_uri,
        build.init_uri(config),
        build.crop_px(config, manifest),
        build.resize_px(config, manifest),
        with_untrained,
        place.device,
        place.num_threads,
    )
    rows = feed.decoded_rows(config, data_uri, manifest, set_name)
    scored = over_blocks(
        rows, RarityExtractor, arguments, place, resource=config.placement.train_resource
    )
    found = _collect(scored, manifest.sets[set_name].rows, progress)
    _add_density(found, config, progress)
    return found


def _collect(scored: Dataset, num_images: int, progress: Progress) -> ScoredSet:
    """Bring the numbers of all blocks into the set's order; features become references."""
    import ray

    ids, labels_N = np.empty(num_images, object), np.full(num_images, -1, np.int64)
    ledger = RowLedger("mine.set", num_images)
    found = ScoredSet([], labels_N, {}, {}, [])
    progress("mine", 0, num_images)
    for batch in scored.iter_batches(batch_size=None, batch_format="numpy"):
        rows = batch["row"]
        ledger.add(rows)
        ids[rows], labels_N[rows] = batch["id"], batch["label"]
        refs = {}
        for key, values in batch.items():
            kind, _, model = key.partition("_")
            if kind == "feature":
                refs[model] = ray.put(np.ascontiguousarray(values))
            elif kind == "disagreement":
                table = np.empty((num_images, values.shape[1]), np.float32)
                found.disagreement.setdefault(model, table)[rows] = values
        found.blocks.append((rows.copy(), refs))
        progress("mine", ledger.num_arrived, num_images)
    ledger.close()
    found.ids = ids.tolist()
    return found


def _add_density(found: ScoredSet, config: Config, progress: Progress) -> None:
    """Add distances to the nearest of a fixed sample, one task for each block."""
    import ray

    num_images = len(found.ids)
    chosen_M = reference_sample(num_images, REFERENCE_IMAGES)
    own_N = np.full(num_images, -1, np.int64)
    own_N[chosen_M] = np.arange(len(chosen_M))
    on_nodes = ray.remote(resources=on_nodes_with(config.placement.train_resource))
    distance = on_nodes(_block_distance)
    for model in found.disagreement:
        reference = ray.put(found.features(model, chosen_M))
        tasks = {
            distance.remote(refs[model], reference, own_N[rows], config.mine.knn_k): rows
            for rows, refs in found.blocks
        }
        distances_N = found.knn_distance[model] = np.empty(num_images, np.float32)
        done, waiting = 0, list(tasks)
        while waiting:
            (ready, *_), waiting = ray.wait(waiting)
            distances_N[tasks[ready]] = ray.get(ready)
            done += len(tasks[ready])
            progress(f"density, {model}", done, num_images)


def _block_distance(
    features_nF: NDArray[np.float32],
    reference_MF: NDArray[np.float32],
    own_n: NDArray[np.int64],
    k: int,
) -> NDArray[np.float32]:
    torch.set_num_threads(1)
    as_tensors: Sequence[torch.Tensor] = [
        torch.from_numpy(array.copy()) for array in (features_nF, reference_MF, own_n)
    ]
    distances: NDArray[np.float32] = knn_distance(
        as_tensors[0], as_tensors[1], k=k, own_N=as_tensors[2]
    ).numpy()
    return distances
