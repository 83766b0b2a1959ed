"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the published files, pickled or binary.

The pickled layout is read with an unpickler that admits numpy arrays and plain containers and
nothing else, so that a file from a stranger cannot run code.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline import storage
from pipeline.errors import DataError

Kind = Literal["cifar10", "cifar100"]

NUM_TRAIN, NUM_TEST = 50_000, 10_000
SIDE_PX = 32
_IMAGE_BYTES = 3 * SIDE_PX * SIDE_PX

CIFAR10_NAMES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())

# MD5 of the published pickled files.
_PUBLISHED = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}


@dataclass(frozen=True)
class CifarImages:
    """Training images, then test images.

    Attributes:
        pixels: (N, 32, 32, 3) uint8.
        labels: (N,) int64.
        num_train: the first so many are training images.
        class_names: by class index.
        layout: "pickled" or "binary".
        published: whether every file is byte-identical to the published one; None when binary
            (no sums are published for that layout).
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    num_train: int
    class_names: tuple[str, ...]
    layout: Literal["pickled", "binary"]
    published: bool | None


@dataclass(frozen=True)
class _Layout:
    folder: str
    train: tuple[str, ...]
    test: str
    label_names: str
    binary: bool


_LAYOUTS: dict[Kind, tuple[_Layout, ...]] = {
    "cifar10": (
        _Layout(
            "cifar-10-batches-py",
            tuple(f"data_batch_{part}" for part in range(1, 6)),
            "test_batch",
            "batches.meta",
            False,
        ),
        _Layout(
            "cifar-10-batches-bin",
            tuple(f"data_batch_{part}.bin" for part in range(1, 6)),
            "test_batch.bin",
            "batches.meta.txt",
            True,
        ),
    ),
    "cifar100": (
        _Layout("cifar-100-python", ("train",), "test", "meta", False),
        _Layout("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", True),
    ),
}


def read_cifar(
    path: str, kind: Kind, *, num_train: int = NUM_TRAIN, num_test: int = NUM_TEST
) -> CifarImages:
    """Read all images of a CIFAR folder.

    Args:
        path: URI of the folder with the files, or of the folder that contains it.
        kind: which of the two data sets; CIFAR-100 labels are the 100 fine ones.
        num_train: training images expected in all files together.
        num_test: test images expected.

    Raises:
        DataError: no such files, or a file of another size or content than published.
    """
    layout, folder = _find(path, kind)
    pixels, labels, published = [], [], True
    parts = [(name, num_train // len(layout.train)) for name in layout.train]
    for name, num_images in [*parts, (layout.test, num_test)]:
        uri = storage.join(folder, name)
        content = storage.read_bytes(uri)
        read = _read_binary if layout.binary else _read_pickled
        part_pixels, part_labels = read(content, kind, num_images, uri)
        pixels.append(part_pixels.reshape(-1, 3, SIDE_PX, SIDE_PX).transpose(0, 2, 3, 1))
        labels.append(part_labels.astype(np.int64))
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        published = published and digest == _PUBLISHED.get(name)
    names = CIFAR10_NAMES if kind == "cifar10" else _cifar100_names(folder, layout)
    all_labels = np.concatenate(labels)
    if all_labels.min() < 0 or all_labels.max() >= len(names):
        raise _broken(f"labels reach {all_labels.max()}, there are {len(names)} classes", folder)
    return CifarImages(
        pixels=np.concatenate(pixels),
        labels=all_labels,
        num_train=num_train,
        class_names=names,
        layout="binary" if layout.binary else "pickled",
        published=None if layout.binary else published,
    )


def has_cifar(path: str, kind: Kind) -> bool:
    """Return whether `read_cifar` would find files of this kind at `path`."""
    return _look(path, kind) is not None


def _look(path: str, kind: Kind) -> tuple[_Layout, str] | None:
    for layout in _LAYOUTS[kind]:
        for folder in (storage.join(path, layout.folder), path):
            if storage.exists(storage.join(folder, layout.train[0])):
                return layout, folder
    return None


def _find(path: str, kind: Kind) -> tuple[_Layout, str]:
    found = _look(path, kind)
    if found is not None:
        return found
    names = " or ".join(layout.folder for layout in _LAYOUTS[kind])
    raise DataError(
        "E-DATA-045",
        f"there are no {kind} files ({names})",
        where=path,
        todo="set data.path to the folder that holds them, or data.download=true to fetch them",
    )


def _read_binary(
    content: bytes, kind: Kind, num_images: int, uri: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer]]:
    label_bytes = 1 if kind == "cifar10" else 2  # CIFAR-100: coarse label, then fine label
    record_bytes = label_bytes + _IMAGE_BYTES
    if len(content) != num_images * record_bytes:
        what = f"the file has {len(content)} bytes, {num_images * record_bytes} expected"
        raise _broken(what, uri)
    records = np.frombuffer(content, np.uint8).reshape(num_images, record_bytes)
    return records[:, label_bytes:], records[:, label_bytes - 1]


def _read_pickled(
    content: bytes, kind: Kind, num_images: int, uri: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer]]:
    batch = _unpickle(content, uri)
    pixels = batch.get(b"data")
    labels = batch.get(b"labels" if kind == "cifar10" else b"fine_labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise _broken("the batch holds no uint8 pixels", uri)
    if pixels.shape != (num_images, _IMAGE_BYTES):
        what = f"the pixels have shape {pixels.shape}, ({num_images}, {_IMAGE_BYTES}) expected"
        raise _broken(what, uri)
    if not isinstance(labels, list) or len(labels) != num_images:
        raise _broken(f"the batch does not hold {num_images} labels", uri)
    if not all(isinstance(label, int) for label in labels):
        raise _broken("a label is not an integer", uri)
    return pixels, np.array(labels)


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler for the parts of a numpy array; every other name is refused."""

    _ADMITTED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self._ADMITTED:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}")
        # NumPy 2 moved its core; the old name still works but warns.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(content: bytes, uri: str) -> dict[object, object]:
    try:
        batch = _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    except MemoryError:
        raise
    except Exception as error:  # a broken pickle raises nearly everything
        raise _broken(f"the file is refused: {str(error)[:200]}", uri) from error
    if not isinstance(batch, dict):
        raise _broken("the file does not hold a table", uri)
    return batch


def _cifar100_names(folder: str, layout: _Layout) -> tuple[str, ...]:
    uri = storage.join(folder, layout.label_names)
    content = storage.read_bytes(uri)
    if layout.binary:
        names = content.decode("ascii", "replace").split()
    else:
        listed = _unpickle(content, uri).get(b"fine_label_names")
        listed = listed if isinstance(listed, list) else []
        names = [name.decode("ascii", "replace") for name in listed if isinstance(name, bytes)]
    if len(names) != 100:
        raise _broken(f"{len(names)} class names found, 100 expected", uri)
    return tuple(names)


def _broken(what: str, uri: str) -> DataError:
    return DataError("E-DATA-046", what, where=uri, todo="fetch the published files again")
