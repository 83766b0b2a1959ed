"""The mine stage: findings on known scores, errors, and the whole path on Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.cluster.connect import Cluster
from pipeline.config import Config
from pipeline.config.file import config_hash, load_config
from pipeline.dataset.manifest import ImageInfo, Manifest, Rejects, SetInfo, sealed
from pipeline.dataset.shards import write_shard
from pipeline.errors import ConfigError
from pipeline.mine.extractor import DisagreementExtractor, reference_sample
from pipeline.mine.findings import findings
from pipeline.mine.given_labels import GivenLabels
from pipeline.mine.stage import mine
from pipeline.model import build, checkpoint
from pipeline.model.source import ModelSource
from pipeline.record.context import RunContext
from pipeline.record.embedding import GIVEN_FILE, GivenWeights
from pipeline.record.gallery import Gallery, gallery_uri
from pipeline.record.mining import Mining
from sdclr import LossMemory, Trainer, capture
from sdclr.groups import Groups
from tests.refusals import raises

GROUPS = Groups(many=(0,), medium=(1,), few=(2,))
NAMES = ("cat", "dog", "eel")
COUNTS = (40, 15, 5)
WORDS = [
    "train.methods=[sdclr]", "train.epochs=1", "train.global_batch=20", "train.workers=1",
    "mine.num_views=2", "mine.prune_ratios=[0.5, 0.9]", "mine.knn_k=3", "mine.batch_images=6",
]  # fmt: skip
BOTH = "mine.score=both"
CONFIG = load_config(None, WORDS)


CLUSTER = Cluster("", True, 4, 0, "", largest_node_cpus=4)


def data_set(folder: Path, num_shards: int = 2) -> Manifest:
    """Three classes, each a flat colour with noise, in shuffled order."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat([0, 1, 2], COUNTS))
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 220]])
    pixels = np.clip(
        colours[labels][:, None, None] + generator.normal(0, 20, (60, 16, 16, 3)), 0, 255
    )
    infos = []
    for i, rows in enumerate(np.array_split(np.arange(60), num_shards)):
        infos.append(
            write_shard(
                str(folder),
                f"shards/pretrain-{i:05d}.parquet",
                ids=[f"image-{row:02d}" for row in rows],
                images=[pixels[row].astype(np.uint8).tobytes() for row in rows],
                labels=[int(labels[row]) for row in rows],
            )
        )
    return sealed(
        Manifest(
            name="colours",
            source={},
            image=ImageInfo("raw", 16, 16),
            class_names=NAMES,
            sets={"pretrain": SetInfo(60, COUNTS, tuple(infos))},
            fewshot=(),
            rejects=Rejects(0, {}, ()),
            config={},
            hash="",
        )
    )


def some_losses() -> torch.Tensor:
    """Losses of 60 images, the last one of which no step has seen."""
    sums_2N = torch.stack([torch.randperm(60).float() + 1, torch.full((60,), 2.0)])
    sums_2N[:, 59] = 0
    return sums_2N


def trained_run(folder: Path, manifest: Manifest, losses_2N: torch.Tensor | None = None) -> str:
    memory = None
    if losses_2N is not None:
        memory = LossMemory(60, momentum=0.5)
        memory.sums_2N.copy_(losses_2N)
    trainer = Trainer(
        build.new_network(CONFIG, "sdclr"),
        build.training_recipe(CONFIG, manifest, "sdclr"),
        steps_per_epoch=3,
        memory=memory,
    )
    place = checkpoint.checkpoints_uri(str(folder), "sdclr")
    return checkpoint.save(place, capture(trainer), config_hash=config_hash(CONFIG))


def test_a_perfect_score_and_a_blind_one() -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    perfect = (labels == 2).astype(np.float64)
    blind = np.zeros(100)
    found = findings(
        {("trained", "both"): perfect, ("untrained", "both"): blind},
        labels, GROUPS, NAMES, COUNTS, [99, 98, 0], used=("trained", "both"),
    )  # fmt: skip
    assert found is not None
    best, worst = found.scores
    assert best.auroc == best.auroc_low == 1 and best.precision["10"] == 1
    assert worst.auroc == 0.5 and worst.precision["10"] == pytest.approx(0.1)
    assert found.base_rate == 0.1 and found.few_classes == ("eel",) and found.tied_classes == ()
    assert found.batch.model_dump() == {
        "images": 3, "few": 2, "few_expected_by_chance": pytest.approx(0.3), "classes": 2
    }  # fmt: skip
    first, last = found.classes[0].mean_rank_share, found.classes[2].mean_rank_share
    assert first is not None and last is not None and last > first


