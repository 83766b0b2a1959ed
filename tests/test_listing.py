"""Listing in parts: complete and disjoint on every storage, shared out when there is much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import storage
from pipeline.cluster.jobs import Job, Result, ThreadTasks
from pipeline.ingest.sources import listing
from pipeline.storage.scan import ScanPart
from tests.loopback_s3 import LoopbackS3

FLAT = [f"{n:05d}.jpg" for n in range(0, 30_000, 397)]
MIXED = ["é.png", "z/\U0001f600.png", "A.png", "a/b/c.png", "a/b.png", "a.png", "a/b/d/e.png"]
MIXED += ["deep/" * depth + "x.png" for depth in range(1, 9)]


def put(root: str, names: Sequence[str]) -> None:
    for name in names:
        storage.write_bytes(storage.join(root, name), name.encode())


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        s3: LoopbackS3 = request.getfixturevalue("s3")
        s3.page_keys = 7
        put("s3://bucket/in-other-place", ["x.jpg"])
        return "s3://bucket/in"
    return str(tmp_path)


class Counting(ThreadTasks):
    """Counts what is shared out."""

    def __init__(self) -> None:
        super().__init__(4)
        self.rounds: list[int] = []

    def map(
        self, job: Job, items: Sequence[dict[str, Any]], shared: Any = None
    ) -> Iterator[tuple[int, Result]]:
        self.rounds.append(len(items))
        return super().map(job, items, shared)


@pytest.mark.parametrize("names", [FLAT, MIXED, [*FLAT[:40], *MIXED]])
@pytest.mark.parametrize("max_names", [1, 5, 1000])
def test_parts_are_complete_and_disjoint(root: str, names: list[str], max_names: int) -> None:
    names = names[:60] if max_names == 1 else names
    put(root, names)
    parts, found = [ScanPart()], dict[str, int]()
    while parts:
        page = storage.scan(root, parts.pop(), max_names=max_names)
        assert not found.keys() & set(page.names)
        found |= dict(zip(page.names, page.sizes, strict=True))
        parts += page.rest
    assert found == {name: len(name.encode()) for name in names}


def test_many_names_are_shared_out_and_come_sorted(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_NAMES_PER_TASK", 20)
    names = [*FLAT, *MIXED, "notes.txt", ".hidden/x.png"]
    put(root, names)
    tasks = Counting()
    listed = listing.list_files(root, listing.IMAGE_ENDINGS, tasks)
    found, sizes = listed.names, listed.num_bytes_N
    assert found.to_pylist() == sorted([*FLAT, *MIXED], key=str.encode)
    np.testing.assert_array_equal(sizes, [len(n.encode()) for n in found.to_pylist()])
    if root.startswith("s3://"):  # a flat prefix has no folders to cut it at: cut all the same
        assert max(tasks.rounds) > 3
    few = Counting()
    monkeypatch.setattr(listing, "_NAMES_PER_TASK", 10_000)
    listing.list_files(root, listing.IMAGE_ENDINGS, few)
    assert few.rounds == []


def test_first_folders() -> None:
    names = listing.as_strings(["a/b.png", "c.png", "é/x/y.png"])
    assert listing.first_folder(names).to_pylist() == ["a", None, "é"]
