"""Vectors of the sets that protocols need: read where there are some, else extracted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from pipeline.cluster.connect import Cluster, refreshed
from pipeline.cluster.retry import retry_lost_work
from pipeline.console import Console
from pipeline.embed.features import SetFeatures, extract
from pipeline.embed.wanted import read_models
from pipeline.model.source import ModelSource
from pipeline.record.context import RunContext


def vectors_of(
    run: RunContext,
    sources: Sequence[ModelSource],
    set_names: tuple[str, ...],
    cluster: Cluster,
    console: Console,
) -> dict[str, SetFeatures]:
    """Return the vectors of each set by each model: read where the embed stage left them."""
    found: dict[str, SetFeatures] = {}
    open_sets: dict[tuple[ModelSource, ...], list[str]] = {}
    for name in set_names:
        read = read_models(run, sources, name) if name != "pretrain" else None
        if read is not None:
            console.stage("evaluate", f"{name}: vectors of {', '.join(read.by_model)} are read")
            found[name] = read
        missing = tuple(s for s in sources if read is None or s.name not in read.by_model)
        if missing:
            open_sets.setdefault(missing, []).append(name)
    for missing, names in open_sets.items():
        extracting = partial(
            extract,
            run,
            sources=list(missing),
            set_names=tuple(names),
            progress=partial(console.progress, "features"),
        )
        extracted = retry_lost_work(
            partial(_on_live_cluster, extracting, cluster),
            say=lambda text: console.stage("evaluate", text),
        )
        for name, features in extracted.items():
            if name in found:
                features.by_model |= found[name].by_model
            found[name] = features
    return {name: found[name] for name in set_names}


def _on_live_cluster(
    work: Callable[..., dict[str, SetFeatures]], cluster: Cluster
) -> dict[str, SetFeatures]:
    """Call with the cluster as it is now: each try may find other nodes."""
    return work(cluster=refreshed(cluster))