def test_a_class_as_rare_as_one_of_few_is_named() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2] * 3)
    scores = {("trained", "both"): np.arange(12.0)}
    found = findings(scores, labels, GROUPS, NAMES, (6, 3, 3), [0], used=("trained", "both"))
    assert found is not None and found.few_classes == ("eel",)
    assert found.tied_classes == (NAMES[1],)


def test_without_rare_images_there_is_nothing_to_find() -> None:
    labels = np.zeros(9, np.int64)
    scores = {("trained", "both"): np.arange(9.0)}
    assert findings(scores, labels, GROUPS, NAMES, COUNTS, [0], used=("trained", "both")) is None


def test_the_sample_is_fixed_sorted_and_without_repeats() -> None:
    sample = reference_sample(1000, 100)
    assert len(set(sample)) == 100 and list(sample) == sorted(sample)
    assert list(reference_sample(1000, 100)) == list(sample) != list(range(100))
    assert list(reference_sample(5, 100)) == [0, 1, 2, 3, 4]


def extractor(uri: str, config: Config = CONFIG) -> DisagreementExtractor:
    source = ModelSource("sdclr", uri, "sdclr", config_hash(CONFIG))
    return DisagreementExtractor(config.model_dump_json(), source, None, 16, None, True, "cpu", 1)


def test_disagreements_are_means_over_views_and_ratios_are_their_own(tmp_path: Path) -> None:
    manifest = data_set(tmp_path)
    uri = trained_run(tmp_path / "run", manifest)
    generator = np.random.default_rng(1)
    batch = {
        "row": np.arange(5),
        "pixels": generator.integers(0, 255, (5, 3, 16, 16)).astype(np.uint8),
        "size": np.full((5, 2), 16),
    }
    both = extractor(uri)(batch)
    assert both["trained"].shape == both["untrained"].shape == (5, 2)
    low, high = both["trained"].T
    assert (high > low).all()  # more pruning changes more
    alone = [
        extractor(uri, load_config(None, [*WORDS[:5], f"mine.prune_ratios=[{ratio}]"]))(batch)
        for ratio in (0.5, 0.9)
    ]
    for column, found in zip((low, high), alone, strict=True):
        np.testing.assert_allclose(found["trained"][:, 0], column, rtol=1e-5)
    plain = extractor(uri, load_config(None, [*WORDS[:4], "mine.num_views=1"]))(batch)
    assert not np.allclose(plain["trained"][:, 0], low)


def test_a_ratio_that_starves_a_layer_is_refused_by_name(tmp_path: Path) -> None:
    uri = trained_run(tmp_path / "run", data_set(tmp_path))
    config = load_config(None, [*WORDS[:5], "mine.prune_ratios=[0.99999]", BOTH])
    with pytest.raises(ConfigError) as caught:
        extractor(uri, config)
    assert "0.99999" in caught.value.where
    # The stage says so by itself: of an actor that does not start Ray tells little.
    with raises("E-CONFIG-025") as caught:
        mined(tmp_path / "stage", config)
    assert "0.99999" in caught.value.where


def mined(
    tmp_path: Path, config: Config = CONFIG, losses_2N: torch.Tensor | None = None, **how: Any
) -> Mining:
    manifest = data_set(tmp_path)
    trained_run(tmp_path / "run", manifest, losses_2N)
    run = RunContext(config, str(tmp_path / "run"), str(tmp_path), manifest)
    return mine(run, **{"cluster": CLUSTER, "progress": lambda *_: None} | how)


