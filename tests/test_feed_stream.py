"""The streamed feed on a real cluster: order, ranks, resume, broken samples, memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import feed, storage
from pipeline.config.file import load_config
from pipeline.dataset.image import png_bytes
from pipeline.dataset.manifest import ImageInfo, Manifest
from pipeline.errors import DataError
from pipeline.feed.plan import StreamBudget
from sdclr import Batch, EpochPlan, ImageSet, epoch_windows
from tests.conftest import S3_KEYS
from tests.fault_proxy import FaultProxy
from tests.refusals import raises
from tests.test_feed import manifest_of, raw_images, stored

pytestmark = pytest.mark.ray

NUM_IMAGES, PER_SHARD, BATCH, EPOCHS = 62, 7, 8, 3
SMALL = StreamBudget(window_shards=3, piece_steps=2, part_rows=5, pieces_ahead=2, bytes=0)


@pytest.fixture(scope="module")
def folder(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streamed")


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    images = [image.tobytes() for image in raw_images(NUM_IMAGES)]
    return stored(folder, images, ImageInfo("raw", 6, 5), PER_SHARD)


def plan_of(num_ranks: int = 1, drop_last: bool = True) -> EpochPlan:
    return EpochPlan(
        num_images=NUM_IMAGES, global_batch=BATCH, drop_last=drop_last, num_ranks=num_ranks
    )


def source_of(
    folder: Path | str, manifest: Manifest, *, budget: StreamBudget = SMALL, mailbox: Any = None
) -> feed.StreamSource:
    words = ["feed.cache=none", f"train.epochs={EPOCHS}", f"train.global_batch={BATCH}"]
    config = load_config(None, words)
    stream = replace(feed.streamed_set(config, manifest, str(folder)), budget=budget)
    return feed.StreamSource(stream, mailbox=mailbox, pin_memory=False)


def epochs_of(
    source: feed.StreamSource, plan: EpochPlan, rank: int, epoch: int = 0, start_step: int = 0
) -> Iterator[Batch]:
    batches = source.feed(plan, seed=0, rank=rank)
    for number in range(epoch, EPOCHS):
        yield from batches.batches(number, start_step=start_step if number == epoch else 0)


def rows_of(batches: Iterator[Batch]) -> list[list[int]]:
    return [batch.rows_B.tolist() for batch in batches]


@pytest.mark.parametrize("drop_last", [True, False])
def test_every_batch_is_that_of_the_order(
    folder: Path, manifest: Manifest, drop_last: bool
) -> None:
    images = torch.from_numpy(raw_images(NUM_IMAGES)).permute(0, 3, 1, 2)
    plan, source = plan_of(drop_last=drop_last), source_of(folder, manifest)
    batches = list(epochs_of(source, plan, 0))
    assert len(batches) == EPOCHS * plan.num_steps
    for number, batch in enumerate(batches):
        epoch, step = divmod(number, plan.num_steps)
        windows = epoch_windows([7] * 8 + [6], window_shards=3, seed=0, epoch=epoch)
        order = np.concatenate(list(windows))
        assert batch.rows_B.tolist() == order[plan.part(step, 0)].tolist()
        assert torch.equal(batch.images_BCHW, images[batch.rows_B])
        assert batch.sizes_B2.tolist() == [[6, 5]] * len(batch.rows_B)
        assert (batch.start, batch.num_global) == (0, plan.batch_size(step))
    # One walk for all epochs: the second one had begun before the first one was over.
    assert source.next_round() == 2


@pytest.mark.promise("R6")
def test_two_ranks_share_the_batches_of_one(folder: Path, manifest: Manifest) -> None:
    one = rows_of(epochs_of(source_of(folder, manifest), plan_of(1, False), 0))
    mailbox = feed.new_mailbox()
    with ThreadPoolExecutor(2) as pool:
        parts = [
            pool.submit(
                lambda rank: list(
                    epochs_of(source_of(folder, manifest, mailbox=mailbox), plan_of(2, False), rank)
                ),
                rank,
            )
            for rank in (0, 1)
        ]
        first, second = (part.result(timeout=120) for part in parts)
    both = [a.rows_B.tolist() + b.rows_B.tolist() for a, b in zip(first, second, strict=True)]
    assert both == one
    assert [b.start for b in second] == [b.num_global // 2 for b in second]


def test_a_window_for_all_gives_the_batches_of_a_set_in_memory(
    folder: Path, manifest: Manifest
) -> None:
    images = ImageSet(torch.from_numpy(raw_images(NUM_IMAGES)).permute(0, 3, 1, 2))
    plan = plan_of()
    kept = rows_of(images.feed(plan, seed=0).batches(0))
    for window, equal in ((9, True), (8, False)):
        source = source_of(folder, manifest, budget=replace(SMALL, window_shards=window))
        streamed = source.feed(plan, seed=0, rank=0)
        assert (rows_of(streamed.batches(0)) == kept) == equal
        streamed.close()


@pytest.mark.promise("R3")
def test_a_resume_goes_on_with_the_next_batches(folder: Path, manifest: Manifest) -> None:
    plan = plan_of()
    unbroken = rows_of(epochs_of(source_of(folder, manifest), plan, 0))
    for epoch, step in ((0, 3), (1, 6)):
        source = source_of(folder, manifest)
        resumed = rows_of(epochs_of(source, plan, 0, epoch, step))
        assert resumed == unbroken[epoch * plan.num_steps + step :]
    # Left in the middle, and asked for another place.
    streamed = source_of(folder, manifest).feed(plan, seed=0, rank=0)
    next(streamed.batches(0))
    assert rows_of(streamed.batches(2)) == unbroken[2 * plan.num_steps :]


@pytest.fixture
def bucket(
    folder: Path, ray_s3: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, FaultProxy]]:
    """The same set on S3, and the way there."""
    for name, value in {"AWS_ENDPOINT_URL": ray_s3.url, **S3_KEYS}.items():
        monkeypatch.setenv(name, value)
    for name in storage.list_tree(str(folder)):
        data = storage.read_bytes(storage.join(str(folder), name))
        storage.write_bytes(storage.join("s3://bucket/streamed", name), data)
    ray_s3.method = "GET"
    yield "s3://bucket/streamed", ray_s3
    ray_s3.faults.clear()
    ray_s3.method = None


@pytest.mark.promise("R13")
def test_batches_from_s3_are_those_from_disk_and_passing_faults_change_nothing(
    folder: Path, bucket: tuple[str, FaultProxy], manifest: Manifest
) -> None:
    uri, proxy = bucket
    plan = plan_of()
    expected = list(epochs_of(source_of(folder, manifest), plan, 0))
    proxy.faults.extend([503, "truncate", 500, "reset"])
    found = list(epochs_of(source_of(uri, manifest), plan, 0))
    assert not proxy.faults
    assert len(found) == len(expected) == EPOCHS * plan.num_steps
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.rows_B, other.rows_B)
        assert torch.equal(one.images_BCHW, other.images_BCHW)


@pytest.mark.promise("R28")
def test_wrong_bytes_from_s3_stop_by_name(
    bucket: tuple[str, FaultProxy], manifest: Manifest
) -> None:
    uri, proxy = bucket
    proxy.faults.append("flip")
    with raises("E-DATA-016") as caught:
        list(epochs_of(source_of(uri, manifest), plan_of(), 0))
    assert caught.value.where.startswith(uri)


@pytest.mark.promise("R28")
@pytest.mark.parametrize("kind", ["flipped byte", "undecodable"])
def test_a_broken_sample_stops_every_rank_before_the_same_step_by_name(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    whole = png_bytes(raw_images(1)[0].repeat(2, 0).repeat(2, 1))  # 12 x 10 px
    images = [whole] * NUM_IMAGES
    if kind == "undecodable":
        images[40] = whole[: len(whole) // 2]
    manifest = stored(tmp_path, images, ImageInfo("original", None, None), PER_SHARD)
    if kind == "flipped byte":
        file = tmp_path / "shards" / "pretrain-00005.parquet"
        content = bytearray(file.read_bytes())
        content[content.index(whole, content.index(whole) + 1) + 50] ^= 1
        file.write_bytes(content)
    config = load_config(
        None,
        [
            "feed.canvas_px=32",
            f"train.epochs={EPOCHS}",
            "feed.cache=none",
            f"train.global_batch={BATCH}",
        ],
    )
    mailbox = feed.new_mailbox()
    told: list[tuple[int, str]] = []

    def rank_of(rank: int, together: threading.Barrier) -> None:
        stream = replace(feed.streamed_set(config, manifest, str(tmp_path)), budget=SMALL)
        source = feed.StreamSource(stream, mailbox=mailbox, pin_memory=False)
        steps = 0
        try:
            for _ in epochs_of(source, plan_of(2), rank):
                together.wait(60)  # as the collectives of a step do
                steps += 1
        except DataError as error:
            told.append((steps, str(error)))

    barrier = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(rank_of, (0, 1), (barrier, barrier)))
    (steps, first), other = told
    assert other == (steps, first)
    assert "image-40" in first if kind == "undecodable" else "image-36" in first


def test_too_little_memory_is_refused_with_what_would_do(folder: Path, manifest: Manifest) -> None:
    big = manifest_of(
        ImageInfo("raw", 256, 256),
        [replace(s, bytes=s.rows * 256 * 256 * 3) for s in manifest.sets["pretrain"].shards],
    )
    config = load_config(None, ["feed.cache=none", "feed.max_memory_bytes=10000000",
                                "train.global_batch=16"])  # fmt: skip
    with raises("E-CONFIG-019", "8") as error:
        feed.check_fits(config, big, object_store_bytes=2**40)
    least = error.value.todo.split()[3]
    enough = load_config(None, ["feed.cache=none", f"feed.max_memory_bytes={least}",
                                "train.global_batch=16"])  # fmt: skip
    assert feed.stream_budget(enough, big, object_store_bytes=2**40).bytes <= int(least)
    with raises("E-CONFIG-019", "3.5"):
        feed.check_fits(enough, big, object_store_bytes=5 * 2**20)


def test_some_images_are_at_hand_from_all_over_the_set(folder: Path, manifest: Manifest) -> None:
    images = torch.from_numpy(raw_images(NUM_IMAGES)).permute(0, 3, 1, 2)
    found = source_of(folder, manifest).sample(16)
    expected = [row for first in (0, 7, 14, 21, 28, 35, 42, 56) for row in (first, first + 1)]
    assert torch.equal(found.images_NCHW, images[expected])
    kept = ImageSet(images)
    assert feed.at_hand(kept, 16) is kept
