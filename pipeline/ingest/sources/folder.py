"""A folder of photos: one folder per class (labelled), or any folders at all (unlabelled).

Files ending in .jpg, .jpeg, .png or .webp count, in any case and at any depth; names that begin
with a dot, and files below such folders, do not.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cluster.jobs import Tasks
from pipeline.config.data import Data
from pipeline.errors import DataError
from pipeline.ingest.sources import listing, splits
from pipeline.ingest.sources.index import ImageIndex


def folder_index(data: Data, tasks: Tasks) -> ImageIndex:
    """Index the images below `data.path`, sorted by name before any split.

    Labelled (`data.labelled`, or guessed when two or more folders hold all images): the first
    folder of a name is its class. Sets: see `splits.sets_of`. Unlabelled: pretrain is all
    there is.

    Raises:
        DataError: no such folder, no images in it, or images beside class folders.
        ConfigError: a test set is asked of images without labels.
    """
    assert data.path is not None
    names, num_bytes_N = listing.list_files(data.path, listing.IMAGE_ENDINGS, tasks)
    folders = listing.first_folder(names)
    labelled = _is_labelled(folders, data.labelled, data.path)
    class_names, labels_N = splits.classes_of(folders if labelled else None, len(names))
    return ImageIndex(
        source={"kind": "folder", "labelled": labelled, "num_images": len(names)},
        ids=names,
        num_bytes_N=num_bytes_N,
        labels_N=labels_N,
        sets=splits.ordered(splits.sets_of(labels_N, class_names, data), seed=data.split_seed),
        class_names=class_names,
        root=data.path,
    )


def _is_labelled(folders: pa.LargeStringArray, wanted: bool | None, root: str) -> bool:
    if wanted is False:
        return False
    num_flat = folders.null_count
    num_folders = len(pc.unique(folders.drop_null()))
    if wanted is None and (num_flat == len(folders) or (num_flat == 0 and num_folders == 1)):
        return False
    if num_flat:
        raise DataError(
            "E-DATA-047",
            f"the layout is mixed: {num_flat} images beside {num_folders} class folders"
            if num_folders
            else "there are no class folders, so the images have no labels",
            where=root,
            todo="put every image into the folder of its class, or set data.labelled=false",
        )
    return True
