"""The published protocols as Ray tasks: equal to the same call in this process, for every draw."""

from __future__ import annotations

import io
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.cluster.connect import Cluster
from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.console import Console
from pipeline.dataset.manifest import ImageInfo, Manifest, Rejects, SetInfo
from pipeline.dataset.shards import write_shard
from pipeline.embed import features
from pipeline.embed.features import SetFeatures
from pipeline.evaluate import probe_task, trained
from pipeline.evaluate.probe_task import Labelled, Pictures, ProbeEnd, ProbeJob, train_job
from pipeline.evaluate.trained import TrainedProbes, check_fits, probe_view
from pipeline.model.source import ModelSource, load_model
from pipeline.record.context import RunContext
from sdclr.fewshot import fraction_draws
from sdclr.trained_probe import ProbeRecipe, ProbeView
from tests.refusals import raises

CONFIG = load_config(
    None, ["evaluate.protocols=[paper-linear, paper-fewshot, finetune-fewshot, finetune-10pct]"]
)
SOURCES = [ModelSource("untrained"), ModelSource("again")]
CLUSTER = Cluster("", is_local=True, num_cpus=2, num_gpus=0, dashboard_url="", largest_node_cpus=2)
PX, NUM_LABELLED, NUM_CLASSES = 8, 24, 2


