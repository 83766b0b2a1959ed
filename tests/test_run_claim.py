"""A run's folder belongs to one training, and every worker sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import storage
from pipeline.errors import PipelineError, TrainingError
from pipeline.record.abandoned import claim_uri
from pipeline.train import claim
from sdclr import collective
from tests.ranks import run_on_ranks
from tests.refusals import raises

CPU = torch.device("cpu")


def a_run(folder: Path) -> tuple[str, str]:
    """URIs of a run and of a data set."""
    storage.write_bytes(str(folder / "data" / "manifest.json"), b"{}")
    return str(folder / "run"), str(folder / "data")


def test_the_workers_of_the_training_that_began_last_go_on(tmp_path: Path) -> None:
    run, data = a_run(tmp_path)
    first = claim.begin(run)
    claim.check(run, first, data_uri=data, device=CPU)
    claim.refuse_another(run, first)
    second = claim.begin(run)
    with raises("E-TRAIN-003"):
        claim.check(run, first, data_uri=data, device=CPU)
    with raises("E-STORAGE-005"):
        claim.refuse_another(run, first)
    claim.check(run, second, data_uri=data, device=CPU)
    claim.refuse_another(run, second)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff"])
def test_a_broken_claim_is_anothers(content: bytes, tmp_path: Path) -> None:
    run, data = a_run(tmp_path)
    token = claim.begin(run)
    storage.write_bytes(claim_uri(run), content)
    with pytest.raises(TrainingError):
        claim.check(run, token, data_uri=data, device=CPU)


def on_nodes_of_their_own(run: str, data: str, token: str) -> dict[str, Any]:
    """What each of two ranks is told when only the first sees the folders, and when both do."""
    blind = collective.rank() == 1
    places = ((run, data), (run + "-of-node" * blind, data), (run, data + "-of-node" * blind))
    told = []
    for run_uri, data_uri in places:
        try:
            claim.check(run_uri, token, data_uri=data_uri, device=CPU)
            told.append("fine")
        except PipelineError as error:
            told.append(f"{type(error).__name__}: {error.what}; {error.todo}")
    return {"told": told}


def test_a_folder_that_one_worker_does_not_see_is_refused_by_all(tmp_path: Path) -> None:
    run, data = a_run(tmp_path)
    first, second = run_on_ranks(on_nodes_of_their_own, run, data, claim.begin(run))
    shared = "to s3:// or to a folder that every node mounts"
    assert first == second
    assert first["told"] == [
        "fine",
        f"ConfigError: worker 1 of 2 does not see the run's folder; set run.root {shared}",
        f"ConfigError: worker 1 of 2 does not see the data set; set data.root {shared}",
    ]


def test_one_worker_that_sees_nothing_is_told_the_same(tmp_path: Path) -> None:
    run, data = a_run(tmp_path)
    with raises("E-CONFIG-033", "0", "1"):
        claim.check(run, "token", data_uri=data, device=CPU)
