"""Losses of a data set on its way in: too many images, or most of one class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import Config
from pipeline.dataset.manifest import RejectExample
from pipeline.errors import DataError
from pipeline.ingest.sources.index import ImageIndex
from sdclr.heif import INSTALL_HEIF, NEEDS_HEIF

# A class that loses more than this share of its images has lost most of them.
_MOST_FRAC = 0.5
_SURELY = 0.01
_NUM_LISTED = 20


@dataclass(frozen=True)
class ClassLoss:
    """A class that lost most of its images; `is_tail`: it had fewer than the average class."""

    name: str
    num_images: int
    num_lost: int
    is_tail: bool

    def __str__(self) -> str:
        """Return `'rare' (3 of 3)`."""
        return f"{self.name!r} ({self.num_lost} of {self.num_images})"


def class_losses(index: ImageIndex, kept_N: npt.NDArray[np.bool_]) -> list[ClassLoss]:
    """Return the classes that lost most of their images, the worst first.

    Args:
        index: the images, their classes and those that are rejected by name.
        kept_N: which images were stored.
    """
    if index.class_names is None:
        return []
    used_N = index.used()
    num_classes = len(index.class_names)
    names = dict.fromkeys(index.class_names, 0)
    images = dict(
        zip(names, np.bincount(index.labels_N[used_N], minlength=num_classes).tolist(), strict=True)
    )
    lost_N = index.labels_N[used_N & ~kept_N]
    lost = dict(zip(names, np.bincount(lost_N, minlength=num_classes).tolist(), strict=True))
    if index.source.get("kind") == "folder":
        for reject in index.rejects:
            folders = [part for part in reject.id.split("/")[:-1] if part not in ("", ".")]
            if folders:
                folder = next((part for part in folders if part in names), folders[0])
                images[folder] = images.get(folder, 0) + 1
                lost[folder] = lost.get(folder, 0) + 1
    mean = sum(images.values()) / max(1, len(images))
    found = [
        ClassLoss(name, images[name], lost[name], is_tail=images[name] < mean)
        for name in images
        if lost[name] > _MOST_FRAC * images[name]
    ]
    return sorted(found, key=lambda loss: (-loss.num_lost / loss.num_images, loss.name))


def refuse_losses(losses: Sequence[ClassLoss], config: Config) -> DataError | None:
    """Return the error for classes of the tail that lost most of their images, if there are any.

    A share of lost images that `ingest.max_reject_frac` allows is accepted.
    """
    limit = max(_MOST_FRAC, config.ingest.max_reject_frac)
    grave = [loss for loss in losses if loss.is_tail and loss.num_lost > limit * loss.num_images]
    if not grave:
        return None
    return DataError(
        "E-DATA-303",
        f"classes of the tail lost most of their images: {listed(grave)}",
        where=config.data.path or config.data.source,
        todo="repair these images, remove the classes, or set ingest.max_reject_frac=1",
    )


def listed(losses: Sequence[ClassLoss]) -> str:
    """Return the first classes and how many more there are."""
    shown = ", ".join(str(loss) for loss in losses[:_NUM_LISTED])
    more = len(losses) - _NUM_LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def refuse_rejects(
    rejects: Iterable[RejectExample], num_images: int, config: Config
) -> DataError | None:
    """Return the error for more rejects than `ingest.max_reject_frac` allows, if there are.

    Args:
        rejects: all of them, sorted by id.
        num_images: of the source, rejects included.
        config: the limit, and where the images are.
    """
    rejects = list(rejects)
    limit_frac = config.ingest.max_reject_frac
    if len(rejects) <= limit_frac * num_images:
        return None
    counts = Counter(reject.reason for reject in rejects)
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))
    first = "; ".join(f"{r.id} ({r.reason}: {r.detail})" for r in rejects[:3])
    fix = "repair or remove these images, or raise ingest.max_reject_frac"
    if any(reject.detail == NEEDS_HEIF for reject in rejects):
        fix = f"run {INSTALL_HEIF}, on every node, to read HEIC; {fix}"
    return DataError(
        "E-DATA-079",
        f"{len(rejects)} of {num_images} images are unfit ({reasons}), more than the allowed share "
        f"of {limit_frac:g}; first: {first}",
        where=config.data.path or config.data.source,
        todo=fix,
    )


def surely_too_many(num_rejects: int, num_sampled: int, num_images: int, limit_frac: float) -> bool:
    """Return whether a sample shows that the whole has more rejects than allowed.

    That is so when the sample alone has more, or when a share within the limit would show so many
    with a probability below 1 %.
    """
    if num_rejects > limit_frac * num_images:
        return True
    if num_rejects <= limit_frac * num_sampled:
        return False
    below = sum(
        math.comb(num_sampled, k) * limit_frac**k * (1 - limit_frac) ** (num_sampled - k)
        for k in range(num_rejects)
    )
    return 1 - below < _SURELY
