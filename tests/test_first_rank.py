"""What one rank cannot do, all ranks learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.cluster.ranks import fail_together, on_first_rank
from pipeline.errors import DataError, PipelineError, StorageError
from sdclr import collective
from tests.ranks import run_on_ranks

CPU = torch.device("cpu")


def tried(*, fails: bool) -> str:
    """What a rank sees: the result, or the error's kind."""

    def work() -> str:
        if fails:
            raise StorageError("E-STORAGE-999", "the file is broken", where="file")
        return "done"

    rank = collective.rank()
    try:
        return str(on_first_rank(work, rank=rank, device=CPU, where="run"))
    except PipelineError as error:
        return f"{type(error).__name__}: {error.what}"


def batches_until(step: int, error: Exception, of: tuple[int, ...]) -> str:
    """How far a rank gets whose work fails at a step, on some of the ranks."""
    steps = 0

    def work() -> int:
        if steps == step and collective.rank() in of:
            raise error
        return steps

    try:
        while steps < 5:
            assert fail_together(work, device=CPU) == steps
            steps += 1
    except Exception as caught:
        return f"{steps} {type(caught).__name__} {getattr(caught, 'id', '')}"
    return f"{steps}"


def on_two_ranks() -> dict[str, Any]:
    broken = DataError("E-DATA-999", "the sample is broken", where="shard")
    return {
        "good": tried(fails=False),
        "bad": tried(fails=True),
        "nowhere": batches_until(3, broken, of=()),
        "first": batches_until(3, broken, of=(0,)),
        "last": batches_until(2, broken, of=(1,)),
        "both": batches_until(1, broken, of=(0, 1)),
        "bug": batches_until(2, ZeroDivisionError(), of=(1,)),
    }


@pytest.mark.promise("R15", "R28")
def test_ranks_begin_and_stop_together() -> None:
    first, second = run_on_ranks(on_two_ranks)
    assert first["good"] == "done" and first["bad"] == "StorageError: the file is broken"
    assert second["good"] == "None" and second["bad"] == "TrainingError: rank 0 cannot begin"
    # And stop together, before the same step, with the same error.
    for key, told in (
        ("nowhere", "5"),
        ("first", "3 DataError E-DATA-999"),
        ("last", "2 DataError E-DATA-999"),
        ("both", "1 DataError E-DATA-999"),
    ):
        assert first[key] == second[key] == told
    assert first["bug"] == "2 ClusterError E-CLUSTER-012"
    assert second["bug"] == "2 ZeroDivisionError "


def test_one_rank_alone_has_its_own_result_and_error() -> None:
    assert tried(fails=False) == "done"
    assert tried(fails=True) == "StorageError: the file is broken"


def test_an_error_that_is_no_failure_told_in_words_is_left_to_ray() -> None:
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        on_first_rank(work, rank=0, device=CPU, where="run")
