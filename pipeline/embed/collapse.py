"""Measures of a network's vectors: do they distinguish the images that stages build on?

The limits are those of the checks during training, see `sdclr.checkup.alarms`. A network without
such checks, as weights of a file, is judged by an absolute limit as well.

Shapes: n images of the sample, F numbers a vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import torch

from pipeline import storage
from pipeline.model.source import ModelSource
from pipeline.record.context import RunContext
from pipeline.record.embedding import VectorHealth
from pipeline.record.lineage import earlier_checks
from pipeline.record.metrics import read_rows
from pipeline.record.rows import AlarmPart, HealthRow
from pipeline.record.run import Run
from sdclr import health
from sdclr.checkup import LOWER_LR, alarms

SAMPLE_IMAGES = 512
"""Images that are measured, at most: as many as during training, for RankMe grows with them."""

# Choices, not measurements: fewer than two dimensions in use, and any two images nearly parallel.
_MOST_COSINE, _FEWEST_DIMENSIONS = 0.99, 2.0


def vector_health(vectors_nF: torch.Tensor, ranks: Sequence[float] = ()) -> VectorHealth:
    """Measure vectors, and compare their RankMe with earlier ones of as many images or fewer.

    Args:
        vectors_nF: of 2 images or more.
        ranks: RankMe of the same network before, or of an untrained one; empty = unknown.
    """
    rank, cosine = health.rankme(vectors_nF), health.mean_cosine(vectors_nF)
    # What needs two views has values without an alarm.
    before = [
        {"rankme": one, "dead_frac": 0.0, "view_retrieval": 0.0, "disagreement": math.nan}
        for one in (*ranks, rank)
    ]
    now = before[-1] | {"dead_frac": health.dead_frac(vectors_nF), "view_retrieval": 1.0}
    found = [
        AlarmPart(**asdict(alarm)) for alarm in alarms([*before, now]) if alarm.level == "alarm"
    ]
    if cosine > _MOST_COSINE and rank < _FEWEST_DIMENSIONS and not found:
        text = "features have collapsed: the vectors of all images are nearly the same"
        found.append(AlarmPart(name="collapse", level="alarm", text=text, change=LOWER_LR))
    return VectorHealth(
        num_images=len(vectors_nF), rankme=rank, mean_cosine=cosine, alarms=tuple(found)
    )


def earlier_ranks(run: RunContext, source: ModelSource, num_images: int) -> list[float]:
    """Return RankMe at the checks of a run's training that saw no more than `num_images`.

    Those of the runs that it started from come first. Empty for given weights, and for a
    data set that the run was not trained on.
    """
    trained = Run.find(storage.join(run.run_uri, "run.json"))
    data = trained.data if trained is not None else None
    if source.method is None or data is None or data.manifest_hash != run.manifest.hash:
        return []
    rows = [
        *earlier_checks(run.run_uri, source.method),
        *read_rows(run.run_uri, HealthRow, method=source.method),
    ]
    ranks = [row.measures.get("rankme") for row in rows if row.num_images <= num_images]
    return [rank for rank in ranks if rank is not None]
