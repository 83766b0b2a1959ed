"""Two ingests in the same place at once: the manifest that stays fits the shards that stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.cluster.jobs import Job, Result, ThreadTasks
from pipeline.dataset.manifest import read_manifest, verify_shards
from pipeline.ingest.claim import CLAIM_NAME, Claim
from pipeline.ingest.plan import data_set_uri
from pipeline.ingest.stage import ingest
from pipeline.ingest.task import run_chunk
from tests import sources
from tests.loopback_s3 import LoopbackS3
from tests.refusals import raises


class Halfway(ThreadTasks):
    """Runs the shards of an ingest one by one; in the middle something else happens."""

    def __init__(self, happens: Callable[[], None]) -> None:
        super().__init__()
        self._happens = happens

    def map(
        self, job: Job, items: Sequence[dict[str, Any]], shared: Any = None
    ) -> Iterator[tuple[int, Result]]:
        for number, item in enumerate(items):
            if job is run_chunk and number == len(items) // 2:
                self._happens()
            yield number, job(item, shared)


class Died(BaseException):
    pass


def die() -> None:
    raise Died


def fill(folder: Path, first_seed: int) -> None:
    names = [f"{n:03d}.png" for n in range(24)]
    images = [sources.image_bytes(first_seed + n, (60, 40)) for n in range(24)]
    sources.write_files(folder, dict(zip(names, images, strict=True)))


@pytest.mark.promise("R27")
@pytest.mark.parametrize("other_dies", [False, True])
@pytest.mark.parametrize("source_changes", [False, True])
def test_the_manifest_fits_the_shards(
    tmp_path: Path, s3: LoopbackS3, other_dies: bool, source_changes: bool
) -> None:
    fill(tmp_path / "in", 0)
    root = "s3://bucket/data" if source_changes else tmp_path / "data"
    config = sources.settings("folder", tmp_path / "in", root, labelled=False)
    uri = data_set_uri(config)

    def other() -> None:
        """A second ingest of the same configuration begins, and is done, or dies."""
        if source_changes:
            fill(tmp_path / "in", 1000)
        try:
            ingest(config, progress, tasks=Halfway(die if other_dies else lambda: None))
        except Died:
            storage.write_bytes(storage.join(uri, CLAIM_NAME), b"of a process that was killed")

    with raises("E-DATA-090"):
        ingest(config, progress, tasks=Halfway(other))
    if other_dies:
        with raises("E-DATA-006"):
            read_manifest(uri)
    _, manifest = ingest(config, progress, tasks=ThreadTasks())
    check(tmp_path / "in", uri)
    assert manifest == read_manifest(uri)
    # Nothing is left of the claims.
    assert storage.list_names(uri) == ["manifest.json", "shards"]


@pytest.mark.promise("R27", control=True)
def test_control_without_claims_the_manifest_is_of_other_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Claim, "check", lambda self: None)
    fill(tmp_path / "in", 0)
    config = sources.settings("folder", tmp_path / "in", tmp_path / "data", labelled=False)

    def other() -> None:
        fill(tmp_path / "in", 1000)
        with pytest.raises(Died):
            ingest(config, progress, tasks=Halfway(die))

    with raises("E-DATA-016"):
        ingest(config, progress, tasks=Halfway(other))
        check(tmp_path / "in", data_set_uri(config))


def check(source: Path, uri: str) -> None:
    """The data set is complete, and is that of the source as it is now."""
    manifest = read_manifest(uri)
    verify_shards(uri, manifest)
    expected = {path.name: path.read_bytes() for path in source.iterdir()}
    assert sources.stored(uri, manifest) == expected


def progress(done: int, total: int) -> None:
    pass
