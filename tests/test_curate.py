"""Near-duplicates and the balanced choice against slow references; the whole stage."""

from __future__ import annotations

import csv
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cluster.connect import Cluster
from pipeline.cluster.jobs import RayTasks, Tasks, ThreadTasks
from pipeline.config.file import load_config
from pipeline.curate import levels, selection, stage
from pipeline.curate.levels import Levels, Tree
from pipeline.curate.selection import Cells, Near
from pipeline.curate.stage import curate
from pipeline.curate.words import check_words
from pipeline.embed.shards import Vectors, write_vectors
from pipeline.embed.wanted import wanted
from pipeline.model import build
from pipeline.model.source import ModelSource
from pipeline.record.context import RunContext
from pipeline.record.curation import PICTURES, Curation, CurationPictures
from pipeline.record.embedding import GIVEN_FILE, GivenWeights
from tests.refusals import raises
from tests.running import ROOT, started, wait_for
from tests.sources import image_bytes, ingested, rows_of, stored, write_files
from tests.test_embed import content, run_on

CLUSTER = Cluster("", True, 4, 0, "", largest_node_cpus=4)


def clouds(sizes: tuple[int, ...], *, spread: float = 0.05, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(sizes), 16, generator=generator)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    points = centres[labels] + spread * torch.randn(len(labels), 16, generator=generator)
    return torch.nn.functional.normalize(points, dim=1)


def tree_of(unit: torch.Tensor, folder: Path) -> Tree:
    return Levels(str(folder), ThreadTasks()).tree(unit, lambda *_: None)


def slow_rule(unit: torch.Tensor, rows: list[int], similarity: float) -> list[tuple[int, int]]:
    kept, gone = list[int](), []
    for row in rows:
        alike = [float(unit[row] @ unit[other]) for other in kept]
        if alike and max(alike) >= similarity:
            gone.append((row, kept[alike.index(max(alike))]))
        else:
            kept.append(row)
    return gone


def test_near_duplicates_equal_the_slow_rule_and_copies_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unit = clouds((20, 9, 4))
    unit[5], unit[30] = unit[3], unit[31]  # copies
    cells = tree_of(unit, tmp_path).cells
    slow = []
    for cell in range(len(cells.centres_KF)):
        rows = [r for r in range(len(unit)) if cells.labels_N[r] == cell]
        rows.sort(key=lambda r: -float((unit[r] - cells.centres_KF[cell]).square().sum()))
        slow += slow_rule(unit, rows, 0.9999)
    for chunk in (1024, 3):
        monkeypatch.setattr(selection, "_CHUNK_ROWS", chunk)
        found = selection.near_duplicates(unit, cells, 0.9999)
        assert sorted((near.row, near.other) for near in found) == sorted(slow)
    assert {frozenset(pair) for pair in slow} == {frozenset((3, 5)), frozenset((30, 31))}
    assert selection.near_duplicates(clouds((20, 9, 4)), cells, 0.9999) == []


def test_a_chain_does_not_drift_and_each_image_goes_for_one_that_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    angles = torch.arange(12) * 0.1
    unit = torch.stack([angles.cos(), angles.sin()], dim=1)
    cells = Cells(np.zeros(12, np.int64), -unit[:1])  # so the first is the outermost
    similarity = math.cos(0.15)  # of neighbours, and of no others
    for chunk in (1024, 4, 1):
        monkeypatch.setattr(selection, "_CHUNK_ROWS", chunk)
        found = [(n.row, n.other) for n in selection.near_duplicates(unit, cells, similarity)]
        assert found == [(row, row - 1) for row in range(1, 12, 2)]


@pytest.mark.parametrize("similarity", [0.5, 0.9, 0.95])
def test_where_most_are_alike_what_is_left_out_equals_the_slow_rule(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, similarity: float
) -> None:
    unit = clouds((60, 30, 20), spread=0.3)
    cells = tree_of(unit, tmp_path).cells
    slow = list[tuple[int, int]]()
    for cell in range(len(cells.centres_KF)):
        rows = np.flatnonzero(cells.labels_N == cell).tolist()
        rows.sort(key=lambda r: -float((unit[r] - cells.centres_KF[cell]).square().sum()))
        slow += slow_rule(unit, rows, similarity)
    assert len(slow) > 10
    for chunk in (1024, 5):
        monkeypatch.setattr(selection, "_CHUNK_ROWS", chunk)
        found = selection.near_duplicates(unit, cells, similarity)
        assert [(near.row, near.other) for near in found] == sorted(slow)
        assert {near.other for near in found}.isdisjoint(near.row for near in found)


def test_leaks_are_held_out_images_that_are_nearly_one_of_the_set(tmp_path: Path) -> None:
    unit = clouds((20, 9, 4))
    held = clouds((3,), seed=7)
    held[1] = unit[17]
    found = selection.across_sets(held, unit, tree_of(unit, tmp_path).cells, 0.999)
    assert found == [Near(1, 17, 1.0)]


