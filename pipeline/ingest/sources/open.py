"""The one place that knows every image source: from the configuration to the index."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from pipeline.cluster.jobs import Tasks
from pipeline.config.data import Data
from pipeline.errors import ConfigError
from pipeline.ingest.sources.index import ImageIndex


def index_source(data: Data, tasks: Tasks) -> ImageIndex:
    """Open the configured source; order and splits depend on the configuration only.

    Args:
        data: the section of the configuration.
        tasks: what listing large places is shared out to.

    Raises:
        DataError: images or index files are missing, broken or do not fit each other.
        ConfigError: a key does not apply to this source.
        StorageError: the storage does not answer or denies access.
    """
    # Some of these import torch and scikit-learn.
    from pipeline.ingest.sources import (
        arrays,
        class_names,
        folder,
        parquet,
        path_list,
        splits,
        webdataset,
    )

    _check_keys(data)
    if data.source == "digits":
        index = arrays.digits_index(data)
    elif data.source == "folder":
        index = folder.folder_index(data, tasks)
    elif data.source == "list":
        index = path_list.list_index(data)
    elif data.source == "parquet":
        index = parquet.parquet_index(data, tasks)
    elif data.source == "webdataset":
        index = webdataset.webdataset_index(data, tasks)
    elif data.source == "cifar10" or data.source == "cifar100":
        index = arrays.cifar_index(data)
    else:
        assert_never(data.source)
    small = splits.notes_of(index.sets, index.labels_N, index.class_names)
    alike = class_names.note_of_look_alikes(index.class_names)
    return replace(index, notes=(*index.notes, *alike, *small))


_ONLY_FOR = {"image_root": ("list",), "label_column": ("parquet", "list")}
_CIFAR_SETS = ("pretrain", "probe", "val", "fewshot")
_SETS_OF = {"cifar10": _CIFAR_SETS, "cifar100": _CIFAR_SETS, "list": ("val", "test")}


def _check_keys(data: Data) -> None:
    for key, sources in _ONLY_FOR.items():
        if data.source not in sources and getattr(data, key):
            raise ConfigError(
                "E-CONFIG-022",
                f"this key does not apply to the source {data.source}",
                where=f"data.{key}",
                todo=f"remove the key; it is for {' and '.join(sources)}",
            )
    known = _SETS_OF.get(data.source, ())
    wrong = [name for name in data.sets.given if name not in known]
    if wrong:
        takes = f"takes files for {', '.join(known)}" if known else "takes no files for its sets"
        raise ConfigError(
            "E-CONFIG-220",
            f"the source {data.source} {takes}",
            where=", ".join(f"data.sets.{name}" for name in wrong),
            todo="remove it from data.sets",
        )