@pytest.mark.ray
def test_the_whole_stage_ranks_every_image_once(ray_cluster: None, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    labels = {f"image-{row:02d}": "ab"[row % 2] for row in range(60)}
    given = GivenLabels("labels.csv", labels, ("b",), counted=False)
    content = mined(tmp_path, load_config(None, [*WORDS, BOTH]), given=given)
    table = pq.read_table(tmp_path / "run" / "mining" / "scores-00000.parquet").to_pydict()
    assert table["rank"] == list(range(1, 61)) and len(set(table["id"])) == 60
    assert table["both"] == sorted(table["both"], reverse=True)
    assert {"label", "disagreement_0.5", "disagreement_0.9", "knn_distance"} <= table.keys()
    shown = Gallery.read(gallery_uri(str(tmp_path / "run")))
    assert all(0 < len(i.near) <= 5 for i in shown.images if i.cluster is not None)
    assert sum(shown.cluster_sizes) == 60
    assert [shown.images[i].id for i in shown.rarest] == table["id"][: len(shown.rarest)]
    assert shown.images[shown.commonest[0]].id == table["id"][-1]
    lines = (tmp_path / "run" / "mining" / "annotate.csv").read_text().splitlines()
    assert len(lines) == 7 and lines[1].split(",")[1] in table["id"][:12]
    assert Mining.read(str(tmp_path / "run" / "mining.json")) == content
    assert content.findings is not None and content.labelled is not None
    odd = sum(int(line.split(",")[1][-2:]) % 2 for line in lines[1:])
    assert (content.labelled.hits, content.labelled.labelled) == (odd, 6)
    names = {(entry.model, entry.score) for entry in content.findings.scores}
    assert {("trained", "both"), ("untrained", "knn_distance"), ("pixels", "knn_distance")} <= names
    assert len(content.map.maps[0].x) == 60
    assert "training_loss" not in table
    annotate = tmp_path / "run" / "mining" / "annotate.csv"
    annotate.write_text(annotate.read_text().replace(",a\n", ",c\n"))
    before = annotate.read_bytes()
    with raises("E-CONFIG-792"):
        mined(tmp_path, load_config(None, [*WORDS, BOTH]), given=given)
    assert annotate.read_bytes() == before
    mined(tmp_path / "other", load_config(None, [*WORDS, BOTH]))
    assert Gallery.read(gallery_uri(str(tmp_path / "other" / "run"))) == shown


@pytest.mark.ray
def test_by_default_the_distance_ranks_and_vectors_that_are_there_are_read(
    ray_cluster: None, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    said: list[tuple[str, int]] = []
    content = mined(tmp_path, progress=lambda what, done, _: said.append((what, done)))
    table = pq.read_table(tmp_path / "run" / "mining" / "scores-00000.parquet").to_pydict()
    assert table["knn_distance"] == sorted(table["knn_distance"], reverse=True)
    assert not any(name.startswith("disagreement") for name in table)
    assert [entry.model for entry in content.findings.scores] == ["trained", "untrained", "pixels"]
    assert ("vectors", 60) in said and not any(what == "disagreement" for what, _ in said)
    folder = tmp_path / "run" / "embeddings"
    first = {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    said.clear()
    assert mined(tmp_path, progress=lambda what, done, _: said.append((what, done))) == content
    assert "vectors" not in {what for what, _ in said}
    assert first == {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


def test_weights_of_a_file_rank_by_distance_alone(tmp_path: Path) -> None:
    manifest = data_set(tmp_path)
    backbone = build.new_network(CONFIG, "sdclr").backbone
    uri = str(tmp_path / "given.safetensors")
    build.export_backbone(uri, backbone, {})
    GivenWeights(uri=uri).write(str(tmp_path / "run" / GIVEN_FILE))
    config = load_config(None, [*WORDS, BOTH])
    run = RunContext(config, str(tmp_path / "run"), str(tmp_path), manifest)
    with raises("E-CONFIG-660"):
        mine(run, cluster=CLUSTER, progress=lambda *_: None)


@pytest.mark.ray
def test_the_loss_in_training_ranks_where_the_run_kept_it(
    ray_cluster: None, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    losses = some_losses()
    content = mined(tmp_path, load_config(None, [*WORDS, "mine.score=training_loss"]), losses)
    table = pq.read_table(tmp_path / "run" / "mining" / "scores-00000.parquet").to_pydict()
    expected = (losses[0, :59] / 2).sort(descending=True)
    assert table["training_loss"] == [*expected.values.tolist(), None]
    assert table["id"] == [f"image-{row:02d}" for row in [*expected.indices.tolist(), 59]]
    assert content.findings is not None
    scored = {(entry.model, entry.score) for entry in content.findings.scores}
    assert ("trained", "training_loss") in scored and ("untrained", "training_loss") not in scored


def test_losses_that_were_not_kept_are_told_before_anything_starts(tmp_path: Path) -> None:
    by_loss = load_config(None, [*WORDS, "mine.score=training_loss"])
    with raises("E-CONFIG-028") as caught:
        mined(tmp_path, by_loss)
    assert "train.loss_memory" in caught.value.todo
    elsewhere = load_config(None, [*WORDS, "mine.score=training_loss"])
    with raises("E-CONFIG-027"):
        mined(tmp_path / "other", elsewhere, some_losses(), is_own=False)


def test_what_cannot_be_mined_is_told_before_anything_starts(tmp_path: Path) -> None:
    with raises("E-CONFIG-026"):
        mined(tmp_path, load_config(None, WORDS), set_name="test")
    (tmp_path / "run" / "models").rename(tmp_path / "elsewhere")
    manifest = data_set(tmp_path / "again")
    run = RunContext(CONFIG, str(tmp_path / "run"), str(tmp_path / "again"), manifest)
    with raises("E-CHECKPOINT-001"):
        mine(run, cluster=CLUSTER, progress=lambda *_: None)
    assert torch.get_num_threads() >= 1
