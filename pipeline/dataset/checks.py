"""Sets that the scores of a run need, known before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import Config
from pipeline.config.stages import NEEDS_VAL
from pipeline.console import counted
from pipeline.dataset.manifest import Manifest
from pipeline.errors import ConfigError, DataError

_SHOWN = 5


def check_scored_sets(config: Config, manifest: Manifest) -> None:
    """Refuse a labelled data set that lacks the set to score on, or to choose an epoch on.

    Raises:
        ConfigError: naming the sets that there are.
        DataError: classes of the scored set have no labelled image to learn from, or a protocol
            draws more images of a class than there are.
    """
    split, have = config.evaluate.split, ", ".join(manifest.sets)
    if split not in manifest.sets:
        raise ConfigError(
            "E-CONFIG-013",
            f"the data set has no {split} set, it has {have}",
            where=f"evaluate.split={split}, data set {manifest.name}",
            todo="set data.num_test_per_class or data.num_val_per_class and ingest, or another "
            "evaluate.split; set data.labelled=false if the labels are not to be used",
        )
    wanting = [p for p in config.evaluate.protocols if p in NEEDS_VAL]
    if wanting and "val" not in manifest.sets:
        raise ConfigError(
            "E-CONFIG-014",
            f"{' and '.join(wanting)} choose the epoch on a val set, the data set has {have}",
            where=f"evaluate.protocols, data set {manifest.name}",
            todo="give data.sets.val and ingest, or use cached-linear or paper-fewshot-last, "
            "which need none",
        )
    if "probe" not in manifest.sets:
        raise ConfigError(
            "E-CONFIG-561",
            f"the data set has no probe set to learn from, it has {have}",
            where=f"data set {manifest.name}",
            todo="give data.sets.probe and ingest",
        )
    labelled, scored = (manifest.sets[n].class_counts for n in ("probe", split))
    names = manifest.class_names or ()
    if labelled is None or scored is None:
        raise DataError(
            "E-DATA-030",
            "a set without class counts cannot be scored",
            where=f"data set {manifest.name}",
            todo="delete the data set and ingest again, one folder per class",
        )
    unknown = [
        names[c] for c, (a, b) in enumerate(zip(labelled, scored, strict=True)) if b and not a
    ]
    if unknown:
        raise DataError(
            "E-DATA-031",
            f"no labelled image of {counted(len(unknown), 'class')} of {split}: {_listed(unknown)}",
            where=f"data set {manifest.name}, set probe",
            todo=f"add labelled images of these classes, or leave them out of {split}; then "
            "delete the data set and ingest again",
        )
    if any("fewshot" in p for p in config.evaluate.protocols):
        shots_per_class(config, manifest, labelled)


def shots_per_class(config: Config, manifest: Manifest, counts: Sequence[int]) -> int:
    """Return how many labelled images of each class a few-shot draw has.

    Where no number is given, one percent of the labels, as in the paper's few-shot sets, but no
    more than the smallest class has.

    Args:
        config: may give the number.
        manifest: may hold lists, which are used as they are.
        counts: labelled images of each class.

    Raises:
        DataError: naming the classes with fewer images.
    """
    names = manifest.class_names or ()
    shots = config.evaluate.shots_per_class
    if shots is None:
        fewest = min((count for count in counts if count), default=1)
        shots = min(fewest, max(1, round(0.01 * sum(counts) / max(1, len(names)))))
    small = [f"{names[c]} ({count})" for c, count in enumerate(counts) if 0 < count < shots]
    if small and not manifest.fewshot:
        raise DataError(
            "E-DATA-036",
            f"few-shot sets of {counted(shots, 'image')} a class cannot be drawn: the labelled "
            "set has fewer "
            f"of {_listed(small)}",
            where=f"evaluate.shots_per_class, data set {manifest.name}",
            todo=f"set evaluate.shots_per_class={min(c for c in counts if c)} or less, set fewer "
            "images aside, or leave the few-shot protocols out of evaluate.protocols",
        )
    return shots


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
