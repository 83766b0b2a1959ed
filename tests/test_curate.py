"""Near-duplicates, leaks and the balanced choice against slow references; the whole stage."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cluster.connect import Cluster
from pipeline.config.file import load_config
from pipeline.curate import selection
from pipeline.curate.selection import Cells, Near
from pipeline.curate.stage import check_words, curate
from pipeline.embed.shards import Vectors, write_vectors
from pipeline.embed.wanted import wanted
from pipeline.model import build
from pipeline.model.source import ModelSource
from pipeline.record.curation import Curation
from pipeline.record.embedding import GIVEN_FILE, GivenWeights
from tests.refusals import raises
from tests.test_embed import run_on

CLUSTER = Cluster("", True, 4, 0, "", largest_node_cpus=4)


def clouds(sizes: tuple[int, ...], *, spread: float = 0.05, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(sizes), 16, generator=generator)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    points = centres[labels] + spread * torch.randn(len(labels), 16, generator=generator)
    return torch.nn.functional.normalize(points, dim=1)


def test_near_duplicates_equal_the_slow_rule_and_copies_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unit = clouds((20, 9, 4))
    unit[5], unit[30] = unit[3], unit[31]  # copies
    cells = selection.cells_of(unit)
    slow = []
    for cell in range(len(cells.centres_KF)):
        rows = [r for r in range(len(unit)) if cells.labels_N[r] == cell]
        rows.sort(key=lambda r: -float((unit[r] - cells.centres_KF[cell]).square().sum()))
        for place, row in enumerate(rows):
            alike = [float(unit[row] @ unit[other]) for other in rows[:place]]
            if alike and max(alike) >= 0.9999:
                slow.append((row, rows[alike.index(max(alike))]))
    for chunk in (1024, 3):
        monkeypatch.setattr(selection, "_CHUNK_ROWS", chunk)
        found = selection.near_duplicates(unit, cells, 0.9999)
        assert sorted((near.row, near.other) for near in found) == sorted(slow)
    assert {frozenset(pair) for pair in slow} == {frozenset((3, 5)), frozenset((30, 31))}
    assert selection.near_duplicates(clouds((20, 9, 4)), cells, 0.9999) == []


def test_leaks_are_held_out_images_that_are_nearly_one_of_the_set() -> None:
    unit = clouds((20, 9, 4))
    held = clouds((3,), seed=7)
    held[1] = unit[17]
    found = selection.leaks(held, unit, selection.cells_of(unit), 0.999)
    assert found == [Near(1, 17, 1.0)]


@pytest.mark.parametrize(
    ("num", "sizes", "shares"),
    [(6, [5, 5, 5], [2, 2, 2]), (7, [1, 9, 9], [1, 3, 3]), (4, [9, 1, 0], [3, 1, 0]),
     (15, [5, 5, 5], [5, 5, 5]), (2, [3, 3, 3], [1, 1, 0])],
)  # fmt: skip
def test_shares_are_even_and_within_sizes(num: int, sizes: list[int], shares: list[int]) -> None:
    assert selection.even_shares(num, sizes) == shares


def test_the_choice_is_more_even_than_chance_and_of_the_right_number() -> None:
    sizes = (400, 120, 40, 12)
    unit = clouds(sizes)
    labels = np.repeat(np.arange(4), sizes)
    cells = selection.cells_of(unit)
    levels = selection.tree_of(cells)
    assert len(cells.centres_KF) == 24 and len(levels) == 1
    kept = selection.balanced(cells.labels_N, levels, 100)
    assert len(set(kept.tolist())) == 100 and list(kept) == sorted(kept)
    assert kept.tolist() == selection.balanced(cells.labels_N, levels, 100).tolist()
    chosen = np.bincount(labels[kept], minlength=4)
    assert chosen.max() / chosen.min() < 0.3 * sizes[0] / sizes[3]
    everything = selection.balanced(cells.labels_N, levels, len(unit))
    assert everything.tolist() == list(range(len(unit)))


def test_features_that_all_point_one_way_are_told_apart_from_their_mean() -> None:
    features = 50 + clouds((6,), spread=1.0).numpy()
    mean = features.mean(axis=0)
    unit = selection.unit_vectors(features, mean)
    cells = Cells(np.zeros(6, np.int64), torch.zeros(1, 16))
    assert selection.near_duplicates(unit, cells, 0.99) == []
    from_origin = selection.unit_vectors(features, np.zeros_like(mean))
    assert len(selection.near_duplicates(from_origin, cells, 0.99)) == 5


@pytest.mark.parametrize(
    ("keep", "similarity", "error_id"),
    [(0, 0.9, "E-CONFIG-662"), (11, 0.9, "E-CONFIG-662"), (-1, 0.9, "E-CONFIG-662"),
     (5, 0.0, "E-CONFIG-661"), (5, 1.01, "E-CONFIG-661"), (5, float("nan"), "E-CONFIG-661")],
)  # fmt: skip
def test_numbers_that_no_selection_can_have_are_refused(
    keep: int, similarity: float, error_id: str
) -> None:
    check_words(10, 10, 1.0)
    with raises(error_id):
        check_words(10, keep, similarity)


def curated(folder: Path, **how: int) -> Curation:
    """Curate vectors that are there, of 12 images with two copies, and 3 test images, one a leak.

    No Ray: vectors that fit are read.
    """
    run = run_on(folder, pretrain=list(range(12)), test=[90, 91, 92])
    uri = str(folder / "w.safetensors")
    build.export_backbone(uri, build.new_network(load_config(None), "sdclr").backbone, {})
    GivenWeights(uri=uri).write(str(folder / "run" / GIVEN_FILE))
    values = clouds((6, 4, 2), spread=0.5).numpy()
    values[4] = values[1]
    held = np.concatenate([values[7:8], -values[:2]])
    for name, vectors_NF in (("pretrain", values), ("test", held)):
        one = wanted(run, ModelSource("checkpoint", uri), name, "float32")
        num = len(vectors_NF)
        ids = [f"{name}/{row}\n=1,2" for row in range(num)]
        vectors = Vectors(
            np.arange(num), ids, vectors_NF, ["0" * 64] * num, np.zeros(num, np.int64)
        )
        shard = write_vectors(one.folder, vectors, "float32")
        one.embedding.model_copy(update={"shards": (shard,)}).write(f"{one.folder}/embedding.json")
    return curate(run, cluster=CLUSTER, progress=lambda *_: None, **how)


def lines_of(file: Path) -> list[list[str]]:
    with file.open(newline="") as opened:
        return list(csv.reader(opened))


def test_the_whole_stage_writes_what_it_found_and_again_the_same(tmp_path: Path) -> None:
    found = curated(tmp_path, keep=5)
    assert Curation.read(str(tmp_path / "run" / "curation.json")) == found
    assert (found.images, found.duplicates, found.kept) == (12, 1, 5)
    assert [(leak.set, leak.images, leak.of) for leak in found.leaks] == [("test", 1, 3)]
    assert sum(found.leaf_images) == 12 and sum(found.leaf_kept) == 5
    folder = tmp_path / "run" / "curation"
    (_, pair), (_, leak) = lines_of(folder / "duplicates.csv"), lines_of(folder / "leaks.csv")
    assert {pair[0], pair[1]} == {"pretrain/1\n=1,2", "pretrain/4\n=1,2"}
    assert leak[:3] == ["test", "test/0\n=1,2", "pretrain/7\n=1,2"]
    heading, *selected = lines_of(folder / "selected.csv")
    assert heading == ["path", "label"] and len(selected) == 5 and pair[0] not in selected
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    (tmp_path / "run" / "curation.json").unlink()  # killed before its end
    (folder / "leaks.csv").unlink()
    assert curated(tmp_path, keep=5) == found
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    assert curated(tmp_path, keep=6) != found