@pytest.mark.parametrize(
    ("num", "sizes", "shares"),
    [(6, [5, 5, 5], [2, 2, 2]), (7, [1, 9, 9], [1, 3, 3]), (4, [9, 1, 0], [3, 1, 0]),
     (15, [5, 5, 5], [5, 5, 5]), (2, [3, 3, 3], [1, 1, 0])],
)  # fmt: skip
def test_shares_are_even_and_within_sizes(num: int, sizes: list[int], shares: list[int]) -> None:
    assert selection.even_shares(num, sizes) == shares


def test_the_choice_is_more_even_than_chance_and_of_the_right_number(tmp_path: Path) -> None:
    sizes = (400, 120, 40, 12)
    unit = clouds(sizes)
    labels = np.repeat(np.arange(4), sizes)
    tree = tree_of(unit, tmp_path)
    cells, levels = tree.cells, tree.levels
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
    check_words(10, 1.0, 10)
    with raises(error_id):
        check_words(keep, similarity, 10)


def with_vectors(run: RunContext, uri: str, vectors: dict[str, np.ndarray]) -> None:
    """Write vectors of the sets of a run, by weights of a file. No Ray: vectors that fit are read.

    Ids and labels are those of the shards.
    """
    if not Path(uri).exists():
        build.export_backbone(uri, build.new_network(load_config(None), "sdclr").backbone, {})
    GivenWeights(uri=uri).write(f"{run.run_uri}/{GIVEN_FILE}")
    for name, vectors_NF in vectors.items():
        one = wanted(run, ModelSource("checkpoint", uri), name, "float32")
        rows = rows_of(run.data_uri, run.manifest, name)
        ids = [id for part in rows for id in part.ids]
        labels = np.concatenate([part.labels for part in rows])
        num = len(vectors_NF)
        part = Vectors(np.arange(num), ids, vectors_NF, ["0" * 64] * num, labels)
        shard = write_vectors(one.folder, part, "float32")
        one.embedding.model_copy(update={"shards": (shard,)}).write(f"{one.folder}/embedding.json")


def curated(
    folder: Path,
    tasks: Tasks | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    **how: int,
) -> Curation:
    """Curate 12 images with two copies, and 3 test images, one of them nearly one of the set."""
    run = run_on(folder, pretrain=list(range(12)), test=[90, 91, 92])
    values = clouds((6, 4, 2), spread=0.5).numpy()
    values[4] = values[1]
    held = np.concatenate([values[7:8], -values[:2]])
    with_vectors(run, str(folder / "w.safetensors"), {"pretrain": values, "test": held})
    return curate(run, cluster=CLUSTER, progress=progress, tasks=tasks or ThreadTasks(), **how)


def lines_of(file: Path) -> list[list[str]]:
    with file.open(newline="") as opened:
        return list(csv.reader(opened))


def test_the_whole_stage_writes_what_it_found_and_again_the_same(tmp_path: Path) -> None:
    found = curated(tmp_path, keep=5)
    assert Curation.read(str(tmp_path / "run" / "curation.json")) == found
    assert (found.images, found.duplicates, found.kept) == (12, 1, 5)
    assert [(across.set, across.images, across.of) for across in found.across_sets] == [
        ("test", 1, 3)
    ]
    assert sum(found.leaf_images) == 12 and sum(found.leaf_kept) == 5
    pictures = CurationPictures.read(str(tmp_path / "run" / PICTURES))
    assert set(pictures.thumbs) == {"pretrain", "test"} and len(pictures.thumbs["test"]) == 1
    assert sum(map(len, pictures.leaves)) == 5 and len(pictures.thumbs["pretrain"]) >= 6
    folder = tmp_path / "run" / "curation"
    (_, pair), (_, across) = (
        lines_of(folder / "duplicates.csv"),
        lines_of(folder / "across_sets.csv"),
    )
    assert {pair[0], pair[1]} == {"pretrain/1", "pretrain/4"}
    assert across[:3] == ["test", "test/90", "pretrain/7"]
    heading, *selected = lines_of(folder / "selected.csv")
    assert heading == ["path", "label"] and len(selected) == 5 and pair[0] not in selected
    files = content(folder)
    (tmp_path / "run" / "curation.json").unlink()  # killed before its end
    (folder / "across_sets.csv").unlink()
    assert curated(tmp_path, keep=5) == found
    assert content(folder) == files
    assert curated(tmp_path, keep=6) != found


CHILD = """
import sys, time
from pathlib import Path
from pipeline.cluster.jobs import RayTasks, ThreadTasks
from pipeline.curate import levels
from tests.test_curate import curated
levels.IMAGES_PER_FILE = 4
tasks = ThreadTasks(1)
if sys.argv[2]:
    import ray
    workers = {"env_vars": {"PYTHONPATH": sys.argv[3]}}
    ray.init(address=sys.argv[2], log_to_driver=False, logging_level="ERROR", runtime_env=workers)
    tasks = RayTasks("levels")
def progress(what, done, total):
    while what == "clusters" and done:
        time.sleep(1)  # until it is killed: the levels above are never made
curated(Path(sys.argv[1]), tasks, progress, keep=5)
"""