def pixels(num_images: int, seed: int) -> np.ndarray:
    """Class 0 is bright at the top, class 1 at the bottom, plus noise."""
    images = np.random.default_rng(seed).integers(0, 160, (num_images, PX, PX, 3))
    for n, image in enumerate(images):
        image[: PX // 2] += 80 * (n % 2 == 0)
        image[PX // 2 :] += 80 * (n % 2 == 1)
    return images.astype(np.uint8)


def data_set(folder: Path) -> Manifest:
    images = pixels(NUM_LABELLED, 0)
    shards = tuple(
        write_shard(
            str(folder), f"shards/probe-{i:05d}.parquet", ids=[f"p{n}" for n in part],
            images=[images[n].tobytes() for n in part], labels=[n % 2 for n in part],
        )
        for i, part in enumerate((range(10), range(10, NUM_LABELLED)))
    )  # fmt: skip
    test = write_shard(
        str(folder), "shards/test-00000.parquet", ids=[f"t{n}" for n in range(16)],
        images=[image.tobytes() for image in pixels(16, 2)], labels=[n % 2 for n in range(16)],
    )  # fmt: skip
    sets = {"probe": SetInfo(NUM_LABELLED, (12, 12), shards), "val": SetInfo(8, (4, 4), ()),
            "test": SetInfo(16, (8, 8), (test,))}  # fmt: skip
    return Manifest(
        name="some", source={}, image=ImageInfo("raw", PX, PX), class_names=("a", "b"), sets=sets,
        fewshot=(), rejects=Rejects(0, {}, ()), config={}, hash="",
    )  # type: ignore[arg-type]  # fmt: skip


def featured(num_images: int, seed: int) -> SetFeatures:
    network = load_model(CONFIG, SOURCES[0], init_from=None).network
    images = torch.from_numpy(pixels(num_images, seed)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        found = network.features(images).numpy()
    ids, labels_N = [str(n) for n in range(num_images)], np.arange(num_images) % 2
    return SetFeatures(ids, labels_N, {source.name: found for source in SOURCES})


DRAWS = [np.array([1, 4, 12, 23]), np.array([0, 5, 6, 7])]


@pytest.mark.ray
def test_tasks_equal_the_loop_in_this_process(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tenth of the published epochs: what is compared does not depend on their number.
    monkeypatch.setattr(trained, "PAPER_LINEAR", ProbeRecipe(epochs=8))
    monkeypatch.setattr(trained, "PAPER_FEWSHOT", ProbeRecipe(epochs=10, milestones=(4, 6)))
    short = ProbeRecipe(epochs=5, milestones=(3, 4), batch=2, lr=0.05)
    monkeypatch.setattr(trained, "FINETUNE_FEWSHOT", short)
    monkeypatch.setattr(trained, "FINETUNE_TENTH", replace(short, epochs=4))
    manifest, val, test = data_set(tmp_path), featured(8, 1), featured(16, 2)
    stream = io.StringIO()
    probes = TrainedProbes(
        RunContext(CONFIG, "", str(tmp_path), manifest), num_probe=NUM_LABELLED,
        labels_N=np.arange(NUM_LABELLED) % 2, draws=DRAWS, test_labels_M=test.labels_N,
        placement=features.placement(CONFIG, CLUSTER), console=Console(stream, interval_s=0),
    )  # fmt: skip
    images = pixels(NUM_LABELLED, 0).transpose(0, 3, 1, 2).copy()
    sizes, labels_N = np.full((NUM_LABELLED, 2), PX), np.arange(NUM_LABELLED) % 2
    tenth = fraction_draws(labels_N, fraction=0.1, num_draws=2, seed=CONFIG.run.seed)
    scored_MCHW = pixels(16, 2).transpose(0, 3, 1, 2).copy()
    pictures = Pictures(scored_MCHW, sizes[:16], test.labels_N, PX, None)
    for training, draws in (
        ("paper-linear", [np.arange(NUM_LABELLED)]), ("paper-fewshot", DRAWS),
        ("finetune-fewshot", DRAWS), ("finetune-10pct", tenth),
    ):  # fmt: skip
        is_tuned = training.startswith("finetune")
        found = probes.score(SOURCES, training, val, test)
        assert list(found) == ["untrained", "again"]
        for one, other in zip(found["untrained"], found["again"], strict=True):
            np.testing.assert_equal(astuple(one), astuple(other))
        assert len(found["untrained"]) == len(draws)
        for result, rows in zip(found["untrained"], draws, strict=True):
            job = probes._job(SOURCES[0], training, rows, test)
            labelled = [Labelled(s.by_model["untrained"], s.labels_N) for s in (val, test)]
            last_two = (None, pictures) if is_tuned else labelled
            *epochs, expected = train_job(job, images, sizes, labels_N, *last_two)
            assert isinstance(expected, ProbeEnd)
            np.testing.assert_equal(astuple(result), astuple(expected))
            assert len(epochs) == job.recipe.epochs
            assert (result.best_epoch is None) == is_tuned
            assert is_tuned or 1 <= (result.best_epoch or 0) <= len(epochs)
    assert probes.note("finetune-fewshot", []) == (
        "4 labels per draw, padded-crop, all weights trained, last of 5 epochs, no other label"
    )
    assert found["untrained"][0] is not found["untrained"][1]
    assert "paper-fewshot  100 %" in stream.getvalue() and "val " in stream.getvalue()
    assert "finetune-10pct  100 %" in stream.getvalue()
    assert probes.note("paper-linear", [ProbeEnd(np.zeros(2), np.zeros(2), 7)]) == (
        "24 labels, padded-crop, epoch 7 of 8 chosen on 8 val images"
    )


def test_the_view_follows_the_images() -> None:
    manifest = Manifest(
        "some", {}, ImageInfo("raw", 32, 32), None, {}, (), Rejects(0, {}, ()), {}, ""
    )
    photos = replace(manifest, image=ImageInfo("original", None, None))
    crop, flips = load_config(None, ["augment.crop_px=24"]), ["augment.hflip_prob=0.5"]
    assert probe_view(Config(), manifest).kind == "padded-crop"
    assert probe_view(crop, photos).kind == probe_view(crop, manifest).kind == "resized-crop"
    assert probe_view(Config(), manifest).hflip_prob == 0  # the demo's digits are not mirrored
    assert probe_view(load_config(None, flips), manifest).hflip_prob == 0.5
    with raises("E-CONFIG-015", "2.9"):
        check_fits(Config(), manifest, 1_000_000)


def test_a_model_on_which_training_diverges_is_named() -> None:
    job = ProbeJob(
        config_json=CONFIG.model_dump_json(), source=SOURCES[0], init_from=None,
        rows_n=np.arange(4),
        recipe=ProbeRecipe(epochs=3, lr=1e38), view=ProbeView(kind="padded-crop", crop_px=PX),
        num_features=64, num_classes=NUM_CLASSES, device="cpu", num_threads=1,
    )  # fmt: skip
    nothing = Labelled(np.zeros((2, 64), np.float32), np.array([0, 1]))
    images, labels = pixels(4, 0).transpose(0, 3, 1, 2).copy(), np.array([0, 1, 0, 1])
    sizes = np.full((4, 2), PX)
    with raises("E-TRAIN-002"):
        list(train_job(job, images, sizes, labels, None, nothing))
    with raises("E-TRAIN-860", "untrained"):
        list(train_job(job, images, sizes, labels, None, Pictures(images, sizes, labels, PX, None)))


def test_a_model_that_is_scored_on_pictures_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned: list[torch.nn.Module | None] = []
    original = probe_task.train_probe

    def spied(*arguments: Any, backbone: torch.nn.Module | None, **others: Any) -> Any:
        tuned.append(backbone)
        return original(*arguments, backbone=backbone, **others)

    monkeypatch.setattr(probe_task, "train_probe", spied)
    job = ProbeJob(
        config_json=CONFIG.model_dump_json(), source=SOURCES[0], init_from=None,
        rows_n=np.arange(4), recipe=ProbeRecipe(epochs=2, lr=0.1),
        view=ProbeView(kind="padded-crop", crop_px=PX),
        num_features=64, num_classes=NUM_CLASSES, device="cpu", num_threads=1,
    )  # fmt: skip
    images, sizes = pixels(4, 0).transpose(0, 3, 1, 2).copy(), np.full((4, 2), PX)
    labels = np.array([0, 1, 0, 1])
    for test in (Labelled(np.zeros((2, 64), np.float32), np.array([0, 1])),
                 Pictures(images, sizes, labels, PX, None)):  # fmt: skip
        list(train_job(job, images, sizes, labels, None, test))
    frozen, moved = tuned
    before = load_model(CONFIG, SOURCES[0], init_from=None).network.backbone.state_dict()
    assert frozen is None and moved is not None
    changed = [n for n, t in moved.state_dict().items() if not torch.equal(t, before[n])]
    assert "conv1.weight" in changed and not any("running" in n for n in changed)
