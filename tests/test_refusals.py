"""Bad input as a user meets it: one message, the right exit code, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import run as entry


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = entry.main(list(words))
    text = capsys.readouterr().err
    assert text.count("error:") == 1 and "to do:" in text, text
    return code, text


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def photos(folder: Path, num_images: int, *, broken: int = 0) -> Path:
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(num_images):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.jpg")
    for i in range(broken):
        whole = (folder / f"{i:03d}.jpg").read_bytes()
        (folder / f"{i:03d}.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


FOLDER = ("data.source=folder", "feed.canvas_px=32", "augment.crop_px=16")


def test_an_unknown_key_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = refused(capsys, "train.epoch=3")
    assert code == 2 and "did you mean train.epochs" in text


def test_a_wrong_type(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = refused(capsys, "train.lr_per_256=fast")
    assert code == 2 and "train.lr_per_256" in text and "fast" in text


def test_several_errors_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train.epoch=3", "train.lr_per_256=-1", "sdclr.prune_ratio=2", "trian.lr=1")
    code, text = refused(capsys, *words)
    assert code == 2 and all(word.split("=")[0] in text for word in words)


def test_a_missing_config_file(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = refused(capsys, "--config", "nowhere.yaml")
    assert code == 2 and "nowhere.yaml" in text


def test_a_missing_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = refused(capsys, "--resume", "runs/nothing")
    assert code == 2 and "runs/nothing" in text


def test_evaluate_before_train(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = refused(capsys, "evaluate")
    assert code == 2 and "train first" in text


@pytest.mark.ray
def test_a_missing_data_folder(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], in_an_empty_folder: Path
) -> None:
    code, text = refused(capsys, *FOLDER, "data.path=nowhere")
    assert code == 3 and "nowhere" in text
    assert list(in_an_empty_folder.rglob("*.json")) == []


@pytest.mark.ray
@pytest.mark.promise("O2")
def test_a_broken_image_fails_the_stage_by_name_and_leaves_no_data_set(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], in_an_empty_folder: Path
) -> None:
    source = photos(in_an_empty_folder / "photos", 12, broken=1)
    code, text = refused(capsys, *FOLDER, f"data.path={source}", "ingest")
    assert code == 3 and "000.jpg" in text and "max_reject_frac" in text
    assert list(in_an_empty_folder.rglob("manifest.json")) == []


@pytest.mark.ray
def test_the_same_folder_with_the_reject_allowed_is_ingested(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], in_an_empty_folder: Path
) -> None:
    source = photos(in_an_empty_folder / "photos", 12, broken=1)
    words = (*FOLDER, f"data.path={source}", "ingest.max_reject_frac=0.2", "ingest")
    assert entry.main(list(words)) == 0
    assert "pretrain 11" in capsys.readouterr().out


@pytest.mark.ray
def test_too_few_images_for_a_batch(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], in_an_empty_folder: Path
) -> None:
    source = photos(in_an_empty_folder / "photos", 12)
    code, text = refused(capsys, *FOLDER, f"data.path={source}")
    assert code == 3 and "12 images do not fill one global batch of 128" in text
    assert not (in_an_empty_folder / "runs").exists()


@pytest.mark.ray
def test_more_workers_than_cores(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], in_an_empty_folder: Path
) -> None:
    code, text = refused(capsys, "train.workers=64")
    assert code == 5 and "takes 64 CPUs" in text
    assert not (in_an_empty_folder / "runs").exists()


@pytest.mark.ray
def test_images_of_all_sizes_need_a_canvas(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], in_an_empty_folder: Path
) -> None:
    source = photos(in_an_empty_folder / "photos", 12)
    words = ("data.source=folder", f"data.path={source}", "train.global_batch=4")
    code, text = refused(capsys, *words)
    assert code == 2 and "augment.crop_px" in text
