"""Image collections of every kind in a folder, and ingest of them in this process."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.cluster.jobs import ThreadTasks
from pipeline.config import Config, Data
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.sets import parts_of
from pipeline.dataset.shards import ShardRows, read_shard
from pipeline.ingest.sources.index import ImageIndex
from pipeline.ingest.sources.open import index_source
from pipeline.ingest.stage import ingest


def image_bytes(seed: int, size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    width_px, height_px = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_tar(path: Path, entries: dict[str, bytes | tarfile.TarInfo], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in entries.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_table(path: Path, images: list[bytes | None], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = options.pop("labels", None)
    columns = {"image": pa.array(images, pa.binary())}
    if labels is not None:
        columns["label"] = pa.array(labels)
    pq.write_table(pa.table(columns), path, **options)
    return path


def index_of(source: str, path: Path | str, **keys: Any) -> ImageIndex:
    data = Data.model_validate(
        {"source": source, "path": str(path), "imbalance_ratio": None, **keys}
    )
    return index_source(data, ThreadTasks())


def names_of(index: ImageIndex, name: str = "pretrain") -> list[str]:
    return index.ids_of(index.sets[name])


def settings(source: str, path: Path | str, root: Path | str, **keys: Any) -> Config:
    limits = {"shard_bytes": 64 * 1024, **keys.pop("ingest", {})}
    data = {"source": source, "path": str(path), "root": str(root), "imbalance_ratio": None, **keys}
    return Config.model_validate({"data": data, "ingest": limits})


def ingested(
    source: str, path: Path | str, root: Path | str, **keys: Any
) -> tuple[str, Manifest, list[str]]:
    """URI, manifest and what was noted."""
    notes: list[str] = []
    config = settings(source, path, root, **keys)
    uri, manifest = ingest(config, lambda done, total: None, notes.append, tasks=ThreadTasks())
    return uri, manifest, notes


def rows_of(uri: str, manifest: Manifest, name: str = "pretrain") -> list[ShardRows]:
    """Return the rows of a set, by the shard that stores them."""
    return [
        rows if part.rows_n is None else rows.take(part.rows_n.tolist())
        for part in parts_of(uri, manifest, name)
        for rows in [read_shard(uri, part.shard)]
    ]


def stored(uri: str, manifest: Manifest, name: str = "pretrain") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for rows in rows_of(uri, manifest, name):
        found |= dict(zip(rows.ids, rows.images, strict=True))
    return found
