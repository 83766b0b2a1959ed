"""A flipped bit on one rank is found at the next mask and named; equal ranks are left alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import ClusterError
from pipeline.train.worker import LASTING
from sdclr import collective
from sdclr.replicas import Comparison, ReplicaError, fingerprint
from sdclr.transfer import HostCopy
from tests.ranks import run_on_ranks
from tests.recipes import some_images, some_plan, some_trainer
from tests.simulated_gpu import DEVICE, SimulatedGPU

WEIGHT = "network.backbone.layer1.0.conv1.weight"


def flip(tensor: Tensor, place: int, bit: int) -> None:
    """Flip one bit of a float32 tensor in place."""
    bits = tensor.detach().view(torch.int32)
    index = torch.unravel_index(torch.tensor(place), bits.shape)
    bits[index] = bits[index] ^ torch.tensor(1 << bit if bit < 31 else -(2**31), dtype=torch.int32)


def test_every_flipped_bit_changes_the_fingerprint() -> None:
    tensor = torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last)
    whole = fingerprint(tensor)
    assert fingerprint(tensor.clone()) == fingerprint(tensor.contiguous()) == whole
    for place, bit in itertools.product(range(tensor.numel()), range(32)):
        flip(tensor, place, bit)
        assert fingerprint(tensor) != whole
        flip(tensor, place, bit)
    assert fingerprint(tensor) == whole


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float64])
def test_tensors_of_every_kind_have_one(dtype: torch.dtype) -> None:
    tensor = torch.ones(5).to(dtype)
    other = tensor.clone()
    other[3] = 0
    assert fingerprint(tensor) != fingerprint(other)
    swapped = other[[3, 0, 1, 2, 4]]
    assert fingerprint(swapped) != fingerprint(other)


def trained(bad_rank: int, tensor: str, method: str = "sdclr") -> dict[str, Any]:
    """Steps that a rank did, and the error that ended it, when one rank flips a bit in step 3."""
    plan = some_plan(48, num_ranks=collective.world_size())
    trainer = some_trainer(plan, method=method)
    feed = some_images(48).feed(plan, seed=0, rank=collective.rank())
    try:
        for report in trainer.run(feed):
            if report.step == 3 and collective.rank() == bad_rank:
                flip(trainer.model.get_parameter(tensor), 5, 3)
    except ReplicaError as error:
        return {"step": trainer.step, "error": str(error)}
    return {"step": trainer.step, "error": ""}


@pytest.mark.parametrize(
    ("num_ranks", "bad", "method", "named"),
    [
        (2, 1, "sdclr", "rank 1 of 2"),
        pytest.param(2, 1, "simclr", "rank 1 of 2", marks=pytest.mark.slow),
        (4, 0, "sdclr", "rank 0 of 4"),
    ],
)
def test_a_flipped_bit_is_named_with_its_rank_before_the_next_epoch(
    num_ranks: int, bad: int, method: str, named: str
) -> None:
    found = run_on_ranks(trained, bad, WEIGHT, method, num_ranks=num_ranks)
    assert {end["step"] for end in found} == {6}  # of an epoch, on every rank
    assert all(named in end["error"] and "network." in end["error"] for end in found)
    assert all(("or all others" in end["error"]) == (num_ranks == 2) for end in found)


def test_ranks_that_stay_equal_train_to_the_end() -> None:
    assert run_on_ranks(trained, -1, WEIGHT) == [{"step": 18, "error": ""}] * 2


def test_a_comparison_on_a_gpu_waits_for_nothing_before_it_is_read() -> None:
    with SimulatedGPU() as gpu:
        trainer = some_trainer(some_plan(), device="cuda:0")
        gpu.forget()
        comparison = Comparison(trainer.model, with_statistics=True)
        assert not gpu.waits and gpu.num_launches > 0
        HostCopy(torch.ones(1, device=DEVICE))  # as of the next step
        comparison.refuse()
        assert not gpu.waits


def test_such_an_error_restarts_the_workers() -> None:
    assert not issubclass(ClusterError, LASTING) and not issubclass(ReplicaError, LASTING)
