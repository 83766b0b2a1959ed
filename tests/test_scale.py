"""The formulas of docs/scale.md against the real thing, where the real thing fits this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.cli import scale
from pipeline.cli.scale import RESNET50, SPEEDS, Estimate, Workload
from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.dataset.manifest import (
    ImageInfo,
    Manifest,
    Rejects,
    SetInfo,
    ShardInfo,
    sealed,
    write_manifest,
)  # fmt: skip
from pipeline.errors import ConfigError
from pipeline.feed.plan import stream_budget
from pipeline.ingest.plan import cut
from pipeline.model.build import state_bytes
from sdclr import EpochPlan, ImageSet, Trainer, build_network, capture, cifar_recipe, epoch_order
from tests.conftest import REPO

WORK = replace(RESNET50, num_images=10**6, num_workers=64, global_batch=4096)
RESNET50_KEYS = ("model.backbone=resnet50", "model.stem=imagenet")


def test_the_command_prints_the_tables_of_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    scale.main([])
    printed = capsys.readouterr().out
    document = (REPO / "docs" / "scale.md").read_text()
    assert printed.count("| images |") == 3
    for one in printed.split("\n\n"):
        assert one.strip() in document, (
            "run python -m pipeline.cli.scale and put it into docs/scale.md"
        )


def test_options_change_what_they_name(capsys: pytest.CaptureFixture[str]) -> None:
    def row(name: str, *words: str) -> list[str]:
        scale.main(["--images", "1e7", "--gpus", "8", *words])
        lines = capsys.readouterr().out.splitlines()
        return next(line for line in lines if line.startswith(f"| {name} ")).split("|")

    slow, fast = (row("100 epochs", "--images-per-s", speed) for speed in ("100", "1000"))
    assert float(slow[2].split()[0].replace(",", "")) > 9 * float(fast[2].split()[0])
    assert row("price of the GPUs", "--price-per-gpu-hour", "0")[2].strip() == "0"


def test_the_bytes_of_resnet50_are_those_of_the_model() -> None:
    weights, state = state_bytes(load_config(None, RESNET50_KEYS), "sdclr")
    assert (weights, state) == (RESNET50.parameter_bytes, RESNET50.state_bytes)


@pytest.mark.parametrize("method", ["sdclr", "simclr"])
def test_a_checkpoint_has_the_bytes_that_are_foretold(method: str) -> None:
    config = load_config(None, ())
    network = build_network("resnet8", stem="cifar", head_depth=2, seed=0)
    images = ImageSet(torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8))
    plan = EpochPlan(num_images=16, global_batch=16, drop_last=True)
    recipe = cifar_recipe(method, epochs=1)  # type: ignore[arg-type]
    trainer = Trainer(network, recipe, steps_per_epoch=1, device="cpu")
    list(trainer.run(images.feed(plan, seed=0)))
    real = sum(t.numel() * t.element_size() for t in capture(trainer).tensors.values())
    assert state_bytes(config, method)[1] == real


def test_shards_are_as_many_as_ingest_cuts() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(50_000, 170_000, 20_000) + scale.ROW_OVERHEAD_BYTES
    work = replace(WORK, num_images=len(sizes), image_bytes=110_000)
    assert len(cut(sizes, work.shard_bytes)) == pytest.approx(work.num_shards, rel=0.01)


def test_a_shard_takes_the_foretold_bytes_of_the_manifest(tmp_path: Path) -> None:
    def size(num_shards: int) -> int:
        shards = tuple(
            ShardInfo(name=f"shards/pretrain-{i:05d}.parquet", rows=609, bytes=67_000_000 + i,
                      sha256="a" * 64)
            for i in range(num_shards)
        )  # fmt: skip
        info = SetInfo(rows=609 * num_shards, class_counts=None, shards=shards)
        manifest = sealed(
            Manifest(
                name="x-00000000", source={}, image=ImageInfo("original", None, None),
                class_names=None, sets={"pretrain": info}, fewshot=(),
                rejects=Rejects(total=0, by_reason={}, examples=()), config={}, hash="",
            )
        )  # fmt: skip
        write_manifest(f"{tmp_path}/{num_shards}", manifest)
        return (tmp_path / str(num_shards) / "manifest.json").stat().st_size

    per_shard = (size(200) - size(100)) / 100
    assert per_shard == pytest.approx(scale.MANIFEST_BYTES_PER_SHARD, rel=0.1)


def test_the_columns_of_an_image_leave_room_for_the_peak_of_planning() -> None:
    ids = pa.array([f"photos/2026/{i:06d}" for i in range(20_000)], pa.large_string())
    size, label, place, sha256, kept = 8, 4, 8, 16, 1
    held = ids.nbytes / len(ids) + size + label + place + sha256 + kept
    assert 2 * held < scale.INDEX_BYTES_PER_IMAGE < 5 * held


def test_an_order_takes_the_foretold_bytes() -> None:
    assert epoch_order(1000, seed=0, epoch=0).nbytes == 1000 * scale.INDEX_BYTES


def streamed(work: Workload) -> tuple[Config, Manifest]:
    """A configuration and a data set of this workload, as the feed sees them."""
    words = (
        "feed.cache=none", f"feed.canvas_px={work.canvas_px}", f"train.workers={work.num_workers}",
        f"train.global_batch={work.global_batch}", f"feed.max_memory_bytes={10**12}",
    )  # fmt: skip
    rows = work.shard_bytes // work.image_bytes
    shards = (ShardInfo("", rows, work.shard_bytes, ""),) * (work.num_images // rows)
    info = SetInfo(rows=rows * len(shards), class_counts=None, shards=shards)
    manifest = Manifest(
        name="x", source={}, image=ImageInfo("original", None, None), class_names=None,
        sets={"pretrain": info}, fewshot=(), rejects=Rejects(0, {}, ()), config={}, hash="",
    )  # fmt: skip
    return load_config(None, words), manifest


@pytest.mark.parametrize("num_workers", [1, 8, 64])
def test_a_stream_takes_the_foretold_memory(num_workers: int) -> None:
    work = replace(WORK, num_workers=num_workers, global_batch=64 * num_workers)
    config, manifest = streamed(work)

    def fits(max_bytes: float) -> bool:
        least = config.feed.model_copy(update={"max_memory_bytes": int(max_bytes)})
        try:
            stream_budget(
                config.model_copy(update={"feed": least}), manifest, object_store_bytes=2**62
            )
        except ConfigError:
            return False
        return True

    assert fits(1.01 * work.stream_bytes) and not fits(0.99 * work.stream_bytes)


def test_no_worker_hands_out_what_another_one_needs() -> None:
    """A step of a stream takes as long on a thousand GPUs as on two hundred."""

    def step_s(num_workers: int) -> float:
        work = replace(WORK, num_workers=num_workers, global_batch=64 * num_workers)
        free = replace(SPEEDS, node_bytes_per_s=float("inf"))
        return Estimate(work, free).step_s

    assert step_s(1024) == step_s(256)


def ring_all_gather(num_workers: int, chunk: int) -> int:
    """Bytes that worker 0 sends: in each of W-1 rounds it passes on what it got in the last."""
    holds = [{w} for w in range(num_workers)]
    passing, sent = list(range(num_workers)), 0
    for _ in range(num_workers - 1):
        sent += chunk
        passing = [passing[w - 1] for w in range(num_workers)]
        for w in range(num_workers):
            holds[w].add(passing[w])
    assert all(len(held) == num_workers for held in holds)
    return sent


@pytest.mark.parametrize("num_workers", [2, 4, 16])
def test_what_a_node_sends_is_what_the_rings_pass_on(num_workers: int) -> None:
    work = replace(WORK, num_workers=num_workers, workers_per_node=1, global_batch=64 * num_workers)
    gathered = ring_all_gather(num_workers, work.gathered_bytes // num_workers)
    # An all-reduce is a reduce-scatter and an all-gather; the gather's backward a reduce-scatter.
    weights = ring_all_gather(num_workers, work.parameter_bytes) / num_workers
    assert work.node_bytes_per_step == pytest.approx(2 * gathered + 2 * weights, rel=1e-6)


def test_nothing_leaves_a_single_node() -> None:
    assert replace(WORK, num_workers=8, workers_per_node=8).node_bytes_per_step == 0


def test_time_and_price_have_closed_forms() -> None:
    free = replace(SPEEDS, node_bytes_per_s=float("inf"), images_per_s=1000, price_per_gpu_hour=2.0)
    work = replace(WORK, num_images=4096 * 100, epochs=10, checkpoints=0)
    estimate = Estimate(work, free)
    assert estimate.hours * 3600 == pytest.approx(4096 * 100 * 10 / (64 * 1000))
    assert estimate.cost == pytest.approx(estimate.hours * 64 * 2)
    assert estimate.decode_cores == -(-8 * 1000 // int(SPEEDS.decoded_per_s))


def test_logits_of_a_worker_grow_with_the_square_of_the_batch() -> None:
    one, two = WORK, replace(WORK, global_batch=2 * WORK.global_batch)
    assert two.similarity_bytes == 4 * one.similarity_bytes


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1.234e9, "1.23 GB"), (5e15, "5e+03 TB")],
)
def test_sizes_are_written_with_three_digits(value: float, text: str) -> None:
    assert scale.si(value, "B") == text


def test_a_workload_has_no_default() -> None:
    with pytest.raises(TypeError):
        Workload(num_images=1)  # type: ignore[call-arg]
