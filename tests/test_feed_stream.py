"""The streamed feed on a real cluster: order, ranks, resume, broken samples, memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pipeline import feed, storage
from pipeline.config.file import load_config
from pipeline.dataset.image import png_bytes
from pipeline.dataset.manifest import ImageInfo, Manifest, ShardInfo
from pipeline.errors import DataError
from pipeline.feed.plan import StreamBudget
from sdclr import Batch, EpochPlan, ImageSet, collective
from tests.conftest import REPO, S3_KEYS
from tests.fault_proxy import FaultProxy
from tests.ranks import run_on_ranks
from tests.refusals import raises
from tests.test_feed import manifest_of, raw_images, stored
from tests.test_feed_order import slow_order

pytestmark = pytest.mark.ray

NUM_IMAGES, PER_SHARD, BATCH, EPOCHS = 62, 7, 8, 3
STREAMS, SMALL = 4, StreamBudget(units=5, part_rows=3, rows=24, bytes=0)
CANVAS_PX = 16
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["raw", "original"])
def encoding(request: pytest.FixtureRequest) -> str:
    """Raw images are read and left as they are used by one task, others are decoded by a second."""
    return str(request.param)


@pytest.fixture(scope="module")
def folder(ray_cluster: None, encoding: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streamed")


@pytest.fixture(scope="module")
def manifest(folder: Path, encoding: str) -> Manifest:
    images = raw_images(NUM_IMAGES)
    if encoding == "raw":
        return stored(folder, [i.tobytes() for i in images], ImageInfo("raw", 6, 5), PER_SHARD)
    info = ImageInfo("original", None, None)
    large = images.repeat(2, 1).repeat(2, 2)  # as small as an original may be
    return stored(folder, [png_bytes(i) for i in large], info, PER_SHARD)


def images_of(manifest: Manifest) -> torch.Tensor:
    """What the streamed images should be."""
    images = torch.from_numpy(raw_images(NUM_IMAGES)).permute(0, 3, 1, 2)
    if manifest.image.encoding == "raw":
        return images
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return F.pad(large, (0, CANVAS_PX - 10, 0, CANVAS_PX - 12))


def plan_of(num_ranks: int = 1, drop_last: bool = True) -> EpochPlan:
    return EpochPlan(
        num_images=NUM_IMAGES,
        global_batch=BATCH,
        drop_last=drop_last,
        num_ranks=num_ranks,
        num_streams=STREAMS,
    )


def source_of(
    folder: Path | str, manifest: Manifest, *words: str, budget: StreamBudget = SMALL
) -> feed.StreamSource:
    fixed = ["feed.cache=none", f"train.epochs={EPOCHS}", f"train.global_batch={BATCH}"]
    canvas = [] if words else [f"feed.canvas_px={CANVAS_PX}"]
    config = load_config(None, [*fixed, *canvas, *words])
    stream = replace(feed.streamed_set(config, manifest, str(folder)), budget=budget)
    return feed.StreamSource(stream, device=CPU)


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
    images = images_of(manifest)
    plan, source = plan_of(drop_last=drop_last), source_of(folder, manifest)
    batches = list(epochs_of(source, plan, 0))
    assert len(batches) == EPOCHS * plan.num_steps
    for number, batch in enumerate(batches):
        epoch, step = divmod(number, plan.num_steps)
        share = plan.batch_size(step) // STREAMS
        first = step * BATCH // STREAMS
        order = slow_order([7] * 8 + [6], STREAMS, 0, epoch)[:, first : first + share]
        assert batch.rows_B.tolist() == order.ravel().tolist()
        assert torch.equal(batch.images_BCHW, images[batch.rows_B])
        scale = 1 if manifest.image.encoding == "raw" else 2
        assert batch.sizes_B2.tolist() == [[6 * scale, 5 * scale]] * len(batch.rows_B)
        assert (batch.start, batch.num_global) == (0, plan.batch_size(step))


@pytest.mark.promise("R6")
@pytest.mark.parametrize("num_ranks", [2, 8])
def test_ranks_share_the_batches_of_one(folder: Path, manifest: Manifest, num_ranks: int) -> None:
    """Whatever is in flight; eight ranks of four streams share each."""
    # The last, smaller batch is a multiple of both.
    drop_last = num_ranks > STREAMS
    one = rows_of(epochs_of(source_of(folder, manifest), plan_of(1, drop_last), 0))
    least = StreamBudget(units=STREAMS // min(num_ranks, STREAMS) + 1, part_rows=1, rows=4, bytes=0)

    def batches_of(rank: int) -> list[Batch]:
        source = source_of(folder, manifest, budget=least if rank % 2 else SMALL)
        return list(epochs_of(source, plan_of(num_ranks, drop_last), rank))

    with ThreadPoolExecutor(num_ranks) as pool:
        ranks = list(pool.map(batches_of, range(num_ranks)))
    both = [
        [row for b in batches for row in b.rows_B.tolist()] for batches in zip(*ranks, strict=True)
    ]
    assert both == one
    last = ranks[-1]
    assert [b.start for b in last] == [b.num_global - len(b.rows_B) for b in last]


def test_one_shard_gives_the_batches_of_a_set_in_memory(ray_cluster: None, tmp_path: Path) -> None:
    raw = raw_images(NUM_IMAGES)
    images = ImageSet(torch.from_numpy(raw).permute(0, 3, 1, 2))
    for per_shard, equal in ((NUM_IMAGES, True), (NUM_IMAGES - 1, False)):
        data = tmp_path / str(per_shard)
        manifest = stored(data, [i.tobytes() for i in raw], ImageInfo("raw", 6, 5), per_shard)
        plan = replace(plan_of(), num_streams=1)
        streamed = source_of(data, manifest).feed(plan, seed=0, rank=0)
        kept = rows_of(images.feed(plan, seed=0).batches(0))
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


@pytest.mark.slow
@pytest.mark.promise("R28")
def test_a_broken_sample_stops_every_rank_before_the_same_step_by_name(
    ray_cluster: None, tmp_path: Path
) -> None:
    """Whichever rank reads it: two processes of a group, each with half of the streams."""
    whole = png_bytes(raw_images(1)[0].repeat(2, 0).repeat(2, 1))  # 12 x 10 px
    info, sets = ImageInfo("original", None, None), {}
    for kind, images in (
        ("whole", [whole] * NUM_IMAGES),
        ("flipped", [whole] * NUM_IMAGES),
        ("undecodable", [whole] * 40 + [whole[: len(whole) // 2]] + [whole] * 21),
    ):
        uri = str(tmp_path / kind)
        sets[kind] = uri, stored(tmp_path / kind, images, info, PER_SHARD)
    file = tmp_path / "flipped" / "shards" / "pretrain-00005.parquet"
    content = bytearray(file.read_bytes())
    content[content.index(whole, content.index(whole) + 1) + 50] ^= 1
    file.write_bytes(content)
    first, second = run_on_ranks(until_broken, cluster_address(), sets)
    assert first == second
    assert first["whole"] == f"{EPOCHS * plan_of().num_steps} steps"
    for kind, name in (("flipped", "image-36"), ("undecodable", "image-40")):
        steps, _, error = first[kind].partition(" steps ")
        assert 0 < int(steps) < EPOCHS * plan_of().num_steps and name in error


def cluster_address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def until_broken(address: str, sets: dict[str, tuple[str, Manifest]]) -> dict[str, Any]:
    """What a rank of a process group is told, and after how many steps; nobody else waits."""
    import ray

    ray.init(address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(REPO)}})
    found = {}
    for kind, (uri, manifest) in sets.items():
        steps, error = 0, ""
        source = source_of(uri, manifest, "feed.canvas_px=32")
        try:
            for _ in epochs_of(source, plan_of(2), collective.rank()):
                steps += 1
        except DataError as caught:
            error = f" {caught}"
        found[kind] = f"{steps} steps{error}"
    ray.shutdown()
    return found


def test_too_little_memory_is_refused_with_what_would_do() -> None:
    big = manifest_of(
        ImageInfo("raw", 256, 256),
        [
            ShardInfo(f"shards/pretrain-{n:05d}.parquet", rows, rows * 256 * 256 * 3, "0" * 64)
            for n, rows in enumerate([7] * 8 + [6])
        ],
    )
    config = load_config(None, ["feed.cache=none", "feed.max_memory_bytes=10000000",
                                "train.global_batch=16"])  # fmt: skip
    with raises("E-CONFIG-019", "26.2") as error:
        feed.check_fits(config, big, object_store_bytes=2**40)
    least = error.value.todo.split()[3]
    enough = load_config(None, ["feed.cache=none", f"feed.max_memory_bytes={least}",
                                "train.global_batch=16"])  # fmt: skip
    assert feed.stream_budget(enough, big, object_store_bytes=2**40).bytes <= int(least)
    with raises("E-CONFIG-019", "3.5"):
        feed.check_fits(enough, big, object_store_bytes=5 * 2**20)


@pytest.mark.parametrize(
    ("words", "shard_mib", "num_shards", "streams"),
    [
        ((), 16, 100, 32),
        ((), 64, 100, 8),
        ((), 16, 5, 4),
        (("feed.max_memory_bytes=12884901888",), 64, 100, 32),
        (("train.global_batch=254",), 16, 100, 2),
        (("train.global_batch=4096", "feed.max_memory_bytes=12884901888"), 16, 100, 64),
        (("train.workers=4",), 64, 100, 8),
    ],
)
def test_streams_are_as_many_as_mix_well_and_fit(
    words: tuple[str, ...], shard_mib: int, num_shards: int, streams: int
) -> None:
    shard = ShardInfo("shards/pretrain-00000.parquet", 600, shard_mib * 2**20, "0" * 64)
    some = manifest_of(ImageInfo("original", None, None), [shard] * num_shards)
    fixed = ["feed.cache=none", "feed.canvas_px=64", "train.global_batch=512", *words]
    config = load_config(None, list({word.partition("=")[0]: word for word in fixed}.values()))
    assert feed.epoch_plan(config, some).num_streams == streams
    budget = feed.stream_budget(config, some, object_store_bytes=2**40)
    assert budget.bytes <= config.feed.max_memory_bytes
    kept = config.model_copy(update={"feed": config.feed.model_copy(update={"cache": "host"})})
    assert feed.epoch_plan(kept, some).num_streams == 1


def test_some_images_are_at_hand_from_all_over_the_set(folder: Path, manifest: Manifest) -> None:
    images = images_of(manifest)
    found = source_of(folder, manifest).sample(16)
    expected = [row for first in (0, 7, 14, 21, 28, 35, 42, 56) for row in (first, first + 1)]
    assert torch.equal(found.images_NCHW, images[expected])
    kept = ImageSet(images)
    assert feed.at_hand(kept, 16) is kept
