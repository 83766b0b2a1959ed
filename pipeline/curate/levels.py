"""The levels of the tree of clusters, as tasks whose results are kept: a killed stage resumes.

    RUN/curation/levels-KEY/centres.safetensors           centres of the cells
    RUN/curation/levels-KEY/cells-000000000.safetensors   cells of some images, by their first place
    RUN/curation/levels-KEY/level-1.safetensors           clusters of the cells, and so on

KEY is a hash of the vectors and of the numbers in `selection`, so what is there is what would be
made. A file is written whole or not at all; one that does not fit is made again.

Shapes: N images, F features, K cells, n images of one file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline import storage
from pipeline.cluster.jobs import Job, Result, Tasks
from pipeline.curate import selection
from pipeline.curate.selection import Cells, Ints
from pipeline.record.embedding import Embedding

IMAGES_PER_FILE = 20_000
_CENTRES = "centres.safetensors"


@dataclass(frozen=True)
class Tree:
    """The cells of all images, and for each cluster of one level its cluster in the next."""

    cells: Cells
    levels: list[Ints]


@dataclass(frozen=True)
class _Form:
    """Form of a file's tensors: `labels` in 0..num_clusters-1, `centres` of the clusters.

    Args:
        num_labels: labels; None = no labels.
        num_clusters: that the labels are of.
        dim: numbers of a centre; None = no centres.
    """

    num_labels: int | None
    num_clusters: int
    dim: int | None

    def fits(self, tensors: dict[str, Tensor]) -> bool:
        """Return whether a file has these tensors and no number that none of ours has."""
        wanted = {"labels": (self.num_labels,), "centres": (self.num_clusters, self.dim)}
        shapes = {name: shape for name, shape in wanted.items() if None not in shape}
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
            return False
        labels, centres = tensors.get("labels"), tensors.get("centres")
        if labels is not None and (
            labels.dtype != torch.int64
            or not bool(((labels >= 0) & (labels < self.num_clusters)).all())
        ):
            return False
        return centres is None or (
            centres.dtype == torch.float32 and bool(centres.isfinite().all())
        )


@dataclass(frozen=True)
class Levels:
    """Files of one tree.

    Args:
        folder: where they are, named by what they depend on.
        tasks: execution.
    """

    folder: str
    tasks: Tasks

    def tree(self, unit_NF: Tensor, progress: Callable[[int, int], None]) -> Tree:
        """Return the tree, made of the files that are there and of new ones.

        Args:
            unit_NF: all vectors, of length 1.
            progress: gets (images with a cell, images in all).
        """
        num_images = len(unit_NF)
        num_cells = selection.num_cells(num_images)
        sample_MF = unit_NF[selection.sample_rows(num_images)]
        cells = _Form(None, num_cells, unit_NF.shape[1])
        centres = self._made(_CENTRES, cells, _centres, {"num_cells": num_cells}, sample_MF)
        centres_KF = centres["centres"]
        ranges = [
            (start, min(start + IMAGES_PER_FILE, num_images))
            for start in range(0, num_images, IMAGES_PER_FILE)
        ]
        forms = {start: _Form(stop - start, num_cells, None) for start, stop in ranges}
        found = {start: self._find(_cells_name(start), form) for start, form in forms.items()}
        done = sum(stop - start for start, stop in ranges if found[start] is not None)
        progress(done, num_images)
        missing = [{"start": start, "stop": stop} for start, stop in ranges if found[start] is None]
        shared = (self.folder, unit_NF, centres_KF)
        for number, _ in self.tasks.map(_cells, missing, shared) if missing else ():
            item = missing[number]
            start = item["start"]
            found[start] = self._find(_cells_name(start), forms[start])
            done += item["stop"] - start
            progress(done, num_images)
        parts = [part["labels"] for part in found.values() if part is not None]
        labels_N = torch.cat(parts).numpy()
        levels: list[Ints] = []
        points_KF = centres_KF
        while selection.has_level_above(points_KF, len(levels)):
            name = f"level-{len(levels) + 1}.safetensors"
            num_above = selection.num_above(len(points_KF))
            form = _Form(len(points_KF), num_above, unit_NF.shape[1])
            above = self._made(name, form, _level, {}, points_KF)
            levels.append(above["labels"].numpy())
            points_KF = above["centres"]
        return Tree(Cells(labels_N, centres_KF), levels)

    def _made(
        self, name: str, form: _Form, job: Job, item: dict[str, int], points: Tensor
    ) -> dict[str, Tensor]:
        """Return the tensors of a file, made by one task if it is not there."""
        found = self._find(name, form)
        if found is None:
            list(self.tasks.map(job, [item], (self.folder, name, points)))
            found = self._find(name, form)
        assert found is not None
        return found

    def _find(self, name: str, form: _Form) -> dict[str, Tensor] | None:
        """Return a file's tensors, None where it is missing, torn, or of another form."""
        uri = storage.join(self.folder, name)
        if not storage.exists(uri):
            return None
        try:
            tensors = load(storage.read_bytes(uri))
        except SafetensorError:
            return None
        return tensors if form.fits(tensors) else None


def folder_of(run_uri: str, embedding: Embedding) -> str:
    """Return the folder of the levels of some vectors."""
    shards = [(shard.first_row, shard.sha256) for shard in embedding.shards]
    text = storage.to_json([shards, embedding.dtype, selection.RULE])
    key = hashlib.sha256(text).hexdigest()[:8]
    return storage.join(run_uri, "curation", f"levels-{key}")


def _cells_name(start: int) -> str:
    return f"cells-{start:09d}.safetensors"


def _centres(item: dict[str, int], shared: tuple[str, str, Tensor]) -> Result:
    """Write the centres of the cells of a sample; a job."""
    folder, name, sample_MF = shared
    centres_KF = selection.cell_centres(sample_MF, item["num_cells"])
    return _written(folder, name, {"centres": centres_KF})


def _cells(item: dict[str, int], shared: tuple[str, Tensor, Tensor]) -> Result:
    """Write the cells of some images; a job."""
    folder, unit_NF, centres_KF = shared
    labels_n = selection.nearest(unit_NF[item["start"] : item["stop"]], centres_KF)
    return _written(folder, _cells_name(item["start"]), {"labels": torch.from_numpy(labels_n)})


def _level(item: dict[str, int], shared: tuple[str, str, Tensor]) -> Result:
    """Write the clusters of the centres of the level below; a job."""
    folder, name, points_KF = shared
    labels_K, centres_LF = selection.level_above(points_KF)
    tensors = {"labels": torch.from_numpy(labels_K), "centres": centres_LF}
    return _written(folder, name, tensors)


def _written(folder: str, name: str, tensors: dict[str, Tensor]) -> Result:
    data = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    storage.write_bytes(storage.join(folder, name), data)
    return Result()
