"""The image sets of the published CIFAR-10-LT runs, in parts that travel.

FOLDER/data/SET-NUMBER.npz    images_NCHW uint8, labels_N int64; each part below 60 MiB
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.augment import smooth_images
from sdclr import ImageSet

PART_BYTES = 56 * 2**20
SIDE_PX, NUM_CLASSES = 32, 10
NAMES = ("pretrain", "test", "val", "probe")


@dataclass(frozen=True)
class LabelledSet:
    """Images and their classes; pre-training does not read the classes."""

    images: ImageSet
    labels_N: Tensor

    @property
    def class_counts(self) -> list[int]:
        """Images of each class."""
        return torch.bincount(self.labels_N, minlength=NUM_CLASSES).tolist()


def pack(cifar: str, lists: Path, folder: Path, *, split: int = 1) -> list[Path]:
    """Write the four sets in parts; return the files.

    Args:
        cifar: folder with CIFAR-10 in a published layout.
        lists: folder with splitK_D_i.npy, trainIdxList.npy and valIdxList.npy.
        folder: gets `data`.
        split: K.
    """
    from pipeline.ingest.sources.cifar_files import read_cifar

    found = read_cifar(cifar, "cifar10")
    num_train = len(found.labels) - 10_000
    rows = {
        "pretrain": _indices(lists / f"split{split}_D_i.npy"),
        "test": np.arange(num_train, len(found.labels)),
        "val": _indices(lists / "valIdxList.npy"),
        "probe": _indices(lists / "trainIdxList.npy"),
    }
    files = []
    for name, index_N in rows.items():
        pixels_NCHW = np.ascontiguousarray(found.pixels[index_N].transpose(0, 3, 1, 2))
        files += write_parts(folder, name, pixels_NCHW, found.labels[index_N])
    return files


def _indices(file: Path) -> NDArray[np.int64]:
    return np.load(file, allow_pickle=False).astype(np.int64).ravel()


def write_parts(
    folder: Path, name: str, images_NCHW: NDArray[np.uint8], labels_N: NDArray[np.int64]
) -> list[Path]:
    """Write a set in parts below `PART_BYTES`; return the files in order."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    most = max(1, PART_BYTES // int(images_NCHW[0].nbytes + 8))
    files = []
    for number, start in enumerate(range(0, len(images_NCHW), most)):
        files.append(folder / "data" / f"{name}-{number}.npz")
        part = slice(start, start + most)
        np.savez(files[-1], images_NCHW=images_NCHW[part], labels_N=labels_N[part])
    return files


def read_set(folder: Path, name: str) -> LabelledSet:
    """Return a set from its parts.

    Raises:
        FileNotFoundError: there is no part of it.
    """
    found = (folder / "data").glob(f"{name}-*.npz")
    files = sorted(found, key=lambda file: int(file.stem.partition("-")[2]))
    if not files:
        raise FileNotFoundError(f"no part of the set {name} in {folder / 'data'}: pack it first")
    parts = [np.load(file, allow_pickle=False) for file in files]
    images_NCHW = np.concatenate([part["images_NCHW"] for part in parts])
    labels_N = np.concatenate([part["labels_N"] for part in parts])
    return LabelledSet(ImageSet(torch.from_numpy(images_NCHW)), torch.from_numpy(labels_N))


def small_sets(num_pretrain: int = 64) -> dict[str, LabelledSet]:
    """Return made-up sets: smooth images, of which each class has a brightness of its own."""
    sizes = {"pretrain": num_pretrain, "test": 40, "val": 20, "probe": 60}
    found = {}
    for seed, (name, size) in enumerate(sizes.items()):
        labels_N = torch.arange(size) % NUM_CLASSES
        images_NCHW = smooth_images(size + 7 * seed, SIDE_PX)[-size:].float()
        images_NCHW = images_NCHW * 0.3 + 18.0 * labels_N.view(-1, 1, 1, 1)
        found[name] = LabelledSet(ImageSet(images_NCHW.to(torch.uint8)), labels_N)
    return found
