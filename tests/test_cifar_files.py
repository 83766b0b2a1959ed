"""CIFAR: four published layouts, hostile pickles, index lists and the published split."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.data import Data, Sets
from pipeline.errors import DataError
from pipeline.ingest.sources.arrays import cifar_index, cifar_sets
from pipeline.ingest.sources.cifar_files import CIFAR10_NAMES, CifarImages, Kind, read_cifar
from pipeline.ingest.sources.index import ImageIndex
from tests.refusals import raises
from tests.test_splits import write_list

REPO = Path(__file__).resolve().parents[1]


def rows_of(index: ImageIndex, name: str) -> list[int]:
    return sorted(int(name.split("/")[1]) for name in index.ids_of(index.sets[name]))


NUM_TRAIN, NUM_TEST = 50, 20


def fake_images(num_classes: int = 10) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    count = NUM_TRAIN + NUM_TEST
    pixels = generator.integers(0, 256, (count, 3, 32, 32), np.uint8)
    return pixels, np.arange(count) % num_classes


def write_cifar(folder: Path, layout: str) -> Path:
    """A data set of 50 + 20 images in one of the four published layouts."""
    is_100 = layout.startswith("cifar-100")
    pixels, labels = fake_images(100 if is_100 else 10)
    flat = pixels.reshape(len(pixels), -1)
    target = folder / layout
    target.mkdir(parents=True)
    if is_100:
        files = {"train": slice(0, NUM_TRAIN), "test": slice(NUM_TRAIN, None)}
    else:
        files = {f"data_batch_{n + 1}": slice(10 * n, 10 * n + 10) for n in range(5)}
        files["test_batch"] = slice(NUM_TRAIN, None)
    names = [f"class{n}" for n in range(100)]
    for name, rows in files.items():
        if layout.endswith(("-bin", "-binary")):
            columns = [labels[rows, None].astype(np.uint8), flat[rows]]
            if is_100:
                columns.insert(0, np.zeros((len(flat[rows]), 1), np.uint8))
            (target / f"{name}.bin").write_bytes(np.concatenate(columns, 1).tobytes())
        else:
            key = b"fine_labels" if is_100 else b"labels"
            batch = {b"data": flat[rows], key: labels[rows].tolist(), b"batch_label": b"x"}
            (target / name).write_bytes(pickle.dumps(batch, protocol=2))
    if is_100:
        (target / "fine_label_names.txt").write_text("\n".join(names) + "\n")
        meta = {b"fine_label_names": [name.encode() for name in names]}
        (target / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return target


def read_small(path: Path, kind: Kind) -> CifarImages:
    return read_cifar(str(path), kind, num_train=NUM_TRAIN, num_test=NUM_TEST)


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        ("cifar-10-batches-py", "cifar10"),
        ("cifar-10-batches-bin", "cifar10"),
        ("cifar-100-python", "cifar100"),
        ("cifar-100-binary", "cifar100"),
    ],
)
def test_all_four_cifar_layouts(tmp_path: Path, layout: str, kind: Kind) -> None:
    target = write_cifar(tmp_path, layout)
    images = read_small(tmp_path, kind)
    pixels, labels = fake_images(100 if kind == "cifar100" else 10)
    np.testing.assert_array_equal(images.pixels, pixels.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(images.labels, labels)
    assert images.num_train == NUM_TRAIN and not images.published
    assert images.class_names[:1] == (("class0",) if kind == "cifar100" else ("airplane",))
    inside = read_small(target, kind)  # the folder itself may be named as well
    np.testing.assert_array_equal(inside.pixels, images.pixels)


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.promise("S2")
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    target = write_cifar(tmp_path, "cifar-10-batches-py")
    proof = tmp_path / "ran"
    content = pickle.dumps({b"data": _Payload(proof), b"labels": []})
    (target / "data_batch_3").write_bytes(content)
    with raises("E-DATA-046") as caught:
        read_small(tmp_path, "cifar10")
    assert "data_batch_3" in caught.value.where and not proof.exists()
    pickle.loads(content)
    assert proof.exists()  # control: the plain loader runs it


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1]),
        pickle.dumps({b"labels": [0] * 10}),
        pickle.dumps({b"data": np.zeros((9, 3072), np.uint8), b"labels": [0] * 9}),
        pickle.dumps({b"data": np.zeros((10, 3072), np.int64), b"labels": [0] * 10}),
        pickle.dumps({b"data": np.zeros((10, 3072), np.uint8), b"labels": [0] * 9}),
        pickle.dumps({b"data": np.zeros((10, 3072), np.uint8), b"labels": ["x"] * 10}),
        pickle.dumps({b"data": np.zeros((10, 3072), np.uint8), b"labels": [10] * 10}),
    ],
)
def test_broken_batches_are_refused(tmp_path: Path, content: bytes) -> None:
    target = write_cifar(tmp_path, "cifar-10-batches-py")
    (target / "data_batch_1").write_bytes(content)
    with pytest.raises(DataError):
        read_small(tmp_path, "cifar10")


def test_truncated_binary_and_missing_files(tmp_path: Path) -> None:
    target = write_cifar(tmp_path, "cifar-10-batches-bin")
    file = target / "data_batch_2.bin"
    file.write_bytes(file.read_bytes()[: 3073 * 9])
    with raises("E-DATA-046", "27657", "30730"):
        read_small(tmp_path, "cifar10")
    with raises("E-DATA-045", "cifar100"):
        read_small(tmp_path, "cifar100")


@pytest.fixture
def small(tmp_path: Path) -> CifarImages:
    write_cifar(tmp_path / "cifar", "cifar-10-batches-bin")
    return read_small(tmp_path / "cifar", "cifar10")


def cifar_data(**keys: Any) -> Data:
    return Data(source="cifar10", path="unused", **keys)


def test_cifar_sets_by_index_lists(tmp_path: Path, small: CifarImages) -> None:
    sets = Sets(
        pretrain=write_list(tmp_path / "pretrain.npy", [3, 1, 2]),
        val=write_list(tmp_path / "val.json", [0, 10]),
        fewshot=(
            write_list(tmp_path / "few1.txt", [5, 4]),
            write_list(tmp_path / "few2.txt", [6]),
        ),
    )
    data = cifar_data(sets=sets)
    index = cifar_sets(small, data)
    assert rows_of(index, "pretrain") == [1, 2, 3]
    assert rows_of(index, "val") == [0, 10]
    assert rows_of(index, "probe") == [row for row in range(50) if row not in (0, 10)]
    assert rows_of(index, "test") == list(range(20))
    assert index.fewshot == (("train/00005", "train/00004"), ("train/00006",))
    for name, rows in index.sets.items():
        for row, image_id in zip(rows, index.ids_of(rows), strict=True):
            assert row == int(image_id.split("/")[1]) + (50 if name == "test" else 0)
    assert index.labels_N.tolist() == small.labels.tolist()


@pytest.mark.promise("R24")
def test_cifar_sets_by_profile_leave_val_out(tmp_path: Path, small: CifarImages) -> None:
    val = write_list(tmp_path / "val.npy", list(range(10)))
    index = cifar_sets(small, cifar_data(sets=Sets(val=val), imbalance_ratio=4.0))
    counts = sorted(index.class_counts("pretrain") or [])
    assert counts[-1] == 4 and counts[0] == 1
    assert min(rows_of(index, "pretrain")) >= 10
    assert "val" not in cifar_sets(small, cifar_data(imbalance_ratio=None)).sets


def test_lists_that_do_not_belong_together_are_refused(tmp_path: Path, small: CifarImages) -> None:
    one, two = (write_list(tmp_path / f"{n}.npy", [n, n + 1]) for n in (1, 2))
    with raises("E-DATA-042", "1"):
        cifar_sets(small, cifar_data(sets=Sets(pretrain=one, val=two)))
    with raises("E-DATA-042", "1"):
        cifar_sets(small, cifar_data(imbalance_ratio=None, sets=Sets(probe=one, val=two)))
    with raises("E-DATA-042", "2"):
        lists = Sets(pretrain=_other(tmp_path), probe=_other(tmp_path), val=two, fewshot=(two,))
        cifar_sets(small, cifar_data(sets=lists))


def _other(folder: Path) -> str:
    return write_list(folder / "other.npy", [7, 8])


def test_fewshot_and_pretraining_lists_stand_alone(tmp_path: Path, small: CifarImages) -> None:
    """As published for CIFAR-100: both name images that are not in the probe list."""
    probe, pretrain, fewshot = (
        write_list(tmp_path / f"{n}.npy", list(range(n, n + 9))) for n in (0, 4, 5)
    )
    lists = Sets(pretrain=pretrain, probe=probe, fewshot=(fewshot,))
    index = cifar_sets(small, cifar_data(sets=lists))
    assert rows_of(index, "pretrain") == list(range(4, 13))
    assert rows_of(index, "fewshot") == list(range(9, 14))  # the rest is in probe
    assert len(index.fewshot[0]) == 9 and any("5 few-shot images" in n for n in index.notes)
    inside = Sets(pretrain=pretrain, probe=probe, fewshot=(probe,))  # control
    assert "fewshot" not in cifar_sets(small, cifar_data(sets=inside)).sets


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of the real images and of the published lists: named, or beside the checkout."""
    named = [os.environ.get(name) for name in ("SDCLR_CIFAR10", "SDCLR_CIFAR10_SPLITS")]
    if all(named):
        return Path(str(named[0])), Path(str(named[1]))
    packed = REPO.parent / "shared" / "data"
    if not (packed / "cifar10" / "splits").is_dir():
        pytest.skip("no CIFAR-10: set SDCLR_CIFAR10 and SDCLR_CIFAR10_SPLITS")
    unpack = [sys.executable, str(packed / "unpack.py"), str(tmp_path)]
    subprocess.run(unpack, check=True, capture_output=True, timeout=300)
    return tmp_path, packed / "cifar10" / "splits"


@pytest.mark.cifar
def test_the_published_split_of_the_real_cifar10(published: tuple[Path, Path]) -> None:
    images, splits = published
    index = cifar_index(
        Data(
            source="cifar10",
            path=str(images),
            sets=Sets(
                pretrain=str(splits / "split1_D_i.npy"),
                probe=str(splits / "trainIdxList.npy"),
                val=str(splits / "valIdxList.npy"),
                fewshot=tuple(str(splits / f"split{n}_S_b.npy") for n in range(1, 6)),
            ),
        )
    )
    assert {name: len(rows) for name, rows in index.sets.items()} == {
        "pretrain": 11_165,
        "probe": 45_000,
        "val": 5_000,
        "test": 10_000,
    }
    expected = [348, 969, 125, 208, 1617, 75, 4500, 581, 2697, 45]
    assert index.class_counts("pretrain") == expected
    assert index.class_counts("test") == [1000] * 10
    assert [len(draw) for draw in index.fewshot] == [450] * 5
    assert index.class_names == CIFAR10_NAMES
