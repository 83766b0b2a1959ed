"""The curate stage: what to leave out of a set, and what to train on, from its vectors alone.

    RUN/curation/duplicates.csv   dropped image, the one that stays for it, their similarity
    RUN/curation/across_sets.csv  held-out set and image, the image it is nearly, their similarity
    RUN/curation/selected.csv     path and label: a list that ingest takes
    RUN/curation/pictures.json    pictures of the examples
    RUN/curation.json             counts and examples, last of all

The vectors are read by the driver: N x F x 4 bytes. The embed stage resumes them, `levels` the
clusters; all that follows is a function of both, so a stage that was killed ends the same.

Shapes: N images of the set, F numbers a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import storage
from pipeline.cluster.connect import Cluster
from pipeline.cluster.jobs import RayTasks, Tasks
from pipeline.curate import selection
from pipeline.curate.levels import Levels, folder_of
from pipeline.curate.selection import Near
from pipeline.curate.words import SIMILARITY, check_words
from pipeline.dataset.manifest import Manifest, SetName
from pipeline.dataset.pictures import originals
from pipeline.embed.collapse import SAMPLE_IMAGES, earlier_ranks, vector_health
from pipeline.embed.features import SetFeatures
from pipeline.embed.stage import embed
from pipeline.embed.wanted import check_set, read_set, run_model
from pipeline.errors import DataError
from pipeline.model.source import ModelSource
from pipeline.record.context import RunContext
from pipeline.record.curation import (
    FILE,
    PICTURES,
    AcrossSets,
    Curation,
    CurationPictures,
    NearPair,
)
from pipeline.record.embedding import VectorHealth
from sdclr.seeds import numpy_generator

_HELD_OUT: tuple[SetName, ...] = ("test", "val")
_NUM_EXAMPLES = 20
_NUM_LEAVES, _NUM_OF_LEAF = 12, 8

Floats = NDArray[np.float32]
Progress = Callable[[str, int, int], None]


def held_out(manifest: Manifest, set_name: SetName) -> list[SetName]:
    """Return the other sets whose images are compared with those of the set."""
    return [name for name in _HELD_OUT if name in manifest.sets and name != set_name]


def curate(
    run: RunContext,
    *,
    cluster: Cluster,
    progress: Progress,
    set_name: SetName = "pretrain",
    keep: int | None = None,
    similarity: float = SIMILARITY,
    tasks: Tasks | None = None,
) -> Curation:
    """Find near-duplicates, select, and write; returns the record at RUN/curation.json.

    Args:
        run: the network, the data set and the folder for what is written.
        cluster: where vectors are made that are not there.
        progress: gets (what, images done, images in all).
        set_name: the set to select from; test and val are compared with it.
        keep: images to select; None = half of those that are no near-duplicates.
        similarity: cosine from which on two images are near-duplicates.
        tasks: what makes the clusters; None = tasks of the cluster.

    Raises:
        ConfigError: the data set lacks the set, or a number is out of range.
        CheckpointError: the run has no finished checkpoint.
        DataError: a shard or a file of vectors is broken, or the vectors are all the same.
    """
    manifest = run.manifest
    check_set(manifest, set_name, stage="curate")
    num_images = manifest.sets[set_name].rows
    check_words(keep, similarity, num_images)
    source = run_model(run).source
    compared = held_out(manifest, set_name)
    features: dict[str, SetFeatures] = {}
    for name in (set_name, *compared):
        made = embed(
            run,
            [source],
            set_name=name,
            cluster=cluster,
            progress=lambda done, total, name=name: progress(f"vectors, {name}", done, total),  # type: ignore[misc]
        )
        place, embedding = made[source.name]
        features[name] = read_set(place, embedding, source.name)
        if name == set_name:
            record = embedding
    own = features[set_name]
    units = _unit_vectors({name: features[name].by_model[source.name] for name in features}, run)
    unit_NF = units[set_name]
    folder = folder_of(run.run_uri, record)
    tasks = tasks or RayTasks(folder, run.config.placement.train_nodes)
    tree = Levels(folder, tasks).tree(
        unit_NF,
        lambda done, total: progress("clusters", done, total),
    )
    cells, levels = tree.cells, tree.levels
    chosen = selection.select(unit_NF, cells, levels, keep=keep, similarity=similarity)
    duplicates, kept = chosen.duplicates, chosen.kept_n
    examples = _examples(duplicates)
    across_sets = {
        name: selection.across_sets(units[name], unit_NF, cells, similarity) for name in compared
    }
    num_cells = len(cells.centres_KF)
    sizes, left = (np.bincount(cells.labels_N[rows], minlength=num_cells)
                   for rows in (np.arange(num_images), kept))  # fmt: skip
    by_size = np.argsort(-sizes, kind="stable")
    found = Curation(
        data=record.data,
        set=set_name,
        weights=record.weights,
        similarity=similarity,
        images=num_images,
        duplicates=len(duplicates),
        examples=_pairs(examples, own.ids, own.ids),
        across_sets=tuple(
            AcrossSets(
                set=name,
                images=len(near),
                of=len(features[name].ids),
                examples=_pairs(near[:_NUM_EXAMPLES], features[name].ids, own.ids),
            )
            for name, near in across_sets.items()
        ),
        levels=(num_cells, *(int(level.max()) + 1 for level in levels)),
        kept=len(kept),
        leaf_images=tuple(sizes[by_size].tolist()),
        leaf_kept=tuple(left[by_size].tolist()),
        vectors=_vector_health(run, source, own.by_model[source.name]),
    )
    folder = storage.join(run.run_uri, "curation")
    pairs = _pairs(duplicates, own.ids, own.ids)
    _write(folder, "duplicates.csv", ("id", "near", "similarity"),
           ((p.id, p.other, p.similarity) for p in pairs))  # fmt: skip
    _write(
        folder,
        "across_sets.csv",
        ("set", "id", "near", "similarity"),
        (
            (name, p.id, p.other, p.similarity)
            for name, near in across_sets.items()
            for p in _pairs(near, features[name].ids, own.ids)
        ),
    )
    names = manifest.class_names
    labels = [int(own.labels_N[row]) for row in kept]
    if names is not None and all(label >= 0 for label in labels):
        lines = ((own.ids[row], names[label]) for row, label in zip(kept, labels, strict=True))
        _write(folder, "selected.csv", ("path", "label"), lines)
    else:
        _write(folder, "selected.csv", ("path",), ((own.ids[row],) for row in kept))
    shown = [kept[cells.labels_N[kept] == leaf][:_NUM_OF_LEAF] for leaf in by_size[:_NUM_LEAVES]]
    rows = {set_name: [int(row) for leaf in shown for row in leaf]}
    rows[set_name] += [row for near in examples for row in (near.row, near.other)]
    for name, near in across_sets.items():
        rows[name] = [one.row for one in near[:_NUM_EXAMPLES]]
        rows[set_name] += [one.other for one in near[:_NUM_EXAMPLES]]
    CurationPictures(
        thumbs={
            name: {
                features[name].ids[row]: thumb
                for row, (thumb, _) in originals(
                    run.data_uri, manifest, name, rows[name], large=set()
                ).items()
            }
            for name in rows
        },
        leaves=tuple(tuple(own.ids[row] for row in leaf) for leaf in shown),
    ).write(storage.join(run.run_uri, PICTURES))
    found.write(storage.join(run.run_uri, FILE))
    return found


def _vector_health(run: RunContext, source: ModelSource, own_NF: Floats) -> VectorHealth:
    """Measure a fixed sample of the set."""
    order_N = numpy_generator(0, "vector health").permutation(len(own_NF))
    sample_nF = torch.from_numpy(own_NF[np.sort(order_N[:SAMPLE_IMAGES])])
    return vector_health(sample_nF, earlier_ranks(run, source, len(sample_nF)))


def _unit_vectors(features: Mapping[str, Floats], run: RunContext) -> dict[str, Tensor]:
    """Return the vectors of each set, of length 1 from the mean of the first.

    Raises:
        DataError: no cosine says how alike they are.
    """
    own_NF = next(iter(features.values()))
    try:
        if len({values_NF.shape[1] for values_NF in features.values()}) > 1:
            raise ValueError("those of different sets differ in their number of values")
        if (own_NF == own_NF[0]).all():
            raise ValueError("all are the same" if len(own_NF) > 1 else "there is one image only")
        with np.errstate(over="ignore"):
            mean_F = own_NF.mean(axis=0)
        return {name: selection.unit_vectors(of_set, mean_F) for name, of_set in features.items()}
    except ValueError as error:
        raise DataError(
            "E-DATA-850",
            f"the vectors of {len(own_NF)} images cannot be compared: {error}",
            where=storage.join(run.run_uri, "embeddings"),
            todo="curate a set of several images, by a network that distinguishes them",
        ) from error


def _examples(near: list[Near]) -> list[Near]:
    """Return the least alike, which show whether the limit is right, and the most alike pairs."""
    by_similarity = sorted(near, key=lambda one: (one.similarity, one.row))
    half = _NUM_EXAMPLES // 2
    if len(near) <= _NUM_EXAMPLES:
        return by_similarity
    return by_similarity[:half] + by_similarity[-half:]


def _pairs(near: Sequence[Near], ids: Sequence[str], others: Sequence[str]) -> tuple[NearPair, ...]:
    return tuple(
        NearPair(id=ids[one.row], other=others[one.other], similarity=one.similarity)
        for one in near
    )


def _write(
    folder: str, name: str, heading: Sequence[str], lines: Iterable[Sequence[object]]
) -> None:
    storage.write_bytes(storage.join(folder, name), storage.to_csv(heading, lines))
