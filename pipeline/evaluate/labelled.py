"""Labels that an evaluation can rest on: sets that are there, classes that are known, few shots.

Shapes: N images of a set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.console import counted
from pipeline.dataset.checks import shots_per_class
from pipeline.dataset.manifest import Manifest
from pipeline.embed.features import SetFeatures
from pipeline.errors import DataError
from sdclr.fewshot import fewshot_draws
from sdclr.groups import Groups, groups_by_tercile, groups_by_threshold, tied_with_few

_SHOWN = 5


def class_groups(config: Config, manifest: Manifest) -> Groups | None:
    """Return many, medium and few by pre-training counts; None without labels."""
    counts = manifest.sets["pretrain"].class_counts
    if counts is None or manifest.class_names is None:
        return None
    by_threshold = config.evaluate.groups == "threshold"
    return (groups_by_threshold if by_threshold else groups_by_tercile)(list(counts))


def ties(manifest: Manifest, groups: Groups) -> list[str]:
    """Say which classes are as rare as those of Few and not among them; empty without any."""
    counts, names = manifest.sets["pretrain"].class_counts or (), manifest.class_names or ()
    tied = [names[label] for label in tied_with_few(counts, groups)]
    if not tied:
        return []
    return [
        f"as few images as a class of Few, and only their order keeps them out: {_listed(tied)}"
    ]


def check_labels(manifest: Manifest, set_name: str, found: SetFeatures) -> None:
    """Refuse a set whose labels are not what the manifest says they are.

    Raises:
        DataError: images without a label, labels of no class, or other counts than recorded.
    """
    names, labels_N = manifest.class_names or (), found.labels_N
    where = f"data set {manifest.name}, set {set_name}"
    for what, wrong_N in (
        ("no label", labels_N < 0),
        (f"a label outside the {len(names)} classes", labels_N >= len(names)),
    ):
        if wrong_N.any():
            first = [found.ids[row] for row in np.flatnonzero(wrong_N)[:_SHOWN]]
            raise DataError(
                "E-DATA-032",
                f"{int(wrong_N.sum())} of {len(labels_N)} images have {what}: {_listed(first)}",
                where=where,
                todo="delete the data set and ingest again",
            )
    counts = np.bincount(labels_N, minlength=len(names)).tolist()
    recorded = manifest.sets[set_name].class_counts  # type: ignore[index]
    if recorded is not None and list(recorded) != counts:
        label = next(
            c for c, pair in enumerate(zip(recorded, counts, strict=True)) if len({*pair}) > 1
        )
        raise DataError(
            "E-DATA-033",
            f"the labels do not match the manifest: class {names[label]!r} has {counts[label]} "
            f"images, {recorded[label]} are recorded",
            where=where,
            todo="delete the data set and ingest again",
        )


def labelled_images(features: Mapping[str, SetFeatures]) -> tuple[SetFeatures, int]:
    """Return the labelled set, and after it the images that only few-shot lists name.

    Returns:
        The features, and how many of the rows, the first ones, are the labelled set.
    """
    probe, others = features["probe"], features.get("fewshot")
    if others is None:
        return probe, len(probe.ids)
    joined = SetFeatures(
        [*probe.ids, *others.ids],
        np.concatenate([probe.labels_N, others.labels_N]),
        {
            model: np.concatenate([values, others.by_model[model]])
            for model, values in probe.by_model.items()
        },
    )
    return joined, len(probe.ids)


def fewshot_rows(
    config: Config,
    manifest: Manifest,
    ids: Sequence[str],
    labels_N: NDArray[np.int64],
    num_probe: int | None = None,
) -> list[NDArray[np.int64]]:
    """Return labelled rows for each few-shot draw: the published lists, or our own.

    Args:
        config: how many draws and shots.
        manifest: may hold the lists.
        ids: of all images with a label, as `labelled_images` returns them.
        labels_N: their classes.
        num_probe: how many of them are the labelled set, from which our own sets are drawn.

    Raises:
        DataError: a list names other images, or lacks a class; or a class has too few images.
    """
    if not manifest.fewshot:
        return _drawn(config, manifest, labels_N[:num_probe])
    where = f"data set {manifest.name}"
    row_of = {sample_id: row for row, sample_id in enumerate(ids)}
    unknown = [i for listed in manifest.fewshot for i in listed if i not in row_of]
    if unknown:
        raise DataError(
            "E-DATA-034",
            f"{len(unknown)} few-shot images have no label in the data set",
            where=f"{where}, first: {unknown[0]}",
            todo="use few-shot lists of labelled images of this data set",
        )
    draws = [np.array([row_of[i] for i in listed], np.int64) for listed in manifest.fewshot]
    names = manifest.class_names or ()
    for number, rows in enumerate(draws):
        empty = sorted(set(labels_N[:num_probe].tolist()) - set(labels_N[rows].tolist()))
        if empty:
            raise DataError(
                "E-DATA-035",
                f"few-shot list {number + 1} has no image of {counted(len(empty), 'class')}: "
                f"{_listed([names[c] for c in empty])}",
                where=where,
                todo="use lists with images of every class (data.sets.fewshot), or none: then "
                "balanced draws are made",
            )
    return draws


def _drawn(
    config: Config, manifest: Manifest, labels_N: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    counts = np.bincount(labels_N, minlength=len(manifest.class_names or ()))
    return fewshot_draws(
        labels_N,
        shots_per_class=shots_per_class(config, manifest, counts.tolist()),
        num_draws=config.evaluate.fewshot_draws,
        seed=config.run.seed,
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
