"""Vectors that a stage wants: of which network, images and view, where they are, and reading them.

Shapes: N images of the set, F numbers a vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline import storage
from pipeline.config import Config
from pipeline.dataset.manifest import Manifest, SetName
from pipeline.embed.features import SetFeatures
from pipeline.embed.shards import read_vectors
from pipeline.errors import ConfigError, DataError
from pipeline.feed.rows import in_order
from pipeline.model import build, checkpoint
from pipeline.model.source import ModelSource, given_source, weights_hash
from pipeline.record.context import RunContext
from pipeline.record.embedding import (
    FILE,
    GIVEN_FILE,
    DType,
    EmbeddedBy,
    Embedding,
    GivenWeights,
    PlainView,
)
from pipeline.record.run import DataRef
from sdclr import TrainState
from sdclr.methods import method_class


@dataclass(frozen=True)
class Wanted:
    """Vectors of one set under one network: everything that a number of theirs depends on.

    Args:
        folder: where they are, or will be.
        embedding: its manifest, as yet without files.
    """

    folder: str
    embedding: Embedding


def check_set(manifest: Manifest, set_name: SetName, *, stage: str) -> None:
    """Refuse a set that the data set lacks.

    Raises:
        ConfigError: naming the sets that there are.
    """
    if set_name not in manifest.sets:
        raise ConfigError(
            "E-CONFIG-026",
            f"the data set has no {set_name} set, it has {', '.join(manifest.sets)}",
            where=f"{stage} --set {set_name}",
            todo="choose one of them",
        )


@dataclass(frozen=True)
class RunModel:
    """The network that a run's vectors are of.

    Args:
        source: where it is.
        method: that trained it; None for weights that were given.
        state: of its newest checkpoint; None for weights that were given.
    """

    source: ModelSource
    method: str | None = None
    state: TrainState | None = None


def preferred_method(config: Config) -> str:
    """Return the method with the network that images are ranked by.

    SDCLR where it was trained, else the first. To rank by losses in training: one that keeps them.
    """
    methods = config.train.methods
    if config.mine.score == "training_loss" and config.train.loss_memory is None:
        methods = tuple(m for m in methods if method_class(m).needs_losses) or methods
    return "sdclr" if "sdclr" in methods else methods[0]


def run_model(run: RunContext) -> RunModel:
    """Return the newest model of a run, or the weights that it was given.

    Raises:
        CheckpointError: the run has no finished checkpoint, or the weights do not fit.
    """
    given = GivenWeights.find(storage.join(run.run_uri, GIVEN_FILE))
    if given is not None:
        return RunModel(given_source(run.config, given.uri)[0])
    method = preferred_method(run.config)
    state, found = checkpoint.newest(run.run_uri, method, config_hash=run.config_hash)
    return RunModel(ModelSource(method, found.uri, method, run.config_hash), method, state)


def wanted(run: RunContext, source: ModelSource, set_name: str, dtype: DType) -> Wanted:
    """Return what the vectors of a set under a network depend on, and their folder."""
    weights = EmbeddedBy(
        name=source.name, uri=source.uri, sha256=weights_hash(source, run.config_hash)
    )
    view = PlainView(
        crop_px=build.crop_px(run.config, run.manifest),
        resize_px=build.resize_px(run.config, run.manifest),
    )
    parts = [weights.sha256, view.model_dump(), run.manifest.hash, set_name, dtype]
    key = hashlib.sha256(storage.to_json(parts)).hexdigest()[:8]
    folder = storage.join(run.run_uri, "embeddings", f"{set_name}-{source.name}-{key}")
    info = run.manifest.sets[set_name]  # type: ignore[index]
    return Wanted(
        folder,
        Embedding(
            data=DataRef(uri=run.data_uri, manifest_hash=run.manifest.hash, name=run.manifest.name),
            set=set_name,
            backbone=run.config.model.backbone,
            weights=weights,
            view=view,
            dtype=dtype,
            rows=info.rows,
            shards=(),
        ),
    )


def find(one: Wanted) -> Embedding | None:
    """Return the finished embedding of exactly these inputs; None while there is none.

    Raises:
        DataError: its manifest is of other inputs, or a file is missing or has another size.
    """
    found = Embedding.find(storage.join(one.folder, FILE))
    if found is None:
        return None
    sizes = storage.list_sizes(one.folder)
    wrong = [shard.name for shard in found.shards if sizes.get(shard.name) != shard.bytes]
    fits = (
        found.weights.sha256 == one.embedding.weights.sha256
        and found.data.manifest_hash == one.embedding.data.manifest_hash
        and (found.view, found.set, found.dtype, found.rows)
        == (one.embedding.view, one.embedding.set, one.embedding.dtype, one.embedding.rows)
        and sum(shard.rows for shard in found.shards) == found.rows
        and len({shard.dim for shard in found.shards}) == 1
    )
    if wrong or not fits:
        what = f"{len(wrong)} files of vectors are missing or of another size"
        raise DataError(
            "E-DATA-662",
            what if wrong else "the manifest of the vectors does not fit its folder",
            where=one.folder,
            todo="delete the folder and run the embed stage again",
        )
    return found


def read_set(folder: str, embedding: Embedding, name: str) -> SetFeatures:
    """Return all vectors of a finished embedding in the order of the set, under a model's name.

    Raises:
        DataError: a file is broken.
    """
    batches = []
    for shard in embedding.shards:
        vectors = read_vectors(folder, shard, embedding.dtype)
        batches.append(
            {
                "row": vectors.rows,
                "id": np.array(vectors.ids, object),
                "label": vectors.labels_n,
                "vector": vectors.values_nF,
            }
        )
    columns = in_order(batches, folder, embedding.rows)
    return SetFeatures(columns["id"].tolist(), columns["label"], {name: columns["vector"]})


def read_models(
    run: RunContext, sources: Sequence[ModelSource], set_name: str
) -> SetFeatures | None:
    """Return the float32 vectors of a set under those networks that have some; None without any.

    Raises:
        DataError: a file of vectors is broken.
    """
    both: SetFeatures | None = None
    for source in sources:
        one = wanted(run, source, set_name, "float32")
        embedding = find(one)
        if embedding is None:
            continue
        read = read_set(one.folder, embedding, source.name)
        if both is None:
            both = read
        else:
            both.by_model |= read.by_model
    return both
