"""A folder of photos: one folder per class, one per set and class, or any folders at all."""

from __future__ import annotations

import pyarrow as pa

from pipeline.cluster.jobs import Tasks
from pipeline.config.data import Data
from pipeline.ingest.sources import layouts, listing, splits
from pipeline.ingest.sources.class_names import classes_of
from pipeline.ingest.sources.index import ImageIndex

_WITHOUT_LABELS = "images without labels"


def folder_index(data: Data, tasks: Tasks) -> ImageIndex:
    """Index the images below `data.path`, sorted by name before any split.

    Classes and sets are those of `layouts.layout_of`; sets that the folders do not give, those of
    `splits.sets_of`. Unlabelled: pretrain is all there is.

    Raises:
        DataError: no such folder, no images in it, or folders of which some are sets or classes.
        ConfigError: a test set is asked of images without labels.
    """
    assert data.path is not None
    found = listing.list_files(data.path, listing.IMAGE_ENDINGS, tasks)
    layout = layouts.layout_of(found.names, data)
    names = found.names.filter(pa.array(layout.kept_N))
    for name in found.names.filter(pa.array(~layout.kept_N)).to_pylist():
        found.excluded.add(_WITHOUT_LABELS, name)
    class_names, labels_N = classes_of(layout.folders, len(names), are_folders=True)
    sets = splits.sets_of(labels_N, class_names, data, given=layout.given)
    notes = [*layout.notes]
    if class_names and found.other_folders:
        listed = ", ".join(found.other_folders)
        notes.append(f"folders of which no file is taken as an image: {listed}")
    return ImageIndex(
        source={"kind": "folder", "labelled": class_names is not None, "num_images": len(names)},
        ids=names,
        num_bytes_N=found.num_bytes_N[layout.kept_N],
        labels_N=labels_N,
        sets=splits.ordered(sets, seed=data.split_seed),
        class_names=class_names,
        root=data.path,
        left_out=found.excluded.left_out(),
        listing=found,
        rejects=found.rejects,
        notes=tuple(notes),
    )
