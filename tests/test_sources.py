"""Digits and folders: who is in which set, the same every time, and clear refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cluster.jobs import ThreadTasks
from pipeline.config.data import Data, Sets
from pipeline.errors import DataError
from pipeline.ingest.sources import open as opening
from pipeline.ingest.sources.index import ImageIndex
from tests.refusals import raises
from tests.sources import image_bytes


def index_source(data: Data) -> ImageIndex:
    return opening.index_source(data, ThreadTasks())


def sets(index: ImageIndex) -> dict[str, list[str]]:
    return {name: ids(index, name) for name in index.sets}


def ids(index: ImageIndex, name: str) -> list[str]:
    return index.ids_of(index.sets[name])


# --- digits ---


@pytest.mark.promise("R24")
def test_digits_sets_and_pixels() -> None:
    index = index_source(Data())
    assert list(index.sets) == ["pretrain", "probe", "test"]
    assert index.class_counts("test") == [40] * 10
    pretrain, probe, test = (set(ids(index, name)) for name in index.sets)
    assert pretrain < probe and not probe & test and len(probe | test) == 1797
    counts = sorted(index.class_counts("pretrain") or [], reverse=True)
    assert counts[0] >= 130 and counts[0] // counts[-1] in range(45, 75) and counts[-1] >= 1
    assert index.pixels is not None and index.pixels.shape == (1797, 16, 16, 3)
    assert index.pixels.dtype == np.uint8 and index.pixels.min() == 0 and index.pixels.max() == 255
    assert (index.pixels[:, ::2, ::2] == index.pixels[:, 1::2, 1::2]).all()
    assert index.source["kind"] == "digits" and index.class_names == tuple("0123456789")
    assert set(index.num_bytes_N.tolist()) == {768}


def test_digits_are_the_same_every_time_and_the_seed_matters() -> None:
    first, again = index_source(Data()), index_source(Data())
    assert sets(first) == sets(again)
    other = index_source(Data(split_seed=1))
    assert set(ids(first, "test")) != set(ids(other, "test"))
    assert ids(first, "pretrain") != sorted(ids(first, "pretrain"))  # rows are shuffled


def test_digits_profiles_and_counts() -> None:
    everything = index_source(Data(imbalance_ratio=None, num_test_per_class=10))
    assert everything.class_counts("test") == [10] * 10
    assert set(ids(everything, "pretrain")) == set(ids(everything, "probe"))
    balanced = index_source(Data(imbalance_ratio=1.0, num_max=20))
    assert balanced.class_counts("pretrain") == [20] * 10
    pareto = index_source(Data(profile="pareto", num_max=100, imbalance_ratio=20.0))
    counts = sorted(pareto.class_counts("pretrain") or [])
    assert counts[0] == 5 and counts[-1] == 100


@pytest.mark.parametrize(
    "data",
    [
        Data(num_max=1000),
        Data(imbalance_ratio=1e6),
        Data(num_max=10, imbalance_ratio=50.0),
        Data(num_test_per_class=174),
    ],
)
def test_impossible_splits_are_refused_in_words(data: Data) -> None:
    with pytest.raises(DataError) as caught:
        index_source(data)
    assert "data." in caught.value.where and caught.value.todo


def test_index_lists_apply_to_cifar_only() -> None:
    with raises("E-CONFIG-220"):
        index_source(Data(sets=Sets(pretrain="x.npy")))


# --- folders ---


def make_folder(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
            image = Image.new("RGB", (16, 16), (number % 256, 0, 0))
            image.save(path, kind[path.suffix.lower()])
        else:
            path.write_bytes(b"other")
    return root


def folder_data(root: Path, **keys: Any) -> Data:
    return Data(source="folder", path=str(root), **{"imbalance_ratio": None, **keys})


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    names = ["b.JPG", "a.png", "c.webp", "d.jpeg"]
    make_folder(tmp_path, [*names, "notes.txt", ".hidden.png", ".cache/x.png"])
    index = index_source(folder_data(tmp_path))
    assert sorted(ids(index, "pretrain")) == sorted(names) and list(index.sets) == ["pretrain"]
    assert index.class_names is None and index.class_counts("pretrain") is None
    assert set(index.labels_N.tolist()) == {-1} and index.root == str(tmp_path)
    sizes = [(tmp_path / name).stat().st_size for name in index.ids.to_pylist()]
    assert index.num_bytes_N.tolist() == sizes


def classes(*counts: int) -> list[str]:
    return [f"c{label}/{n:03d}.png" for label, count in enumerate(counts) for n in range(count)]


def test_one_folder_per_class_is_labelled(tmp_path: Path) -> None:
    make_folder(tmp_path, [*classes(5, 8, 3), "c1/deeper/still.png"])
    index = index_source(folder_data(tmp_path, num_test_per_class=2))
    assert index.class_names == ("c0", "c1", "c2")
    assert index.class_counts("test") == [2, 2, 2]
    assert index.class_counts("probe") == [3, 7, 1]
    assert set(ids(index, "pretrain")) == set(ids(index, "probe"))
    assert not set(ids(index, "probe")) & set(ids(index, "test"))
    for name, label in zip(index.ids.to_pylist(), index.labels_N, strict=True):
        assert name.startswith(f"c{label}/")
    assert sets(index_source(folder_data(tmp_path, num_test_per_class=2))) == sets(index)
    assert "test" not in index_source(folder_data(tmp_path)).sets


def test_a_validation_part_shares_no_image_with_any_other_set(tmp_path: Path) -> None:
    make_folder(tmp_path, classes(9, 8, 7))
    folder = folder_data(tmp_path, num_test_per_class=2, num_val_per_class=3)
    for data, per_class in ((folder, 3), (Data(num_val_per_class=20), 20)):
        index = index_source(data)
        counts = index.class_counts("val")
        assert counts is not None and set(counts) == {per_class}
        val = set(ids(index, "val"))
        for other in ("pretrain", "probe", "test"):
            assert not val & set(ids(index, other)), other
        without = index_source(data.model_copy(update={"num_val_per_class": None}))
        assert "val" not in without.sets
        assert ids(without, "test") == ids(index, "test")  # test images do not depend on val
    other_seed = index_source(Data(num_val_per_class=20, split_seed=1))
    assert set(ids(other_seed, "val")) != val
    with raises("E-DATA-069", "200") as caught:
        index_source(Data(num_val_per_class=200))
    assert caught.value.where == "data.num_val_per_class"


def test_no_long_tail_is_drawn_of_a_folder_unless_asked_for(tmp_path: Path) -> None:
    make_folder(tmp_path, classes(60, 60))
    index = index_source(Data(source="folder", path=str(tmp_path)))
    assert index.class_counts("pretrain") == [60, 60]
    digits = index_source(Data()).class_counts("pretrain")
    assert digits is not None and max(digits) > 20 * min(digits)


def test_a_long_tail_of_a_folder(tmp_path: Path) -> None:
    make_folder(tmp_path, classes(8, 8, 8))
    index = index_source(folder_data(tmp_path, imbalance_ratio=4.0))
    assert sorted(index.class_counts("pretrain") or []) == [2, 4, 8]
    assert index.class_counts("probe") == [8, 8, 8]


def test_labelled_may_be_said_instead_of_guessed(tmp_path: Path) -> None:
    make_folder(tmp_path / "many", classes(2, 2))
    index = index_source(folder_data(tmp_path / "many", labelled=False))
    assert index.class_names is None and len(index.sets["pretrain"]) == 4
    make_folder(tmp_path / "one", classes(3))
    assert index_source(folder_data(tmp_path / "one")).class_names is None
    assert index_source(folder_data(tmp_path / "one", labelled=True)).class_names == ("c0",)


@pytest.mark.promise("R25")
def test_unfit_folders_are_refused_in_words(tmp_path: Path) -> None:
    make_folder(tmp_path / "text", ["notes.txt"])
    make_folder(tmp_path / "mixed", ["a.png", *classes(2, 2)])
    make_folder(tmp_path / "flat", ["a.png"])
    (tmp_path / "empty").mkdir()
    for name, keys, refusal in (
        ("none", {}, "E-DATA-048"),
        ("empty", {}, "E-DATA-048"),
        ("text", {}, "E-DATA-049"),
        ("mixed", {}, "E-DATA-047 1 2"),
        ("mixed", {"labelled": True}, "E-DATA-047"),
        ("flat", {"labelled": True}, "E-DATA-047"),
    ):
        with raises(*refusal.split()) as caught:
            index_source(folder_data(tmp_path / name, **keys))
        assert caught.value.where == str(tmp_path / name) and caught.value.todo
    with raises("E-CONFIG-024"):
        index_source(folder_data(tmp_path / "flat", num_test_per_class=2))
    (tmp_path / "flat" / "line\nbreak.png").write_bytes(b"")
    (reject,) = index_source(folder_data(tmp_path / "flat")).rejects
    assert reject.reason == "unusable_name" and reject.id == "line\\x0abreak.png"


def test_one_file_in_place_of_a_folder_is_refused_with_the_folder_to_give(
    tmp_path: Path, s3: Any
) -> None:
    image = image_bytes(1)
    make_folder(tmp_path / "my photos", ["a.png"])
    (tmp_path / "my photos" / "IMG_1.jpg").write_bytes(image)
    (tmp_path / "my photos" / "list.csv").write_text("a.png\n")
    s3.buckets["bucket"] = {"photos/IMG_1.jpg": image}
    for path, parent in (
        (tmp_path / "my photos" / "IMG_1.jpg", f"'{tmp_path}/my photos'"),
        ("s3://bucket/photos/IMG_1.jpg", "s3://bucket/photos"),
    ):
        data = Data(source="folder", path=str(path))
        with raises("E-DATA-308", str(path), f"data.path={parent}"):
            index_source(data)
    with raises("E-DATA-308") as caught:
        index_source(Data(source="folder", path=str(tmp_path / "my photos" / "list.csv")))
    assert str(tmp_path) not in caught.value.todo  # its folder need not hold images
    with raises("E-DATA-308"):
        index_source(Data(source="parquet", path=str(tmp_path / "my photos" / "IMG_1.jpg")))


def test_a_linked_class_folder_is_refused_and_not_left_out(tmp_path: Path) -> None:
    make_folder(tmp_path / "in", [*classes(2, 2), ".git/x.png"])
    make_folder(tmp_path / "elsewhere", ["a.png"])
    (tmp_path / "in" / "c1" / "linked.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "in" / ".hidden").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / ".git" / "more").symlink_to(tmp_path / "elsewhere")
    assert len(index_source(folder_data(tmp_path / "in")).ids) == 5  # a linked file is a file
    (tmp_path / "in" / "c2").symlink_to(tmp_path / "elsewhere")
    with raises("E-DATA-050") as caught:
        index_source(folder_data(tmp_path / "in"))
    assert caught.value.where == str(tmp_path / "in" / "c2") and "data.source" in caught.value.todo


def test_a_folder_on_s3(s3: Any) -> None:
    s3.buckets["bucket"] = {f"photos/{name}": b"." for name in ("a.png", "x/b.jpg", "n.txt")}
    data = Data(source="folder", path="s3://bucket/photos", labelled=False)
    assert sorted(ids(index_source(data), "pretrain")) == ["a.png", "x/b.jpg"]


def test_counts_without_labels() -> None:
    index = index_source(Data())
    assert replace(index, class_names=None).class_counts("probe") is None
