"""Sources that fit in memory: the scikit-learn digits of the demo, CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from pipeline import storage
from pipeline.config.data import Data
from pipeline.errors import DataError
from pipeline.ingest.sources import cifar_files, splits
from pipeline.ingest.sources.index import ImageIndex
from pipeline.ingest.sources.listing import as_strings
from pipeline.ingest.sources.splits import Indices

_DIGITS_NUM_TEST_PER_CLASS = 40


def digits_index(data: Data) -> ImageIndex:
    """Index the 1,797 digits of scikit-learn (Alpaydin and Kaynak 1998), 16 x 16 RGB.

    Test: `num_test_per_class` (40) of every class; val: `num_val_per_class` (none); probe: the
    rest; pretrain: a long-tailed part of probe.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = (digits.images.astype(np.int64) * 255 + 8) // 16  # 8 x 8, values 0..16 -> 0..255
    doubled = np.repeat(np.repeat(grey.astype(np.uint8), 2, axis=1), 2, axis=2)
    pixels = np.repeat(doubled[..., None], 3, axis=3)
    labels = digits.target.astype(np.int64)
    num_test = data.num_test_per_class
    num_test = _DIGITS_NUM_TEST_PER_CLASS if num_test is None else num_test
    class_names = tuple(str(digit) for digit in range(10))
    test = splits.hold_out(
        labels, num_per_class=num_test, class_names=class_names, seed=data.split_seed
    )
    probe = np.setdiff1d(np.arange(len(labels)), test)
    held_out = {"test": test}
    if data.num_val_per_class is not None:
        held_out["val"] = splits.hold_out(
            labels,
            num_per_class=data.num_val_per_class,
            class_names=class_names,
            seed=data.split_seed,
            set_name="val",
            pool=probe,
        )
        probe = np.setdiff1d(probe, held_out["val"])
    pretrain = splits.long_tail(labels, probe, num_classes=10, data=data)
    return _array_index(
        source={"kind": "digits", "num_images": len(labels)},
        ids=[f"digits/{row:04d}" for row in range(len(labels))],
        pixels=pixels,
        labels=labels,
        class_names=class_names,
        sets={"pretrain": pretrain, "probe": probe, **held_out},
        seed=data.split_seed,
    )


def cifar_index(data: Data) -> ImageIndex:
    """Index CIFAR-10 or CIFAR-100 with its test set; index lists count training images.

    pretrain: its list, else a long-tailed part of the training images outside val.
    probe: its list, else all training images outside val. val: its list, else
    `num_val_per_class` training images of every class, else none. fewshot: those images of its
    lists that are not in probe.
    With `download` and without `path` the files go to `downloads` below `data.root`.
    """
    kind: cifar_files.Kind = "cifar100" if data.source == "cifar100" else "cifar10"
    path = storage.join(data.root, "downloads") if data.path is None else data.path
    if data.download and not cifar_files.has_cifar(path, kind):
        _download(path, kind)
    return cifar_sets(cifar_files.read_cifar(path, kind), data)


def cifar_sets(images: cifar_files.CifarImages, data: Data) -> ImageIndex:
    """Return the sets of `cifar_index`, from images that were already read."""
    num_train, num_all = images.num_train, len(images.labels)

    def listed(name: str, uri: str | None) -> Indices | None:
        key = f"sets.{name}"
        return None if uri is None else splits.read_index(uri, key=key, num_images=num_train)

    val = listed("val", data.sets.val)
    pool = np.arange(num_train)
    if val is None and data.num_val_per_class is not None:
        val = splits.hold_out(
            images.labels,
            num_per_class=data.num_val_per_class,
            class_names=images.class_names,
            seed=data.split_seed,
            set_name="val",
            pool=pool,
        )
    if val is not None:
        pool = np.setdiff1d(pool, val)
    probe = listed("probe", data.sets.probe)
    probe = pool if probe is None else probe
    pretrain = listed("pretrain", data.sets.pretrain)
    if pretrain is None:
        num_classes = len(images.class_names)
        pretrain = splits.long_tail(images.labels, pool, num_classes=num_classes, data=data)
    sets = {"pretrain": pretrain, "probe": probe, "test": np.arange(num_train, num_all)}
    ids = [f"train/{row:05d}" for row in range(num_train)]
    ids += [f"test/{row:05d}" for row in range(num_all - num_train)]
    draws = [
        splits.read_index(uri, key="sets.fewshot", num_images=num_train)
        for uri in data.sets.fewshot
    ]
    outside = np.setdiff1d(np.concatenate(draws), probe) if draws else np.zeros(0, np.int64)
    notes: tuple[str, ...] = ()
    if len(outside):  # the published lists of CIFAR-100 are such
        sets["fewshot"] = outside
        notes = (f"{len(outside)} few-shot images are outside the probe set",)
    for name in ("pretrain", "probe", "fewshot"):
        if val is not None and name in sets:
            _refuse_overlap(name, sets[name], val)
    if val is not None:
        sets["val"] = val
    source = {
        "kind": data.source,
        "layout": images.layout,
        "published_files": images.published,
        "num_train": num_train,
        "num_test": num_all - num_train,
    }
    return _array_index(
        source=source,
        ids=ids,
        pixels=images.pixels,
        labels=images.labels,
        class_names=images.class_names,
        sets=sets,
        seed=data.split_seed,
        fewshot=tuple(tuple(ids[row] for row in rows) for rows in draws),
        notes=notes,
    )


def _array_index(
    *,
    source: Mapping[str, JsonValue],
    ids: Sequence[str],
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    class_names: tuple[str, ...],
    sets: Mapping[str, Indices],
    seed: int,
    fewshot: tuple[tuple[str, ...], ...] = (),
    notes: tuple[str, ...] = (),
) -> ImageIndex:
    return ImageIndex(
        source=source,
        ids=as_strings(list(ids)),
        num_bytes_N=np.full(len(ids), pixels[0].size, np.int64),
        labels_N=labels.astype(np.int32),
        sets=splits.ordered(sets, seed=seed),
        class_names=class_names,
        pixels=pixels,
        fewshot=fewshot,
        notes=notes,
    )


def _refuse_overlap(name: str, rows: Indices, val: Indices) -> None:
    num_common = len(np.intersect1d(rows, val))
    if num_common:
        raise DataError(
            "E-DATA-042",
            f"{num_common} images of val are also in {name}",
            where=f"data.sets.{name}, data.sets.val",
            todo="use index lists that belong together",
        )


def _download(path: str, kind: cifar_files.Kind) -> None:
    if "://" in path:
        what, todo = "download needs a local folder", "set data.path to a local folder"
        raise DataError("E-DATA-043", what, where="data.path", todo=todo)
    from torchvision.datasets import CIFAR10, CIFAR100

    try:
        (CIFAR10 if kind == "cifar10" else CIFAR100)(path, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            "E-DATA-044",
            f"the download of {kind} failed: {error}",
            where=path,
            todo="check the network, or put the files there yourself and set data.download=false",
        ) from error
