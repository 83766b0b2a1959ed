"""The mine stage: rank every image of a data set by how rare it is, and suggest what to label.

    RUN/mining/scores-00000.parquet   rank, id, label and scores of every image, rarest first
    RUN/mining/annotate.csv           the suggested batch, most useful first; for other tools see
                                      `handover`
    RUN/mining/gallery.json           the pictures that mining.html shows
    RUN/mining.json                   what the pages show of the rest

Shapes: N images of the set, R prune ratios.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from pipeline import storage
from pipeline.cluster.connect import Cluster
from pipeline.config import Config
from pipeline.dataset.manifest import Manifest, SetName
from pipeline.embed.collapse import SAMPLE_IMAGES, earlier_ranks, vector_health
from pipeline.embed.stage import embed
from pipeline.embed.wanted import RunModel, check_set, run_model
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate.labelled import class_groups
from pipeline.mine import given_labels, handover
from pipeline.mine.extractor import TRAINED, as_twin, masks_by_ratio, reference_sample
from pipeline.mine.findings import findings
from pipeline.mine.gallery import gallery
from pipeline.mine.given_labels import GivenLabels
from pipeline.mine.map import feature_map
from pipeline.mine.scoring import (
    REFERENCE_IMAGES,
    Progress,
    ScoredSet,
    disagreements,
    scored_set,
)
from pipeline.model import build
from pipeline.model.source import PIXELS, UNTRAINED, ModelSource
from pipeline.record.context import RunContext
from pipeline.record.curation import find_selection
from pipeline.record.embedding import VectorHealth
from pipeline.record.evaluation import ClassGroups
from pipeline.record.gallery import gallery_uri
from pipeline.record.mining import Findings, MinedData, Mining
from sdclr import TrainState, Twin
from sdclr.health import rankme
from sdclr.loss_memory import means_of
from sdclr.rarity import CANDIDATES_PER_ROW, rank_share, stratified_batch
from sdclr.state import LOSS_MEMORY

_ROWS_PER_FILE = 1_000_000

Table = dict[str, NDArray[Any]]


def mine(
    run: RunContext,
    *,
    cluster: Cluster,
    progress: Progress,
    set_name: SetName = "pretrain",
    is_own: bool = True,
    given: GivenLabels | None = None,
) -> Mining:
    """Score, rank and write; returns the record at RUN/mining.json.

    Args:
        run: the network, the data set and the folder for what is written.
        cluster: where the work runs.
        progress: gets (what, images done, images in all).
        set_name: which set is ranked.
        is_own: whether the run was trained on the data set.
        given: labels of suggested images; they take no part in the ranking.

    Raises:
        CheckpointError: the run has no finished checkpoint.
        ConfigError: the data set lacks the set, a prune ratio starves a layer, or the
            score is the training loss, which the run did not keep for these images.
        DataError: the set has fewer than 2 images, labels are of other images, or the lists of
            a curation are broken.
    """
    config, manifest, run_uri, data_uri = run.config, run.manifest, run.run_uri, run.data_uri
    check_set(manifest, set_name, stage="mine")
    info = manifest.sets[set_name]
    if info.rows < 2:
        raise DataError(
            "E-DATA-082", "a ranking needs 2 images or more", where=data_uri, todo="add images"
        )
    selection = find_selection(run_uri, manifest.hash, set_name)
    model = run_model(run)
    training_loss_N = _training_loss(config, model.state, is_own=is_own and set_name == "pretrain")
    labelled = manifest.has_labels(set_name)
    with_pruning = config.mine.score in ("disagreement", "both")
    if with_pruning:
        _check_ratios(config, model, with_untrained=labelled)
    models = {TRAINED: model.source}
    if labelled:
        models |= {UNTRAINED: ModelSource(UNTRAINED), PIXELS: ModelSource(PIXELS)}
    vectors = embed(
        run,
        list(models.values()),
        set_name=set_name,
        cluster=cluster,
        progress=lambda done, total: progress("vectors", done, total),
    )
    scored = scored_set(
        {name: vectors[one.name] for name, one in models.items()},
        k=config.mine.knn_k,
        mark=config.placement.train_nodes,
        progress=progress,
    )
    if with_pruning:
        scored.disagreement = disagreements(
            run,
            model.source,
            set_name=set_name,
            with_untrained=labelled,
            cluster=cluster,
            progress=progress,
        )
    scored.training_loss_N = training_loss_N
    scores = {
        (model, name): values for model in models for name, values in signals(scored, model).items()
    }
    rarity_N = scores[TRAINED, config.mine.score]
    order_N = np.argsort(-rarity_N, kind="stable")
    batch = annotation_batch(config, scored, order_N)
    labelled_batch, root = None, handover.root_of(manifest)
    if given is not None:
        given = given.below(root)
        labelled_batch = given_labels.labelled_batch(given, scored.ids, batch)
    ranked = handover.Ranked(
        ids=scored.ids,
        labels_N=scored.labels_N,
        class_names=manifest.class_names,
        rarity_N=rarity_N,
        order_N=order_N,
        batch=batch,
        by=f"{model.source.name} {config.mine.score}",
        given=given.labels if given is not None else {},
        selection=selection,
    )
    handover.refuse_loss(run_uri, ranked)
    _write_scores(run_uri, config, scored, order_N)
    handover.write(run_uri, ranked, data_uri=data_uri, manifest=manifest, set_name=set_name)
    groups = class_groups(config, manifest)
    mining = Mining(
        data=MinedData(uri=data_uri, name=manifest.name, manifest_hash=manifest.hash),
        set=set_name,
        method=model.source.name,
        step=int(model.state.numbers["step"]) if model.state is not None else None,
        score=config.mine.score,
        prune_ratios=tuple(config.mine.prune_ratios),
        num_views=config.mine.num_views,
        knn_k=config.mine.knn_k,
        num_reference=min(REFERENCE_IMAGES, info.rows),
        scored=info.rows,
        class_names=manifest.class_names or None,
        findings=_findings(config, manifest, scored, scores, batch) if labelled else None,
        groups=ClassGroups(**asdict(groups)) if groups else None,
        map=feature_map(scored, rarity_N),
        labelled=labelled_batch,
        vectors=_vector_health(run, model.source, scored),
    )
    pictures = gallery(
        scored,
        rarity_N,
        order_N,
        batch,
        data_uri=data_uri,
        manifest=manifest,
        set_name=set_name,
    )
    pictures.write(gallery_uri(run_uri))
    mining.write(storage.join(run_uri, "mining.json"))
    return mining


def signals(scored: ScoredSet, model: str) -> dict[str, NDArray[np.float64]]:
    """Return every score (N,) that can rank, -inf for unknown; `both` is the mean rank."""
    distance_N = scored.knn_distance[model].astype(np.float64)
    found = {"knn_distance": distance_N}
    if model in scored.disagreement:
        change_N = scored.disagreement[model].astype(np.float64).mean(axis=1)
        both_N = (rank_share(change_N) + rank_share(distance_N)) / 2
        found |= {"disagreement": change_N, "both": both_N}
    if model == TRAINED and scored.training_loss_N is not None:
        loss_N = scored.training_loss_N.astype(np.float64)
        found["training_loss"] = np.where(np.isnan(loss_N), -np.inf, loss_N)
    return found


def annotation_batch(config: Config, scored: ScoredSet, order_N: NDArray[np.int64]) -> list[int]:
    """Return rows to label first, in turns from clusters of the rarest images."""
    wanted = config.mine.batch_images
    candidates = order_N[: CANDIDATES_PER_ROW * wanted]
    features = torch.from_numpy(scored.features(TRAINED, candidates))
    return [int(candidates[i]) for i in stratified_batch(features, wanted)]


def _vector_health(run: RunContext, source: ModelSource, scored: ScoredSet) -> VectorHealth:
    """Measure the vectors of a fixed sample; the untrained network is a baseline where it is."""
    rows_n = reference_sample(len(scored.ids), SAMPLE_IMAGES)
    ranks = earlier_ranks(run, source, len(rows_n))
    if UNTRAINED in scored.knn_distance:
        ranks.append(rankme(torch.from_numpy(scored.features(UNTRAINED, rows_n))))
    return vector_health(torch.from_numpy(scored.features(TRAINED, rows_n)), ranks)


def _findings(
    config: Config,
    manifest: Manifest,
    scored: ScoredSet,
    scores: dict[tuple[str, str], NDArray[np.float64]],
    batch: list[int],
) -> Findings | None:
    groups = class_groups(config, manifest)
    if groups is None or manifest.class_names is None or (scored.labels_N < 0).any():
        return None
    ratios = config.mine.prune_ratios
    single = {
        (model, f"disagreement at {ratio:g}"): table[:, i].astype(np.float64)
        for model, table in scored.disagreement.items()
        for i, ratio in enumerate(ratios)
        if len(ratios) > 1
    }
    return findings(
        {**scores, **single},
        scored.labels_N,
        groups,
        manifest.class_names,
        manifest.sets["pretrain"].class_counts or (),
        batch,
        used=(TRAINED, config.mine.score),
    )


def _write_scores(
    run_uri: str, config: Config, scored: ScoredSet, order_N: NDArray[np.int64]
) -> None:
    """Write the table of all images, rarest first, in files of a million rows."""
    columns: Table = {
        "rank": np.arange(1, len(order_N) + 1),
        "id": np.array(scored.ids, object)[order_N],
        "label": scored.labels_N[order_N].astype(np.int32),
    }
    if TRAINED in scored.disagreement:
        for i, ratio in enumerate(config.mine.prune_ratios):
            columns[f"disagreement_{ratio:g}"] = scored.disagreement[TRAINED][order_N, i]
    for name, values_N in signals(scored, TRAINED).items():
        columns[name] = values_N[order_N].astype(np.float32)
    folder = storage.join(run_uri, "mining")
    handover.remove_older(run_uri)
    for number, start in enumerate(range(0, len(order_N), _ROWS_PER_FILE)):
        part = {name: values[start : start + _ROWS_PER_FILE] for name, values in columns.items()}
        arrays = {name: pa.array(values) for name, values in part.items()}
        arrays["label"] = pa.array(part["label"], mask=part["label"] < 0)
        if "training_loss" in part:
            loss = part["training_loss"]
            arrays["training_loss"] = pa.array(loss, mask=~np.isfinite(loss))
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(arrays), sink)
        uri = storage.join(folder, f"scores-{number:05d}.parquet")
        storage.write_bytes(uri, sink.getvalue().to_pybytes())


def _check_ratios(config: Config, model: RunModel, *, with_untrained: bool) -> None:
    """Refuse here what an actor could only refuse by not starting."""
    if model.method is None or model.state is None:
        raise ConfigError(
            "E-CONFIG-660",
            "weights of a file have no head whose embeddings pruning could change",
            where=f"mine.score={config.mine.score}",
            todo="use mine.score=knn_distance, or a run that was trained",
        )
    masks_by_ratio(config, as_twin(build.trained_model(config, model.method, model.state)))
    if with_untrained:
        start = build.init_uri(config)
        masks_by_ratio(config, Twin(build.new_network(config, model.method, init_from=start)))


def _training_loss(
    config: Config, state: TrainState | None, *, is_own: bool
) -> NDArray[np.float32] | None:
    """Return each image's loss in training, of the run's own pre-training set only."""
    sums_2N = state.tensors.get(LOSS_MEMORY) if is_own and state is not None else None
    if sums_2N is not None:
        means: NDArray[np.float32] = means_of(sums_2N).numpy()
        return means
    if config.mine.score != "training_loss":
        return None
    if not is_own:
        raise ConfigError(
            "E-CONFIG-027",
            "only images that the run was trained on have a loss",
            where="mine.score=training_loss",
            todo="use another score, or leave out --data and --set",
        )
    raise ConfigError(
        "E-CONFIG-028",
        "the run kept no loss of each image",
        where="mine.score=training_loss",
        todo="use another score, or train a run with train.loss_memory=0.97",
    )
