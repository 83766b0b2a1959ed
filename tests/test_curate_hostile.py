"""What the stage curate does with vectors and with files of clusters that no run of ours writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.cluster.jobs import ThreadTasks
from pipeline.config.file import load_config
from pipeline.curate import selection
from pipeline.curate.stage import curate
from pipeline.embed.shards import Vectors, write_vectors
from pipeline.embed.wanted import wanted
from pipeline.model.source import ModelSource
from pipeline.record.context import RunContext
from pipeline.record.curation import Curation
from tests.refusals import raises
from tests.sources import image_bytes, ingested, write_files
from tests.test_curate import CLUSTER, clouds, lines_of, with_vectors
from tests.test_embed import content, run_on

VALUES = clouds((6, 4, 2), spread=0.5).numpy()


def run_with(folder: Path, values: np.ndarray, held: np.ndarray | None = None) -> RunContext:
    """Return a run with vectors of its images, and of three test images."""
    run = run_on(folder, pretrain=list(range(len(values))), test=[90, 91, 92])
    held = -VALUES[:3] if held is None else held
    with_vectors(run, str(folder / "w.safetensors"), {"pretrain": values, "test": held})
    return run


def curated(run: RunContext, keep: int | None = None) -> Curation:
    return curate(run, cluster=CLUSTER, progress=lambda *_: None, tasks=ThreadTasks(), keep=keep)


@pytest.mark.parametrize(
    ("values", "held"),
    [
        (np.ones((12, 16), np.float32), None),
        (np.zeros((12, 16), np.float32), None),
        (np.full((5, 16), 0.1, np.float32), None),  # their mean is rounded
        (VALUES * np.float32(1e30), None),  # lengths overflow
        (VALUES * np.float32(1e-30), None),  # lengths are lost in rounding
        (VALUES * np.float32(3e38), None),  # the mean overflows
        (VALUES, VALUES[:3, :8]),
    ],
    ids=["equal", "zero", "equal, rounded", "large", "small", "largest", "another dim"],
)
def test_vectors_without_a_cosine_are_refused(
    tmp_path: Path, values: np.ndarray, held: np.ndarray | None
) -> None:
    run = run_with(tmp_path, values, held)
    with raises("E-DATA-850"):
        curated(run)
    assert not (tmp_path / "run" / "curation.json").exists()


def test_one_image_is_refused(tmp_path: Path) -> None:
    place = write_files(tmp_path / "in", {"a.png": image_bytes(0)})
    uri, manifest, _ = ingested("folder", place, tmp_path / "a", labelled=False)
    run = RunContext(load_config(None, ["augment.crop_px=8"]), str(tmp_path / "run"), uri, manifest)
    with_vectors(run, str(tmp_path / "w.safetensors"), {"pretrain": VALUES[:1]})
    with raises("E-DATA-850"):
        curated(run)


def test_a_vector_at_the_mean_is_like_no_other_and_others_have_length_1() -> None:
    balanced = np.concatenate([VALUES, -VALUES, np.zeros((2, 16), np.float32)])
    unit = selection.unit_vectors(balanced, np.zeros(16, np.float32))
    assert unit[-2:].eq(0).all()
    assert torch.linalg.vector_norm(unit[:-2], dim=1).sub(1).abs().max() < 1e-6
    one_large = balanced.copy()
    one_large[3] *= np.float32(1e30)
    with pytest.raises(ValueError, match="too large"):
        selection.unit_vectors(one_large, np.zeros(16, np.float32))


def test_files_of_vectors_of_different_lengths_are_refused(tmp_path: Path) -> None:
    run = run_with(tmp_path, VALUES)
    one = wanted(run, ModelSource("checkpoint", str(tmp_path / "w.safetensors")), "pretrain",
                 "float32")  # fmt: skip

    def file(rows: range, dim: int) -> object:
        num = len(rows)
        part = Vectors(np.array(rows), [f"pretrain/{row}" for row in rows],
                       VALUES[rows.start : rows.stop, :dim], ["0" * 64] * num,
                       np.zeros(num, np.int64))  # fmt: skip
        return write_vectors(one.folder, part, "float32")

    for dim, refused in ((16, False), (8, True)):
        shards = (file(range(6), 16), file(range(6, 12), dim))
        one.embedding.model_copy(update={"shards": shards}).write(f"{one.folder}/embedding.json")
        if refused:
            with raises("E-DATA-662"):
                curated(run)
        else:
            assert curated(run).kept == 6


def labels_changed(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def changed(tensors: dict[str, Tensor]) -> None:
        if "labels" in tensors:
            tensors["labels"] = change(tensors["labels"]).contiguous()

    return changed


def centres_changed(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def changed(tensors: dict[str, Tensor]) -> None:
        if "centres" in tensors:
            tensors["centres"] = change(tensors["centres"]).contiguous()

    return changed


@pytest.mark.parametrize(
    "change",
    [
        labels_changed(lambda labels: labels + 1000),
        labels_changed(lambda labels: labels - 100),
        labels_changed(lambda labels: labels.float()),
        labels_changed(lambda labels: labels[:, None]),
        centres_changed(lambda centres: centres[:1]),
        centres_changed(lambda centres: centres[:, :5]),
        centres_changed(lambda centres: centres * float("nan")),
        centres_changed(lambda centres: centres.double()),
        lambda tensors: tensors.update(other=torch.ones(1)),
        lambda tensors: (tensors.clear(), tensors.update(other=torch.ones(1))),
    ],
    ids=["too high", "negative", "of floats", "two axes", "fewer centres", "another dim", "nan",
         "doubles", "one more", "none"],
)  # fmt: skip
def test_files_of_clusters_of_another_form_are_made_again(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None]
) -> None:
    values = clouds((60, 40, 20, 8), spread=0.5).numpy()
    run = run_with(tmp_path, values)
    curated(run, keep=5)
    folder = tmp_path / "run" / "curation"
    whole = content(folder)
    files = sorted(folder.rglob("*.safetensors"))
    assert [file.name.partition("-")[0] for file in files] == ["cells", "centres.safetensors",
                                                               "level"]  # fmt: skip
    for file in files:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
    assert content(folder) != whole
    (folder / "selected.csv").unlink()
    assert curated(run, keep=5).kept == 5
    assert content(folder) == whole


def test_files_of_clusters_that_fit_are_read(tmp_path: Path) -> None:
    """The negative control: labels that could be ours are taken as they are."""
    run = run_with(tmp_path, VALUES)
    curated(run, keep=5)
    folder = tmp_path / "run" / "curation"
    (file,) = folder.rglob("cells-*")
    selected = lines_of(folder / "selected.csv")
    save_file({"labels": load_file(file)["labels"].flip(0).contiguous()}, file)
    curated(run, keep=5)
    assert lines_of(folder / "selected.csv") != selected
