"""The images that mining.html shows, with pictures of the originals, clusters and neighbours.

Shapes: N images of the set, M reference images, S images shown, F features, K clusters.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipeline.dataset.manifest import Manifest, SetName
from pipeline.dataset.pictures import originals
from pipeline.mine.extractor import TRAINED, reference_sample
from pipeline.mine.scoring import ScoredSet
from pipeline.record.gallery import MAX_LARGE_BYTES, Gallery, Shown
from sdclr.kmeans import kmeans

NUM_RAREST, NUM_COMMONEST, NUM_ANNOTATE = 60, 24, 60
NUM_NEAR = 5
_NUM_REFERENCE = 5000
_MAX_CLUSTERS = 12


def gallery(
    scored: ScoredSet,
    rarity_N: NDArray[np.float64],
    order_N: NDArray[np.int64],
    batch: list[int],
    *,
    data_uri: str,
    manifest: Manifest,
    set_name: SetName,
) -> Gallery:
    """Return the rarest, the most common and the suggested images, and their neighbours.

    Neighbours and clusters are of a fixed sample of at most 5000 images.

    Args:
        scored: the set.
        rarity_N: higher is rarer.
        order_N: rows, rarest first.
        batch: rows suggested for annotation.
        data_uri: where the shards are.
        manifest: of that data set.
        set_name: which set was scored.
    """
    num = len(order_N) // 2
    lists = {
        "rarest": order_N[: min(NUM_RAREST, num)].tolist(),
        "commonest": order_N[::-1][: min(NUM_COMMONEST, num)].tolist(),
        "annotate": batch[:NUM_ANNOTATE],
    }
    own = list(dict.fromkeys(row for rows in lists.values() for row in rows))
    clusters, sizes, near = _structure(scored, np.array(own))
    every = list(dict.fromkeys([*own, *(row for rows in near for row in rows)]))
    place = {row: i for i, row in enumerate(every)}
    pictures = originals(data_uri, manifest, set_name, every, large=set(own))
    rank_N = np.empty(len(order_N), np.int64)
    rank_N[order_N] = np.arange(1, len(order_N) + 1)
    left = MAX_LARGE_BYTES
    images = []
    for i, row in enumerate(every):
        thumb, large = pictures[row]
        if large is not None and len(large) > left:
            large = None
        left -= len(large or "")
        score = float(rarity_N[row])
        images.append(
            Shown(
                id=str(scored.ids[row]),
                label=int(scored.labels_N[row]) if scored.labels_N[row] >= 0 else None,
                rank=int(rank_N[row]),
                score=score if math.isfinite(score) else None,
                cluster=clusters[i] if i < len(own) else None,
                near=tuple(place[r] for r in near[i]) if i < len(own) else (),
                thumb=thumb,
                large=large,
            )
        )
    path = manifest.config.get("data", {}).get("path")
    return Gallery(
        folder=str(path) if path else "",
        images=tuple(images),
        rarest=tuple(place[row] for row in lists["rarest"]),
        commonest=tuple(place[row] for row in lists["commonest"]),
        annotate=tuple(place[row] for row in lists["annotate"]),
        cluster_sizes=sizes,
    )


def _structure(
    scored: ScoredSet, rows_S: NDArray[np.int64]
) -> tuple[list[int], tuple[int, ...], list[list[int]]]:
    """Return the cluster of each shown image, sizes by cluster, and rows of its neighbours.

    Clusters are numbered by size in the sample, the largest first.
    """
    sample_M = reference_sample(len(scored.ids), _NUM_REFERENCE)
    reference_MF = _unit(scored.features(TRAINED, sample_M))
    shown_SF = _unit(scored.features(TRAINED, rows_S))
    num_clusters = max(1, min(_MAX_CLUSTERS, round(math.sqrt(len(sample_M) / 4))))
    found = kmeans(reference_MF, num_clusters, seed=0)
    sizes_K = torch.bincount(found.labels_N, minlength=num_clusters)
    by_size = torch.argsort(sizes_K, descending=True, stable=True).tolist()
    number = {old: new for new, old in enumerate(by_size)}
    nearest_S = torch.cdist(shown_SF.double(), found.centres_KD).argmin(dim=1)
    similarity_SM = shown_SF @ reference_MF.T
    similarity_SM[torch.from_numpy(rows_S[:, None] == sample_M[None, :])] = -torch.inf
    k = min(NUM_NEAR, len(sample_M) - 1)
    near_Sk = similarity_SM.topk(k, dim=1).indices if k else torch.zeros(len(rows_S), 0).long()
    return (
        [number[int(c)] for c in nearest_S],
        tuple(int(sizes_K[old]) for old in by_size),
        [[int(sample_M[i]) for i in line] for line in near_Sk.tolist()],
    )


def _unit(features: NDArray[np.float32]) -> torch.Tensor:
    unit = F.normalize(torch.from_numpy(features).float(), dim=1)
    return unit if bool(unit.isfinite().all()) else unit.nan_to_num()
