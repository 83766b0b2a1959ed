"""Folders of classes and of sets: each layout is used as what it is, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.ingest.sources.index import ImageIndex
from tests.loopback_s3 import LoopbackS3
from tests.refusals import raises
from tests.sources import (
    image_bytes,
    index_of,
    ingested,
    names_of,
    write_files,
    write_table,
    write_tar,
)

IMAGE = image_bytes(0)


def folders(text: str) -> dict[str, bytes]:
    """Two images in each folder; `train/*` stands for train/cat and train/dog, `.` for the root."""
    words: list[str] = []
    for part in text.split():
        words += [part[:-1] + kind for kind in ("cat", "dog")] if "*" in part else [part]
    return {f"{word}/{n}.png".removeprefix("./"): IMAGE for word in words for n in range(2)}


def layout(root: Path, text: str, **keys: object) -> ImageIndex:
    return index_of("folder", write_files(root, folders(text)), **keys)


def top(index: ImageIndex, name: str) -> set[str]:
    return {image.partition("/")[0] for image in names_of(index, name)}


@pytest.mark.parametrize(
    ("text", "sets", "left_out"),
    [
        ("train/* val/* test", {"pretrain": "train", "test": "val"}, 2),  # ImageNet
        ("train/* val", {"pretrain": "train"}, 2),
        ("train/* val/images test/images", {"pretrain": "train"}, 4),
        ("train/* eval/*", {"pretrain": "train", "test": "eval"}, 0),
        ("train/* eval/* test/*", {"pretrain": "train", "val": "eval", "test": "test"}, 0),
        ("train2017/* val2017/*", {"pretrain": "train2017", "test": "val2017"}, 0),
        ("img_train/* img_val/* img_test",
         {"pretrain": "img_train", "test": "img_val"}, 2),
        ("trainval/* test/*", {"pretrain": "trainval", "test": "test"}, 0),
        ("TrainSet/* Test-Images/*", {"pretrain": "TrainSet", "test": "Test-Images"}, 0),
        ("train/* val/cat/a val/dog/b test/bird", {"pretrain": "train", "test": "val"}, 2),
    ],
)  # fmt: skip
@pytest.mark.promise("R29")
def test_sets_are_used_and_those_without_labels_are_left_out_and_named(
    text: str, sets: dict[str, str], left_out: int, tmp_path: Path
) -> None:
    index = layout(tmp_path, text)
    assert index.class_names == ("cat", "dog")
    assert {name: top(index, name) for name in index.sets} == {
        name: {folder} for name, folder in {**sets, "probe": sets["pretrain"]}.items()
    }
    assert all(index.class_counts(name) == [2, 2] for name in sets)
    counts = {kind: info.files for kind, info in index.left_out.items()}
    assert counts == ({"images without labels": left_out} if left_out else {})
    assert len(index.ids) + left_out == len(folders(text)) == 4 * len(sets) + left_out
    unused = {name.partition("/")[0] for name in folders(text)} - set(sets.values())
    assert all(any(note.startswith(f"{name} ") for note in index.notes) for name in unused)
    everything = index_of("folder", tmp_path, labelled=False)
    assert everything.class_names is None and len(everything.ids) == len(folders(text))
    assert everything.notes


@pytest.mark.parametrize(
    ("text", "error", "fact"),
    [
        ("train/* val/* docs", "E-DATA-811", "docs"),
        ("train/* val/* dogs/*", "E-DATA-811", "dogs"),
        ("train/* test/* unlabeled/*", "E-DATA-811", "unlabeled"),
        ("train/* train2/* val/*", "E-DATA-811", "train2"),
        ("train/* train_extra/*", "E-DATA-811", "train_extra"),
        ("train/* bus", "E-DATA-811", "bus"),
        ("train/* val/* valid/*", "E-DATA-813", "valid"),
        ("train/* Train/* val/*", "E-DATA-813", "Train"),
        ("train2014/* train2017/*", "E-DATA-813", "train2017"),
        ("train/* val/* .", "E-DATA-047", "2 beside 2"),
        ("train/* .", "E-DATA-047", "2 beside 1"),
        ("train/* val/* val", "E-DATA-047", "2 beside 2"),
        ("val/* test/*", "E-DATA-812", "val"),
        ("train val/*", "E-DATA-812", "train"),
        ("train train/* val/*", "E-DATA-812", "train"),
        ("train_a/* train_b/*", "E-DATA-812", "train_b"),
        ("learn/* test/*", "E-DATA-812", "learn"),
        ("all/train/a all/val/a readme", "E-DATA-814", "readme"),
        ("cat/train cat/val dog/train dog/val dog/raw", "E-DATA-814", "dog/raw"),
        ("cat/train cat/val dog", "E-DATA-814", "dog"),
        ("cat/val cat/test dog/val", "E-DATA-814", "val"),
        ("cat/train cat/val dog/train .", "E-DATA-814", "2"),
        ("cat/train cat/val dog/training", "E-DATA-813", "training"),
    ],
)  # fmt: skip
@pytest.mark.promise("R29")
def test_what_only_resembles_sets_is_refused_by_name(
    text: str, error: str, fact: str, tmp_path: Path
) -> None:
    with raises(error, fact) as caught:
        layout(tmp_path, text)
    assert caught.value.where.startswith(str(tmp_path)) and "data.labelled" in caught.value.todo
    assert len(index_of("folder", tmp_path, labelled=False).ids) == len(folders(text))  # control


def test_sets_below_classes_are_used(tmp_path: Path) -> None:
    index = layout(tmp_path, "cat/train cat/val cat/test dog/train dog/val dog/test")
    assert index.class_names == ("cat", "dog") and index.notes
    for name, folder in {"pretrain": "train", "val": "val", "test": "test"}.items():
        assert {image.split("/")[1] for image in names_of(index, name)} == {folder}
        assert index.class_counts(name) == [2, 2]
    plain = layout(tmp_path / "plain", "cat/a cat/train dog/b dog/train")  # control
    assert plain.class_counts("pretrain") == [4, 4] and "test" not in plain.sets


@pytest.mark.parametrize(
    "text",
    ["train val", "train eval", "train train_extra", "train2017 val2017 test2017",
     "train unlabeled test", "train/images val/images", "set-train set-test"],
)  # fmt: skip
def test_sets_without_class_folders_have_no_labels(text: str, tmp_path: Path) -> None:
    index = layout(tmp_path, text)
    assert index.class_names is None and len(index.ids) == len(folders(text))
    assert any("data.path=" in note for note in index.notes)
    said = index_of("folder", tmp_path, labelled=True)
    assert said.class_names is not None and said.notes


@pytest.mark.parametrize(
    ("text", "classes", "noted"),
    [
        ("train bus test", ("bus", "test", "train"), True),
        ("train train/steam bus", ("bus", "train"), True),
        ("bus trainee", ("bus", "trainee"), False),
        ("extra valley", ("extra", "valley"), False),
        ("red_train red_bus", ("red_bus", "red_train"), False),
        ("JPEGImages SegmentationClass", ("JPEGImages", "SegmentationClass"), True),
        ("images masks", ("images", "masks"), True),
        ("photos bus", ("bus", "photos"), False),
        ("fold1/* fold2/*", ("fold1", "fold2"), True),
        ("photo/* sketch/* sketch/bird", ("photo", "sketch"), True),
        ("photo/* sketch/cat", ("photo", "sketch"), False),
    ],
)
def test_classes_that_may_be_none_are_said(
    text: str, classes: tuple[str, ...], noted: bool, tmp_path: Path
) -> None:
    index = layout(tmp_path, text)
    assert index.class_names == classes
    assert any("taken as classes" in note for note in index.notes) is noted


@pytest.mark.parametrize(
    ("names", "noted"),
    [
        (["train-00000-of-00001", "test-00000-of-00001"], True),
        (["data/train-0", "data/val-0"], True),
        (["train/0", "eval/0"], True),
        (["train_0", "train_1"], False),
        (["trainee-0", "testament-0", "train-0"], False),
    ],
)
@pytest.mark.parametrize("source", ["parquet", "webdataset"])
def test_tables_and_archives_of_several_sets_are_said(
    source: str, names: list[str], noted: bool, tmp_path: Path
) -> None:
    for name in names:
        if source == "parquet":
            write_table(tmp_path / f"{name}.parquet", [IMAGE])
        else:
            write_tar(tmp_path / f"{name}.tar", {"a.png": IMAGE})
    index = index_of(source, tmp_path)
    assert len(index.ids) == len(names) and bool(index.notes) is noted


def test_images_that_are_left_out_are_in_no_shard(tmp_path: Path) -> None:
    path = write_files(tmp_path / "in", folders("train/* val/* test"))
    _, manifest, notes = ingested("folder", path, tmp_path / "out")
    assert manifest.left_out["images without labels"].files == 2
    assert {name: info.rows for name, info in manifest.sets.items()} == {
        "pretrain": 4, "probe": 4, "test": 4,
    }  # fmt: skip
    assert any(note.startswith("test ") for note in notes)
    assert ingested("folder", path, tmp_path / "out")[1].hash == manifest.hash  # used again
    assert manifest.origin["path"].files == 10


def test_sets_on_s3_are_those_of_a_folder(s3: LoopbackS3, tmp_path: Path) -> None:
    files = folders("train/* val/* test")
    s3.buckets["bucket"] |= {f"in/{name}": content for name, content in files.items()}
    there, here = index_of("folder", "s3://bucket/in"), layout(tmp_path, "train/* val/* test")
    assert there.notes == here.notes and there.left_out == here.left_out
    assert {n: names_of(there, n) for n in there.sets} == {n: names_of(here, n) for n in here.sets}
