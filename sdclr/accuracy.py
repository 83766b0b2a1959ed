"""Accuracy of predictions, class by class, and the confusion of groups.

Shapes: M test images, C classes, G groups of classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def per_class_accuracy(
    predictions_M: Tensor, labels_M: Tensor, num_classes: int
) -> NDArray[np.float64]:
    """Return the fraction of correct predictions of each class (C,); nan without test rows.

    Raises:
        ValueError: shapes disagree, or a label is outside 0..num_classes-1.
    """
    predictions, labels = predictions_M.cpu().numpy(), labels_M.cpu().numpy()
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise ValueError(f"shapes disagree: {predictions.shape} and {labels.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}")
    total_C = np.bincount(labels, minlength=num_classes).astype(np.float64)
    correct_C = np.bincount(labels[predictions == labels], minlength=num_classes)
    total_C[total_C == 0] = np.nan
    return correct_C / total_C


def group_confusion(
    predictions_M: Tensor, labels_M: Tensor, groups: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Return where the images of each group of classes are sent: (G, G) shares, rows sum to 1.

    Entry (g, h) is the share of the images of group g that are taken for a class of group h, mean
    over the classes of g; the diagonal counts every class of the own group, not only the right one.
    A class without images is left out; a group without any is nan.

    Args:
        predictions_M: class index that each test image is taken for.
        labels_M: its own.
        groups: disjoint; together they hold every class that is predicted.
    """
    labels, predictions = labels_M.cpu().numpy(), predictions_M.cpu().numpy()
    to_group = np.stack([np.isin(predictions, list(group)) for group in groups], axis=1)
    rows = []
    for group in groups:
        members = [to_group[labels == c].mean(axis=0) for c in group if (labels == c).any()]
        rows.append(np.mean(members, axis=0) if members else np.full(len(groups), np.nan))
    return np.array(rows)
