"""What the first rank cannot do, all ranks learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.cluster.ranks import on_first_rank
from pipeline.errors import PipelineError, StorageError
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


def on_two_ranks() -> dict[str, Any]:
    return {"good": tried(fails=False), "bad": tried(fails=True)}


@pytest.mark.promise("R15")
def test_ranks_begin_together_or_not_at_all() -> None:
    first, second = run_on_ranks(on_two_ranks)
    assert first == {"good": "done", "bad": "StorageError: the file is broken"}
    assert second == {"good": "None", "bad": "TrainingError: rank 0 cannot begin"}


def test_one_rank_alone_has_its_own_result_and_error() -> None:
    assert tried(fails=False) == "done"
    assert tried(fails=True) == "StorageError: the file is broken"


def test_an_error_that_is_no_failure_told_in_words_is_left_to_ray() -> None:
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        on_first_rank(work, rank=0, device=CPU, where="run")
