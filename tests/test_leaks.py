"""Shared images are found by hash and named; sets that share none pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.dataset.manifest import ImageInfo, Manifest, Rejects, SetInfo
from pipeline.dataset.shards import write_shard
from pipeline.errors import DataError
from pipeline.evaluate.leaks import find_leaks, refuse, sentences, shared_images


def image(number: int) -> bytes:
    return number.to_bytes(2, "big") * 24


def data_set(folder: Path, **sets: list[int]) -> Manifest:
    """Two shards for each set; image `number` has the same bytes wherever it is."""
    infos = {}
    for name, numbers in sets.items():
        half = len(numbers) // 2
        shards = tuple(
            write_shard(
                str(folder),
                f"shards/{name}-{i:05d}.parquet",
                ids=[f"{name}/{n}" for n in part],
                images=[image(n) for n in part],
                labels=[0] * len(part),
            )
            for i, part in enumerate((numbers[:half], numbers[half:]))
        )
        infos[name] = SetInfo(len(numbers), (len(numbers),), shards)
    return Manifest(
        name="some", source={}, image=ImageInfo("raw", 4, 4), class_names=("a",), sets=infos,
        fewshot=(), rejects=Rejects(0, {}, ()), config={}, hash="",
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.ray
def test_disjoint_sets_pass_and_shared_images_are_named(ray_cluster: None, tmp_path: Path) -> None:
    # Pre-training images are labelled images too, as in CIFAR-10-LT: that is no leak.
    clean = data_set(
        tmp_path / "a", pretrain=[1, 2], probe=[1, 2, 3, 4], val=[5, 6], test=[7, 8, 9, 10]
    )
    assert find_leaks(str(tmp_path / "a"), clean) == []
    leaky = data_set(
        tmp_path / "b", pretrain=[1, 7], probe=[1, 7, 3, 4], val=[5, 9], test=[7, 8, 9, 10]
    )
    found = find_leaks(str(tmp_path / "b"), leaky)
    assert [(leak.sets, leak.images, leak.of) for leak in found] == [
        (("test", "val"), 1, 4), (("test", "pretrain"), 1, 4), (("test", "probe"), 1, 4)
    ]  # fmt: skip
    assert found[1].examples == (("test/7", "pretrain/7"),)


def hashed(**sets: list[str]) -> dict[str, dict[str, list[str]]]:
    return {
        name: {digest: [f"{name}-{digest}"] for digest in digests} for name, digests in sets.items()
    }


LEAKS = shared_images(hashed(probe=["x", "y", "z"], test=["x", *map(str, range(99))]))


def test_leaks_are_refused_above_the_fraction_and_told_below() -> None:
    manifest = replace(data_set_without_shards())
    assert sentences(LEAKS) == ["leak: 1 of 100 images of test are also in probe: test-x = probe-x"]
    refuse(LEAKS, manifest, max_frac=0.01)
    refuse([], manifest, max_frac=0.0)
    with pytest.raises(DataError) as caught:
        refuse(LEAKS, manifest, max_frac=0.009)
    assert caught.value.id == "E-DATA-037" and "test-x = probe-x" in caught.value.what
    assert "evaluate.max_leak_frac=0.01" in caught.value.todo


def data_set_without_shards() -> Manifest:
    return Manifest("some", {}, ImageInfo("raw", 4, 4), None, {}, (), Rejects(0, {}, ()), {}, "")


def test_an_image_that_occurs_twice_in_the_scored_set_counts_twice() -> None:
    sets = hashed(val=["x"], probe=["x"])
    sets["val"]["x"] = ["a", "b"]
    (leak,) = shared_images(sets)
    assert (leak.sets, leak.images, leak.of) == (("val", "probe"), 2, 2)


def test_sets_that_do_not_exist_share_nothing() -> None:
    assert shared_images(hashed(pretrain=["x"], probe=["x"])) == []
