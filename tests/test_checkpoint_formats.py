"""Checkpoints written by older versions of the program load, and the training goes on from them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.model import checkpoint
from sdclr import Network, Trainer, restore
from sdclr.prune import PruneRule
from tests.recipes import RECIPE, some_images, some_plan
from tests.refusals import raises

# Version 1: written by `checkpoint.save(folder, capture(tiny_trainer()), config_hash=HASH)` after
# 7 of 15 steps. A release that changes the format adds a folder and keeps the ones before it.
FIXTURES = Path(__file__).parent / "fixtures"
HASH = "c0ffee"
DIGEST_V1 = "3613b36205aedd4b091d922275c1f2f404e76f0b87cb028f9cc0abdf3f1361b5"
NEXT_LOSSES_V1 = [5.197473, 3.560147, 4.423087]


def tiny_trainer() -> Trainer:
    """A network of 200 weights: fixtures stay small."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        head = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    rule = PruneRule(prune_ratio=0.5)
    recipe = RECIPE.__class__(**{**vars(RECIPE), "prune": rule})
    return Trainer(Network(backbone, head), recipe, steps_per_epoch=some_plan().num_steps)


def digest(tensors: dict[str, torch.Tensor]) -> str:
    parts = [n.encode() + t.numpy().tobytes() for n, t in sorted(tensors.items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.promise("R8")
def test_a_checkpoint_of_version_1_loads_and_training_goes_on() -> None:
    found = checkpoint.latest(str(FIXTURES / "checkpoint-v1"), config_hash=HASH)
    assert found.state is not None and found.refused == []
    assert found.state.numbers["step"] == 7 and digest(found.state.tensors) == DIGEST_V1
    trainer = tiny_trainer()
    restore(trainer, found.state)
    losses = [report.loss for report in trainer.run(some_images().feed(some_plan(), seed=0))]
    assert len(losses) == 8 and losses[:3] == pytest.approx(NEXT_LOSSES_V1, abs=1e-4)


@pytest.mark.promise("R8", control=True)
def test_another_step_of_the_same_run_has_other_losses() -> None:
    fresh = tiny_trainer()
    losses = [report.loss for report in fresh.run(some_images().feed(some_plan(), seed=0))]
    assert losses[7:10] == pytest.approx(NEXT_LOSSES_V1, abs=1e-4)
    assert losses[8:11] != pytest.approx(NEXT_LOSSES_V1, abs=1e-3)


@pytest.mark.promise("R8")
@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_version_that_this_program_does_not_know_is_refused_by_number(
    tmp_path: Path, version: object
) -> None:
    shutil.copytree(FIXTURES / "checkpoint-v1", tmp_path / "copy")
    (record,) = (tmp_path / "copy").glob("*/commit.json")
    content = json.loads(record.read_text()) | {"format_version": version}
    record.write_text(json.dumps(content))
    with raises("E-CHECKPOINT-007", repr(version), "1"):
        checkpoint.load(str(record.parent), config_hash=HASH)
