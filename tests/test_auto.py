"""What `auto` means, and which settings are warned of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import feed
from pipeline.cli.advice import conflicts, left_out
from pipeline.cluster import auto
from pipeline.cluster.connect import Cluster
from pipeline.config import Config
from pipeline.config.file import changed_keys, load_config
from pipeline.dataset.manifest import ImageInfo
from pipeline.errors import DataError
from tests.test_feed import manifest_of

ROOT = Path(__file__).resolve().parents[1]
HERE = Cluster("here", is_local=True, num_cpus=9, num_gpus=0, dashboard_url="", largest_node_cpus=9)


def config(*words: str) -> Config:
    return load_config(None, words)


@pytest.mark.parametrize(
    ("words", "num_cpus", "num_gpus", "here", "on_a_cluster"),
    [
        ([], 9, 0, 1, 2), ([], 2, 0, 1, 1), ([], 9, 4, 4, 4), ([], 9, 3, 2, 2), ([], 9, 1, 1, 1),
        (["train.global_batch=96"], 9, 3, 3, 3), (["train.workers=8"], 2, 0, 8, 8),
        (["train.device=cpu"], 9, 4, 1, 2), (["train.global_batch=3"], 9, 0, 1, 1),
    ],
)  # fmt: skip
def test_workers_follow_the_gpus(
    words: list[str],
    num_cpus: int,
    num_gpus: int,
    here: int,
    on_a_cluster: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auto, "native_on", lambda cluster, config: "float32")
    cluster = replace(HERE, num_cpus=num_cpus, num_gpus=num_gpus)
    assert auto.settled(config(*words), cluster).train.workers == here
    cluster = replace(cluster, is_local=False)
    assert auto.settled(config(*words), cluster).train.workers == on_a_cluster


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_sleep_unless_told_otherwise(given: str | None, expected: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {} if given is None else {"OMP_WAIT_POLICY": given}
    code = "import pipeline, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == [expected, "False"]


def test_precision_follows_the_device_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        auto, "native_precision", lambda on_gpu: "bfloat16" if on_gpu else "float32"
    )
    with_gpu = replace(HERE, num_gpus=1)
    assert auto.settled(config(), with_gpu).train.precision == "bfloat16"
    assert auto.settled(config("train.device=cpu"), with_gpu).train.precision == "float32"
    assert auto.settled(config("train.precision=bfloat16"), HERE).train.precision == "bfloat16"


def test_a_resumed_run_keeps_what_it_had() -> None:
    had = config("train.workers=4", "train.precision=bfloat16")
    same = auto.settled_like(config(), had)
    assert not changed_keys(had, same) and same.train.workers == 4
    other = auto.settled_like(config("train.precision=float32"), had)
    assert changed_keys(had, other) == ["train.precision: bfloat16 -> float32"]


@pytest.mark.parametrize(
    ("words", "num_gpus", "native", "named"),
    [
        (["train.workers=2"], 0, "float32", []),
        (["train.workers=2"], 2, "bfloat16", []),
        (["train.workers=4"], 2, "float32", ["CPUs while 2 GPUs stand idle"]),
        (["train.workers=2", "train.device=cpu"], 1, "float32", ["CPUs while 1 GPUs stand idle"]),
        (["train.workers=1"], 2, "bfloat16", ["1 of 2 GPUs stand idle"]),
        (["train.workers=2", "train.precision=bfloat16"], 0, "float32", ["emulated"]),
        (["train.workers=2", "train.precision=bfloat16"], 0, "bfloat16", []),
    ],
)
def test_idle_gpus_and_emulated_precision_are_named(
    words: list[str], num_gpus: int, native: auto.Precision, named: list[str]
) -> None:
    found = auto.warnings(config(*words), num_gpus, native)
    assert len(found) == len(named)
    assert all(word in text for word, text in zip(named, found, strict=True))


def test_gpus_that_nobody_sees_are_named(tmp_path: Path) -> None:
    assert auto.unseen_gpus(0, devices=tmp_path) == []
    for name in ("nvidia0", "nvidia1", "nvidiactl", "null"):
        (tmp_path / name).touch()
    (found,) = auto.unseen_gpus(0, devices=tmp_path)
    assert "2 NVIDIA devices" in found
    assert auto.unseen_gpus(2, devices=tmp_path) == []


PHOTOS = ["data.source=folder", "data.path=x", "augment.hflip_prob=0.5"]


@pytest.mark.parametrize(
    ("words", "rows", "named"),
    [
        (["augment.crop_px=64"], 1280, []),
        (["augment.crop_px=64", "evaluate.resize_px=256"], 1280, ["centre 64 px"]),
        (
            ["augment.crop_px=200", "evaluate.resize_px=280", "feed.canvas_px=240"],
            1280,
            ["leave out feed.canvas_px"],
        ),
        (
            ["augment.crop_px=64", "evaluate.resize_px=256", "feed.canvas_px=80"],
            1280,
            ["centre 64 px", "enlarged again to 256 px: leave out feed.canvas_px"],
        ),
        (["augment.crop_px=64", "evaluate.resize_px=90"], 1280, []),
        (["augment.crop_px=64", "feed.canvas_px=60"], 1280, ["feed.canvas_px"]),
        (["augment.crop_px=64", "ingest.resize_short_px=73"], 1280, []),
        (
            ["augment.crop_px=64", "ingest.resize_short_px=72"],
            1280,
            ["enlarged again to 73 px: raise ingest.resize_short_px"],
        ),
        (["augment.crop_px=64", "train.global_batch=256"], 400, ["144 of 400 images wait"]),
        (["augment.crop_px=64", "train.global_batch=256", "train.drop_last=false"], 400, []),
        (["augment.crop_px=64", "augment.hflip_prob=0"], 1280, ["photos.yaml"]),
    ],
)
def test_settings_that_fight_are_named(words: list[str], rows: int, named: list[str]) -> None:
    """Each by a key that was given."""
    photos = [word for word in PHOTOS if word.split("=")[0] not in " ".join(words)]
    manifest = manifest_of(ImageInfo("original", None, None), [])
    sets = {"pretrain": replace(manifest.sets["pretrain"], rows=rows)}
    found = conflicts(config(*photos, *words), replace(manifest, sets=sets))
    assert len(found) == len(named), found
    assert all(word in text for word, text in zip(named, found, strict=True))
    keys = re.findall(r"leave out (\S+)", " ".join(found))
    assert all(any(word.startswith(f"{key}=") for word in words) for key in keys)


@pytest.mark.parametrize(
    ("image", "rows", "hinted"),
    [
        (ImageInfo("original", None, None), 100, True),
        (ImageInfo("original", None, None), 50, False),  # too few for photos_small.yaml as well
        (ImageInfo("raw", 8, 8), 100, False),
    ],
)
def test_few_photographs_are_sent_to_the_recipe_for_them(
    image: ImageInfo, rows: int, hinted: bool
) -> None:
    small = load_config(str(ROOT / "tune_configs" / "photos_small.yaml"), ["data.path=x"])
    assert small.train.global_batch == 64
    manifest = manifest_of(image, [])
    few = {"pretrain": replace(manifest.sets["pretrain"], rows=rows)}
    words = ("augment.crop_px=8", "train.global_batch=256")
    with pytest.raises(DataError) as caught:
        feed.epoch_plan(config(*words), replace(manifest, sets=few))
    assert ("photos_small.yaml" in caught.value.todo) is hinted
    assert f"train.global_batch={rows} or less" in caught.value.todo


@pytest.mark.parametrize(
    ("words", "rows", "text"),
    [
        ([], 175, "47 of 175 images wait for another epoch: train.drop_last=false takes them, as"),
        ([], 128, ""),
        (["train.drop_last=false"], 175, "1 of 175 images wait"),  # two workers take 46
        (["train.workers=1", "train.drop_last=false"], 175, ""),
        (["train.workers=2"], 175, "train.drop_last=false takes 46 of them"),
        (["train.workers=[1, 2]"], 175, "47 of 175 images wait for another epoch: they do not"),
        ([], 129, "1 of 129 images wait for another epoch: they do not fill a batch of 64"),
        ([], 112, ""),  # 48 are more than a third: a conflict
    ],
)
def test_images_that_an_epoch_leaves_out_are_counted_once(
    words: list[str], rows: int, text: str
) -> None:
    workers = ["train.workers=2" if "train.drop_last=false" in words else "train.workers=1"]
    own = [] if any("workers" in word for word in words) else workers
    c = config("train.global_batch=64", *own, *words)
    manifest = manifest_of(ImageInfo("raw", 8, 8), [])
    manifest = replace(manifest, sets={"pretrain": replace(manifest.sets["pretrain"], rows=rows)})
    found = left_out(c, manifest)
    assert len(found) == bool(text) and all(text in one for one in found)
    said = [one for one in conflicts(c, manifest) if "wait for another epoch" in one]
    assert bool(said) is (rows == 112)
