"""A folder of photos: one folder per class (labelled), or any folders at all (unlabelled).

Files ending in .jpg, .jpeg, .png or .webp count, in any case and at any depth; names that begin
with a dot, and files below such folders, do not.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipeline import storage
from pipeline.config.data import Data
from pipeline.errors import ConfigError, DataError
from pipeline.ingest import splits
from pipeline.ingest.sources import Entry, ImageIndex

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def folder_index(data: Data) -> ImageIndex:
    """The images below `data.path`, sorted by name before any split.

    Labelled (`data.labelled`, or guessed when two or more folders hold all images): the first
    folder of a name is its class; test and val = `num_test_per_class` and `num_val_per_class` of
    every class when set; probe = the rest; pretrain = the long tail of probe, or all of it when
    `imbalance_ratio` is None.
    Unlabelled: pretrain is all there is.

    Raises:
        DataError: no such folder, no images in it, or images beside class folders.
    """
    assert data.path is not None
    root = data.path
    sizes = _images(root)
    names = list(sizes)
    if not _is_labelled(names, data.labelled, root):
        for name in ("test", "val"):
            if getattr(data, f"num_{name}_per_class") is not None:
                raise ConfigError(
                    f"images without labels have no {name} set",
                    where=f"data.num_{name}_per_class",
                    todo="remove the key, or sort the images into one folder per class",
                )
        order = splits.row_order(np.arange(len(names)), set_name="pretrain", seed=data.split_seed)
        entries = tuple(Entry(names[row], None, names[row], sizes[names[row]]) for row in order)
        return ImageIndex(
            source={"kind": "folder", "labelled": False, "num_images": len(names)},
            sets={"pretrain": entries},
            class_names=None,
            root=root,
        )
    classes = sorted({name.split("/", 1)[0] for name in names})
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[name.split("/", 1)[0]] for name in names], np.int64)
    pool = np.arange(len(names))
    sets: dict[str, splits.Indices] = {}
    held_out: tuple[Literal["test", "val"], ...] = ("test", "val")
    for set_name in held_out:
        num_per_class = getattr(data, f"num_{set_name}_per_class")
        if num_per_class is not None:
            sets[set_name] = splits.hold_out(
                labels,
                num_per_class=num_per_class,
                class_names=classes,
                seed=data.split_seed,
                set_name=set_name,
                pool=pool,
            )
            pool = np.setdiff1d(pool, sets[set_name])
    sets["probe"] = pool
    sets["pretrain"] = splits.long_tail(labels, pool, num_classes=len(classes), data=data)
    return ImageIndex(
        source={"kind": "folder", "labelled": True, "num_images": len(names)},
        sets={
            name: tuple(
                Entry(names[row], int(labels[row]), names[row], sizes[names[row]])
                for row in splits.row_order(rows, set_name=name, seed=data.split_seed)
            )
            for name, rows in sorted(sets.items())
        },
        class_names=tuple(classes),
        root=root,
    )


def _images(root: str) -> dict[str, int]:
    if not storage.exists(root):
        raise DataError(
            "the folder of images does not exist or is empty",
            where=root,
            todo="set data.path to a folder with .jpg, .png or .webp files",
        )
    sizes = {
        name: size
        for name, size in storage.list_tree(root).items()
        if name.lower().endswith(_ENDINGS) and not f"/{name}".count("/.")
    }
    if not sizes:
        raise DataError(
            "the folder holds no images",
            where=root,
            todo="set data.path to a folder with .jpg, .png or .webp files",
        )
    for name in sizes:
        if not name.isprintable() or "\\" in name:
            raise DataError(
                "the name of an image is not plain text", where=repr(name), todo="rename the file"
            )
    return sizes


def _is_labelled(names: list[str], wanted: bool | None, root: str) -> bool:
    if wanted is False:
        return False
    num_flat = sum("/" not in name for name in names)
    folders = {name.split("/", 1)[0] for name in names if "/" in name}
    if wanted is None and (num_flat == len(names) or (num_flat == 0 and len(folders) == 1)):
        return False
    if num_flat:
        raise DataError(
            f"the layout is mixed: {num_flat} images beside {len(folders)} class folders"
            if folders
            else "there are no class folders, so the images have no labels",
            where=root,
            todo="put every image into the folder of its class, or set data.labelled=false",
        )
    return True
