"""The embed stage: vectors of a set's images under frozen networks, kept where they can be read.

    RUN/embeddings/SET-MODEL-KEY/vectors-000000000.parquet   by the place of their first image
    RUN/embeddings/SET-MODEL-KEY/embedding.json              the manifest, last of all

One Ray task reads and decodes a shard of images, one actor passes it through all networks and
writes the files, so no vector travels through the driver. KEY is a hash of the weights, the view
and the images: what an interrupted stage left there is what the next one would write, so it is
checked and kept.

Shapes: N images of the set, n of one shard, F numbers a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import feed, storage
from pipeline.cluster.connect import Cluster
from pipeline.cluster.jobs import RayTasks, Result
from pipeline.dataset.decoding import Columns
from pipeline.dataset.manifest import SetName
from pipeline.dataset.sets import parts_of
from pipeline.embed.features import (
    Extractor,
    extractor_arguments,
    over_blocks,
    placement,
)
from pipeline.embed.shards import Vectors, kept_shard, name_of, write_vectors
from pipeline.embed.wanted import Wanted, check_set, find, wanted
from pipeline.errors import DataError
from pipeline.model.source import ModelSource
from pipeline.record.context import RunContext
from pipeline.record.embedding import (
    FILE,
    DType,
    Embedding,
    VectorShard,
)

Progress = Callable[[int, int], None]


def embed(
    run: RunContext,
    sources: Sequence[ModelSource],
    *,
    set_name: SetName = "pretrain",
    dtype: DType = "float32",
    cluster: Cluster,
    progress: Progress,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, tuple[str, Embedding]]:
    """Make the vectors of a set under each network, or find them made: name -> folder, manifest.

    Args:
        run: the networks' configuration, the data set, and the folder for the vectors.
        sources: the networks, each with a name of its own.
        set_name: whose images.
        dtype: of the stored numbers.
        cluster: where the work runs.
        progress: called with (images done, images in all).
        note: called with what else a person should know.

    Raises:
        ConfigError: the data set lacks the set.
        CheckpointError: weights are missing or do not fit.
        DataError: a shard of images or a finished embedding is broken, or a vector is not finite.
    """
    check_set(run.manifest, set_name, stage="embed")
    everything = {source.name: wanted(run, source, set_name, dtype) for source in sources}
    done = {name: (one.folder, found) for name, one in everything.items() if (found := find(one))}
    todo = [source for source in sources if source.name not in done]
    if todo:
        made = _make(run, todo, everything, set_name, cluster, progress, note)
        for name, shards in made.items():
            one = everything[name]
            content = one.embedding.model_copy(update={"shards": shards})
            content.write(storage.join(one.folder, FILE))
            done[name] = one.folder, content
    return {source.name: done[source.name] for source in sources}


class Embedder(Extractor):
    """Worker that writes the features of a shard of images: one file for each network.

    Args:
        folders: by the name of the network.
        dtype: of the stored numbers.
        arguments: of `Extractor`.
    """

    def __init__(
        self, folders: Mapping[str, str], dtype: DType, arguments: tuple[Any, ...]
    ) -> None:
        super().__init__(*arguments)
        self._folders, self._dtype = dict(folders), dtype

    def __call__(self, batch: Columns) -> Columns:
        """Return what the manifests will say of the files: one value a network."""
        found = super().__call__(batch)
        written = {
            name: write_vectors(
                folder,
                Vectors(
                    rows=batch["row"],
                    ids=batch["id"].tolist(),
                    values_nF=found[f"feature_{name}"],
                    hashes=batch["sha256"].tolist(),
                    labels_n=batch["label"],
                ),
                self._dtype,
            )
            for name, folder in self._folders.items()
        }
        return {
            "model": np.array(list(written)),
            "shard": np.array([shard.model_dump_json() for shard in written.values()]),
        }


def _make(
    run: RunContext,
    todo: Sequence[ModelSource],
    everything: Mapping[str, Wanted],
    set_name: SetName,
    cluster: Cluster,
    progress: Progress,
    note: Callable[[str], None],
) -> dict[str, tuple[VectorShard, ...]]:
    """Write the files that are missing, and return all, sorted, by the name of the network."""
    config, manifest = run.config, run.manifest
    dtype = everything[todo[0].name].embedding.dtype
    parts = {
        int(part.places_n[0]): part.places_n for part in parts_of(run.data_uri, manifest, set_name)
    }
    found = {source.name: _kept(everything[source.name], parts, run) for source in todo}
    missing = {first for first in parts for shards in found.values() if first not in shards}
    done = sum(len(rows) for first, rows in parts.items() if first not in missing)
    if done:
        note(f"vectors of {done} images are there")
    total = manifest.sets[set_name].rows
    progress(done, total)
    if missing:
        place = placement(config, cluster)
        folders = {source.name: everything[source.name].folder for source in todo}
        arguments = extractor_arguments(run, todo, place)
        rows = feed.decoded_rows(
            config, run.data_uri, manifest, set_name, only=missing, with_sha256=True
        )
        written = over_blocks(
            rows, Embedder, (folders, dtype, arguments), place,
            mark=config.placement.train_nodes,
        )  # fmt: skip
        for batch in written:
            for name, text in zip(batch["model"].tolist(), batch["shard"].tolist(), strict=True):
                shard = VectorShard.model_validate_json(text)
                found[name][shard.first_row] = shard
                done += shard.rows if name == todo[0].name else 0
            progress(done, total)
    return {name: tuple(shards[first] for first in sorted(parts)) for name, shards in found.items()}


def _kept(
    one: Wanted, parts: Mapping[int, NDArray[np.int64]], run: RunContext
) -> dict[int, VectorShard]:
    """Return the files that an interrupted stage left whole, by the place of the first image."""
    there = storage.list_sizes(one.folder)
    items = [{"first_row": first} for first in parts if name_of(first) in there]
    tasks = RayTasks(one.folder, run.config.placement.train_nodes)
    found = tasks.map(_check_kept, items, (one.folder, one.embedding.dtype, parts)) if items else ()
    shards = [VectorShard(**result.values) for _, result in found if result.values is not None]
    return {shard.first_row: shard for shard in shards}


def _check_kept(
    item: dict[str, int], shared: tuple[str, DType, Mapping[int, NDArray[np.int64]]]
) -> Result:
    """Return the description of a file if it is whole and of the right images; a job."""
    folder, dtype, parts = shared
    first_row = item["first_row"]
    try:
        return Result(kept_shard(folder, first_row, parts[first_row], dtype).model_dump())
    except DataError:  # it is written again
        return Result()
