"""A map of the features: two coordinates an image, for a sample that a page can draw."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.mine.extractor import TRAINED, reference_sample
from pipeline.mine.scoring import ScoredSet
from sdclr.rarity import pca_2d, rank_share

_NUM_POINTS = 1500


def feature_map(scored: ScoredSet, rarity_N: NDArray[np.float64]) -> dict[str, Any]:
    """Map at most 1500 images by PCA, and by UMAP as well where `umap` is installed.

    Returns:
        {"maps": [{"method", "note", "x": [...], "y": [...]}, ...], "label": [...], "rank_share":
        [...]}; one entry a point in every list, label None where there is none.
    """
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
    return {
        "maps": maps,
        "label": [int(label) if label >= 0 else None for label in labels],
        "rank_share": np.round(rank_share(rarity_N)[rows], 4).tolist(),
    }


def _map(method: str, note: str, points: NDArray[np.floating]) -> dict[str, Any]:
    scale = float(np.abs(points).max()) or 1.0
    x, y = (np.round(points[:, axis] / scale, 4).tolist() for axis in (0, 1))
    return {"method": method, "note": note, "x": x, "y": y}