def killed_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(levels, "IMAGES_PER_FILE", 4)
    tasks = RayTasks("levels") if address else ThreadTasks()
    unbroken = curated(tmp_path / "unbroken", tasks, keep=5)
    broken = tmp_path / "broken"
    command = [sys.executable, "-c", CHILD, str(broken), address, str(ROOT)]
    place = broken / "run" / "curation"
    with started(
        command, folder=tmp_path, environment={**os.environ, "PYTHONPATH": str(ROOT)}, log="log"
    ) as child:
        wait_for(lambda: any(place.rglob("cells-*")), child, log=tmp_path / "log")
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (broken / "run" / "curation.json").exists()
    assert not (place / "selected.csv").exists()
    kept = {file: file.stat().st_mtime_ns for file in place.rglob("*.safetensors")}
    torn = max(place.rglob("cells-*"))
    torn.write_bytes(torn.read_bytes()[:-3])  # what no write of ours leaves is made again
    resumed = curated(broken, tasks, keep=5)
    # A write that the signal cut off leaves its own file, which nothing reads.
    left = {name: data for name, data in content(place).items() if ".sdclr-tmp-" not in name}
    assert left == content(tmp_path / "unbroken" / "run" / "curation")
    assert resumed.model_copy(update={"data": unbroken.data, "weights": unbroken.weights}) == (
        unbroken
    )
    assert kept.keys() > {torn}
    assert all(file.stat().st_mtime_ns == kept[file] for file in kept if file != torn)
    assert torn.stat().st_mtime_ns != kept[torn]


def test_killed_and_resumed_equals_unbroken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_and_resumed(tmp_path, monkeypatch, "")


@pytest.mark.ray
@pytest.mark.slow
def test_killed_and_resumed_equals_unbroken_with_tasks_of_ray(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    killed_and_resumed(tmp_path, monkeypatch, ray.get_runtime_context().gcs_address)


def test_the_levels_follow_the_vectors_and_equal_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = clouds((200, 60, 20))
    whole = tree_of(unit, tmp_path / "a")
    monkeypatch.setattr(levels, "IMAGES_PER_FILE", 33)
    parts = tree_of(unit, tmp_path / "b")
    assert parts.cells.labels_N.tolist() == whole.cells.labels_N.tolist()
    assert [one.tolist() for one in parts.levels] == [one.tolist() for one in whole.levels]
    assert len(list((tmp_path / "b").glob("cells-*"))) == 9 and len(whole.levels) == 1
    other = tree_of(clouds((200, 60, 20), seed=1), tmp_path / "c")
    assert other.cells.labels_N.tolist() != whole.cells.labels_N.tolist()
    run = run_on(tmp_path / "d", pretrain=[1, 2])
    one = wanted(run, ModelSource("untrained"), "pretrain", "float32").embedding
    again = one.model_copy(update={"dtype": "float16"})
    assert levels.folder_of("r", one) == levels.folder_of("r", one) != levels.folder_of("r", again)


@pytest.mark.parametrize("labelled", [True, False])
def test_ingest_takes_the_selection_with_its_names_labels_and_bytes(
    tmp_path: Path, labelled: bool
) -> None:
    names = ["a,b.png", '"q".png', "=1+1.png", "é ü.png", "path.png", "-.png", "a;b|c.png", "#.png"]
    files = {f"{folder}/{name}": image_bytes(len(name) + 9 * i)
             for folder in ("one", "two, three") for i, name in enumerate(names)}  # fmt: skip
    place = tmp_path / "in"
    write_files(place, files)
    uri, manifest, _ = ingested("folder", place, tmp_path / "a", labelled=labelled)
    config = load_config(None, ["augment.crop_px=8"])
    run = RunContext(config, str(tmp_path / "run"), uri, manifest)
    with_vectors(
        run, str(tmp_path / "w.safetensors"), {"pretrain": clouds((10, 6), spread=0.5).numpy()}
    )
    found = curate(run, cluster=CLUSTER, progress=lambda *_: None, tasks=ThreadTasks(), keep=11)
    heading, *lines = lines_of(tmp_path / "run" / "curation" / "selected.csv")
    assert found.kept == len(lines) == 11 and heading == ["path", "label"][: 1 + labelled]
    selected = tmp_path / "run" / "curation" / "selected.csv"
    again, listed, _ = ingested("list", selected, tmp_path / "b", image_root=str(place))
    assert listed.rejects.total == 0 and listed.class_names == manifest.class_names
    assert stored(again, listed) == {line[0]: files[line[0]] for line in lines}
    if labelled:
        assert listed.class_names is not None
        classes = {
            id: listed.class_names[label]
            for part in rows_of(again, listed)
            for id, label in zip(part.ids, part.labels, strict=True)
        }
        assert classes == {path: path.partition("/")[0] for path, _ in lines} == dict(lines)


def test_examples_are_the_least_and_the_most_alike() -> None:
    few = [Near(row, 99, 0.99 + row % 7 / 1000) for row in range(20)]
    assert [near.similarity for near in stage._examples(few)] == sorted(n.similarity for n in few)
    many = [Near(row, 99, 0.99 + row % 30 / 10_000) for row in range(30)]
    assert [near.row for near in stage._examples(many)] == [*range(10), *range(20, 30)]
