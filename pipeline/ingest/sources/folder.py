"""A folder of photos: one folder per class (labelled), or any folders at all (unlabelled).

The layout of ImageNet is known: `train/CLASS`, and `val/CLASS` or `test/CLASS` beside it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cluster.jobs import Tasks
from pipeline.config.data import Data
from pipeline.errors import DataError
from pipeline.ingest.sources import listing, splits
from pipeline.ingest.sources.index import ImageIndex
from pipeline.ingest.sources.listing import Listing

_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_PART_OF = {folder: part for part, folders in _PARTS.items() for folder in folders}
_DATES = re.compile(r"(19|20)\d\d([-_. ]?[01]?\d([-_. ]?[0-3]?\d)?)?")
_UNLABELLED = "set data.labelled=false if the folders are no classes"


class _Layout(NamedTuple):
    """Class folder of each image, null where there is none, and rows of the given sets."""

    folders: pa.LargeStringArray | None
    given: dict[str, splits.Indices]
    notes: tuple[str, ...] = ()


def folder_index(data: Data, tasks: Tasks) -> ImageIndex:
    """Index the images below `data.path`, sorted by name before any split.

    Labelled (`data.labelled`, or guessed when there are two or more folders, which then hold all
    images): the first folder of a name is its class; below `train`, `val` and `test` it is the
    second. Sets: those folders, else see `splits.sets_of`. Unlabelled: pretrain is all there is.

    Raises:
        DataError: no such folder, no images in it, or images beside class folders.
        ConfigError: a test set is asked of images without labels.
    """
    assert data.path is not None
    found = listing.list_files(data.path, listing.IMAGE_ENDINGS, tasks)
    layout = _layout(found, data)
    num_images = len(found.names)
    class_names, labels_N = splits.classes_of(layout.folders, num_images, are_folders=True)
    sets = splits.sets_of(labels_N, class_names, data, given=layout.given)
    skipped = set(found.other_folders) - set(_PART_OF) if class_names and not layout.given else ()
    notes = [*layout.notes]
    if skipped:
        notes.append(f"folders of which no file is taken as an image: {', '.join(sorted(skipped))}")
    return ImageIndex(
        source={"kind": "folder", "labelled": class_names is not None, "num_images": num_images},
        ids=found.names,
        num_bytes_N=found.num_bytes_N,
        labels_N=labels_N,
        sets=splits.ordered(sets, seed=data.split_seed),
        class_names=class_names,
        root=data.path,
        left_out=found.excluded.left_out(),
        listing=found,
        rejects=found.rejects,
        notes=tuple(notes),
    )


def _layout(found: Listing, data: Data) -> _Layout:
    assert data.path is not None
    first = listing.first_folder(found.names)
    parts = set(pc.unique(first.drop_null()).to_pylist())
    second = listing.first_folder(listing.below_first_folder(found.names))
    num_flat = first.null_count
    has_parts = "train" in {_PART_OF.get(name.lower()) for name in parts} and not num_flat
    has_parts = has_parts and all(name.lower() in _PART_OF for name in parts)
    if has_parts and data.labelled is not False and not second.null_count:
        return _given_parts(first, second, data)
    # Parts that hold images and no class folders: neither the parts nor anything else is a class.
    is_flat = has_parts and data.labelled is None and second.null_count == len(second)
    if is_flat or not _is_labelled(first, data.labelled, data.path):
        return _Layout(None, {}, _notes_unlabelled(parts, first, second, data, has_parts))
    if data.labelled is None and all(_DATES.fullmatch(name) for name in parts):
        shown = ", ".join(sorted(parts)[:3])
        return _Layout(first, {}, (f"folders such as {shown} are taken as classes; {_UNLABELLED}",))
    return _Layout(first, {})


def _notes_unlabelled(
    parts: set[str],
    first: pa.LargeStringArray,
    second: pa.LargeStringArray,
    data: Data,
    has_parts: bool,
) -> tuple[str, ...]:
    """Return what a folder that is read without labels may have been meant as."""
    assert data.path is not None
    path, listed = data.path.rstrip("/"), ", ".join(sorted(parts))
    if has_parts and len(parts) > 1:
        what = f"all of {listed} is pre-trained on; data.path={path}/train leaves the rest out"
        return (what,)
    num_inner = len(pc.unique(second.drop_null()))
    if data.labelled is None and not first.null_count + second.null_count and num_inner > 1:
        what = f"all images are below {listed}: data.path={path}/{listed} takes its {num_inner} "
        return (f"{what}folders as classes",)
    return ()


def _given_parts(first: pa.LargeStringArray, second: pa.LargeStringArray, data: Data) -> _Layout:
    """Return the sets of train, val and test folders; one of the last two alone is the test set."""
    names = np.array([_PART_OF[name.lower()] for name in pc.unique(first).to_pylist()])
    part_N = names[pc.index_in(first, pc.unique(first)).to_numpy(zero_copy_only=False)]
    rows = {str(part): np.flatnonzero(part_N == part) for part in np.unique(part_N)}
    given = {"pool": rows["train"]}
    roles = ["train is pre-trained and probed on"]
    if "test" in rows:
        given["test"] = rows["test"]
        roles.append("test is scored on")
        if "val" in rows:
            given["val"] = rows["val"]
            roles.append("val is tuned on")
    elif "val" in rows:
        given["test"] = rows["val"]
        roles.append("val is scored on as the set test")
    unused = [
        f"data.num_{name}_per_class"
        for name in ("test", "val")
        if name in given and getattr(data, f"num_{name}_per_class") is not None
    ]
    if unused:
        roles.append(f"{' and '.join(unused)} has no use")
    return _Layout(second, given, (", ".join(roles),))


def _is_labelled(folders: pa.LargeStringArray, wanted: bool | None, root: str) -> bool:
    if wanted is False:
        return False
    num_flat = folders.null_count
    num_folders = len(pc.unique(folders.drop_null()))
    if wanted is None and num_folders < 2:  # one class is none
        return False
    if num_flat:
        raise DataError(
            "E-DATA-047",
            f"the layout is mixed: images beside class folders, {num_flat} beside {num_folders}"
            if num_folders
            else "there are no class folders, so the images have no labels",
            where=root,
            todo="put every image into the folder of its class, or set data.labelled=false",
        )
    return True
