"""A map of the features: two coordinates an image, for a sample that a page can draw."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.mine.extractor import TRAINED, reference_sample
from pipeline.mine.scoring import ScoredSet
from pipeline.record.mining import Map, Maps
from sdclr.rarity import pca_2d, rank_share

_NUM_POINTS = 1500


def feature_map(scored: ScoredSet, rarity_N: NDArray[np.float64]) -> Maps:
    """Map at most 1500 images by PCA, and by UMAP as well where `umap` is installed."""
    rows = reference_sample(len(scored.ids), _NUM_POINTS)
    features = scored.features(TRAINED, rows)
    points, shares = pca_2d(torch.from_numpy(features))
    note = f"{100 * sum(shares):.0f} % of the variance"
    maps = [_map("PCA", note, points.numpy())]
    if find_spec("umap") is not None and len(rows) > 15:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from umap import UMAP

            placed = UMAP(random_state=0, metric="cosine").fit_transform(features)
        maps.append(_map("UMAP", "distances far apart mean little", np.asarray(placed)))
    labels = scored.labels_N[rows]
    return Maps(
        maps=tuple(maps),
        label=tuple(int(label) if label >= 0 else None for label in labels),
        rank_share=tuple(np.round(rank_share(rarity_N)[rows], 4).tolist()),
    )


def _map(method: str, note: str, points: NDArray[np.floating]) -> Map:
    scale = float(np.abs(points).max()) or 1.0
    x, y = (tuple(np.round(points[:, axis] / scale, 4).tolist()) for axis in (0, 1))
    return Map(method=method, note=note, x=x, y=y)
