"""The images that pruning forgets most: SDCLR's own, label-free signal for what is rare.

Disagreement is 1 - cosine between the embeddings of the dense and of the pruned branch.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.config import Config
from pipeline.dataset.image import png_bytes
from pipeline.dataset.manifest import Manifest, SetName
from pipeline.dataset.sets import parts_of
from pipeline.dataset.shards import read_table
from pipeline.embed.features import SetFeatures
from pipeline.feed import decoder
from pipeline.record.context import RunContext
from pipeline.record.evaluation import Forgotten, GroupMean, GroupMeans, Picture
from pipeline.record.intervals import NORMAL975
from sdclr.groups import Groups

_NUM_SHOWN = 24


def forgotten_images(
    run: RunContext, method: str, pretrain: SetFeatures, groups: Groups | None
) -> Forgotten:
    """Return the images whose embedding a method's pruning changes most and least, as pictures."""
    scores_N = pretrain.disagreement_N
    if scores_N is None:
        raise ValueError("the set was extracted without the pruned branch")
    order = np.argsort(-scores_N, kind="stable")
    num_shown = min(_NUM_SHOWN, len(order) // 2)
    most, least = order[:num_shown].tolist(), order[::-1][:num_shown].tolist()
    found = pictures(run.config, run.data_uri, run.manifest, {*most, *least})

    def shown(rows: list[int]) -> tuple[Picture, ...]:
        return tuple(
            Picture(
                id=pretrain.ids[row],
                label=label if (label := int(pretrain.labels_N[row])) >= 0 else None,
                score=float(scores_N[row]),
                png_base64=found[row],
            )
            for row in rows
        )

    def mean(classes: Sequence[int]) -> GroupMean | None:
        own_n = scores_N[np.isin(pretrain.labels_N, classes)].astype(np.float64)
        if not len(own_n):
            return None
        error = float(own_n.std(ddof=1)) / math.sqrt(len(own_n)) if len(own_n) > 1 else None
        half = None if error is None else NORMAL975 * error
        return GroupMean(images=len(own_n), mean=float(own_n.mean()), half=half)

    return Forgotten(
        method=method,
        prune_ratio=run.config.sdclr.prune_ratio,
        scored=len(scores_N),
        most=shown(most),
        least=shown(least),
        group_mean=None
        if groups is None
        else GroupMeans(many=mean(groups.many), medium=mean(groups.medium), few=mean(groups.few)),
    )


def pictures(
    config: Config,
    data_uri: str,
    manifest: Manifest,
    rows: set[int],
    *,
    set_name: SetName = "pretrain",
) -> dict[int, str]:
    """Return a PNG in base64 for each row of a set."""
    reader = decoder(config, data_uri, manifest)
    found: dict[int, str] = {}
    for part in parts_of(data_uri, manifest, set_name):
        here = np.flatnonzero(np.isin(part.places_n, list(rows)))
        if len(here):
            shard = part.taken(read_table(data_uri, part.shard)).take(pa.array(here))
            pixels, sizes = reader.pixels(shard)
            wanted = part.places_n[here].tolist()
            for row, image, (height_px, width_px) in zip(wanted, pixels, sizes, strict=True):
                rgb = image[:, :height_px, :width_px].transpose(1, 2, 0)
                found[row] = base64.b64encode(png_bytes(rgb)).decode()
    return found
