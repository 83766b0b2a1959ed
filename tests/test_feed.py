"""Shards to the images of one worker: every row in its place, whatever order they come in."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import feed
from pipeline.config.file import load_config
from pipeline.dataset.decoding import shard_items
from pipeline.dataset.image import png_bytes
from pipeline.dataset.manifest import ImageInfo, Manifest, Rejects, SetInfo, ShardInfo
from pipeline.dataset.shards import write_shard
from sdclr import EpochPlan, ImageSet
from tests.refusals import raises

SHAPES = [(8, 12), (40, 20), (16, 16), (33, 64)]


def raw_images(num_images: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (num_images, 6, 5, 3), dtype=np.uint8)


def manifest_of(image: ImageInfo, shards: list[ShardInfo]) -> Manifest:
    rows = sum(shard.rows for shard in shards)
    return Manifest(
        name="some",
        source={},
        image=image,
        class_names=None,
        sets={"pretrain": SetInfo(rows, None, tuple(shards))},
        fewshot=(),
        rejects=Rejects(0, {}, ()),
        config={},
        hash="",
    )


def stored(folder: Path, images: list[bytes], image: ImageInfo, per_shard: int = 3) -> Manifest:
    shards = []
    for number, start in enumerate(range(0, len(images), per_shard)):
        part = images[start : start + per_shard]
        ids = [f"image-{start + i}" for i in range(len(part))]
        name = f"shards/pretrain-{number:05d}.parquet"
        labels: list[int | None] = [None] * len(part)
        shards.append(write_shard(str(folder), name, ids=ids, images=part, labels=labels))
    return manifest_of(image, shards)


def decoded(folder: Path, manifest: Manifest, *overrides: str) -> list[dict[str, Any]]:
    decoder = feed.decoder(load_config(None, overrides), str(folder), manifest)
    items = shard_items(str(folder), manifest, ("pretrain",))
    return [decoder({k: np.array([v]) for k, v in item.items()}) for item in items]


def test_raw_images_arrive_unchanged_and_in_place_from_any_order(tmp_path: Path) -> None:
    images = raw_images(8)
    manifest = stored(tmp_path, [i.tobytes() for i in images], ImageInfo("raw", 6, 5))
    batches = decoded(tmp_path, manifest)
    for order in (batches, batches[::-1]):
        found = feed.SharedImages(order, manifest)
        assert len(found) == 8
        for rows in (torch.arange(8), torch.tensor([7, 0, 3, 3, 6, 1]), torch.tensor([4])):
            pixels, sizes = found.take(rows)
            assert torch.equal(pixels, torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2))
            assert sizes.tolist() == [[6, 5]] * len(rows)


def test_batches_are_the_same_from_shared_blocks_from_the_device_and_from_one_tensor(
    tmp_path: Path,
) -> None:
    images = raw_images(8)
    manifest = stored(tmp_path, [i.tobytes() for i in images], ImageInfo("raw", 6, 5))
    shared = feed.SharedImages(decoded(tmp_path, manifest), manifest)
    one = ImageSet(torch.from_numpy(images).permute(0, 3, 1, 2))
    plan = EpochPlan(num_images=8, global_batch=4, drop_last=True, num_ranks=2)
    sources = (shared, shared.to(torch.device("cpu")), one)
    for rank in (0, 1):
        feeds = [source.feed(plan, seed=3, rank=rank).batches(1) for source in sources]
        for batch, *others in zip(*feeds, strict=True):
            for other in others:
                assert torch.equal(batch.images_BCHW, other.images_BCHW)
                assert torch.equal(batch.sizes_B2, other.sizes_B2)
                assert torch.equal(batch.rows_B, other.rows_B)


def test_photos_keep_their_aspect_on_the_canvas(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    photos = [generator.integers(0, 256, (*s, 3), dtype=np.uint8) for s in SHAPES]
    manifest = stored(tmp_path, [png_bytes(p) for p in photos], ImageInfo("original", None, None))
    found = feed.SharedImages(decoded(tmp_path, manifest, "feed.canvas_px=32"), manifest)
    pixels, sizes = found.take(torch.arange(4))
    assert sizes.tolist() == [[8, 12], [32, 16], [16, 16], [16, 32]]
    small = pixels[0, :, :8, :12].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(small, photos[0])
    assert not pixels[0, :, 8:].any() and not pixels[0, :, :, 12:].any()


def test_a_row_that_is_missing_or_comes_twice_is_noticed(tmp_path: Path) -> None:
    images = [i.tobytes() for i in raw_images(8)]
    manifest = stored(tmp_path, images, ImageInfo("raw", 6, 5))
    batches = decoded(tmp_path, manifest)
    with raises("E-DATA-039", "2", "8"):
        feed.SharedImages(batches[:-1], manifest)
    with raises("E-DATA-039", "3", "8"):
        feed.SharedImages([*batches, batches[0]], manifest)


def test_photos_without_a_canvas_are_refused(tmp_path: Path) -> None:
    photos = [png_bytes(raw_images(1)[0])]
    manifest = stored(tmp_path, photos, ImageInfo("original", None, None))
    with raises("E-CONFIG-018", "augment.crop_px"):
        feed.canvas_size(load_config(None), manifest)
    with raises("E-DATA-004", "augment.crop_px"):
        decoded(tmp_path, manifest)


@pytest.mark.promise("R28")
def test_a_flipped_byte_stops_the_reading_by_name(tmp_path: Path) -> None:
    images = [i.tobytes() for i in raw_images(8)]
    manifest = stored(tmp_path, images, ImageInfo("raw", 6, 5))
    file = tmp_path / "shards" / "pretrain-00001.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    with raises("E-DATA-003", "pretrain-00001"):
        decoded(tmp_path, manifest)


@pytest.mark.promise("R28")
def test_a_changed_image_stops_the_reading_by_the_name_of_its_sample(tmp_path: Path) -> None:
    images = [i.tobytes() for i in raw_images(8)]
    manifest = stored(tmp_path, images, ImageInfo("raw", 6, 5))
    file = tmp_path / "shards" / "pretrain-00001.parquet"
    content = bytearray(file.read_bytes())
    content[content.index(images[4]) + 50] ^= 1
    file.write_bytes(content)
    with raises("E-DATA-003", "image-4"):
        decoded(tmp_path, manifest)


@pytest.mark.promise("R28")
def test_an_image_that_cannot_be_decoded_any_more_stops_by_name(tmp_path: Path) -> None:
    whole = png_bytes(raw_images(1)[0].repeat(2, 0).repeat(2, 1))  # 12 x 10 px
    manifest = stored(
        tmp_path, [whole, whole[: len(whole) // 2]], ImageInfo("original", None, None)
    )
    with raises("E-DATA-005", "image-1"):
        decoded(tmp_path, manifest, "feed.canvas_px=32")


def test_a_set_to_be_kept_beyond_the_memory_is_refused_with_both_sizes() -> None:
    shard = ShardInfo("shards/pretrain-00000.parquet", 10_000_000, 1, hashlib.sha256().hexdigest())
    manifest = manifest_of(ImageInfo("raw", 32, 32), [shard])
    kept, roomy = "feed.cache=host", "feed.max_memory_bytes=40000000000"
    with raises("E-CONFIG-020", "28.6", "2.0"):
        feed.check_fits(load_config(None, [kept]), manifest, object_store_bytes=2**40)
    with raises("E-CONFIG-021", "28.6", "1.0"):
        feed.check_fits(load_config(None, [kept, roomy]), manifest, object_store_bytes=2**30)
    feed.check_fits(load_config(None, [kept, roomy]), manifest, object_store_bytes=2**40)
    assert "28.6 GiB, is kept" in feed.described(load_config(None, [kept, roomy]), manifest)


@pytest.mark.parametrize(
    ("cache", "num_images", "kept"),
    [("auto", 1_000, True), ("auto", 10_000_000, False), ("none", 1_000, False),
     ("host", 10_000_000, True), ("device", 1_000, True)],
)  # fmt: skip
def test_a_set_is_kept_if_it_fits_or_if_asked_for(cache: str, num_images: int, kept: bool) -> None:
    shard = ShardInfo("shards/pretrain-00000.parquet", num_images, 1, "0" * 64)
    manifest = manifest_of(ImageInfo("raw", 32, 32), [shard])
    assert feed.is_cached(load_config(None, [f"feed.cache={cache}"]), manifest) == kept


def test_a_last_batch_of_one_image_a_worker_is_refused_before_training() -> None:
    shard = ShardInfo("shards/pretrain-00000.parquet", 1029, 1, "0" * 64)
    manifest = manifest_of(ImageInfo("raw", 8, 8), [shard])
    words = ["train.workers=4", "train.drop_last=false", "train.sync_batchnorm=false"]
    with raises("E-CONFIG-017") as caught:
        feed.epoch_plan(load_config(None, words), manifest)  # 8 batches of 128, and 4 images
    assert "train.drop_last=true" in caught.value.todo
    for way_out in ("train.drop_last=true", "train.sync_batchnorm=true", "train.methods=[simclr]"):
        kept = [w for w in words if w.partition("=")[0] != way_out.partition("=")[0]]
        assert feed.epoch_plan(load_config(None, [*kept, way_out]), manifest).num_images == 1029


def test_too_few_images_are_refused_with_what_would_do() -> None:
    shard = ShardInfo("shards/pretrain-00000.parquet", 101, 1, hashlib.sha256().hexdigest())
    manifest = manifest_of(ImageInfo("raw", 8, 8), [shard])
    with raises("E-DATA-040", "101", "128") as error:
        feed.epoch_plan(load_config(None), manifest)
    assert "train.global_batch=100 or less" in error.value.todo
    assert feed.epoch_plan(load_config(None, ["train.global_batch=100"]), manifest).num_steps == 1
