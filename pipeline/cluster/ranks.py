"""Work of the first rank alone; its failure releases the other ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from pipeline.errors import PipelineError, TrainingError
from sdclr import collective

T = TypeVar("T")


def on_first_rank(
    work: Callable[[], T], *, rank: int, device: torch.device, where: str
) -> T | None:
    """Run `work` on rank 0 and return its result, None elsewhere; every rank calls it.

    A worker whose process lives on while its training has ended breaks no connection: the other
    ranks would wait for its next step until their deadline.

    Raises:
        PipelineError: that of `work`, on rank 0.
        TrainingError: rank 0 has failed, on all others.
    """
    found, error = None, None
    if rank == 0:
        try:
            found = work()
        except PipelineError as caught:
            error = caught
    failed = torch.tensor(error is not None, device=device)
    if bool(collective.stack_over_ranks(failed)[0]):
        raise error or TrainingError(
            "E-TRAIN-001", "rank 0 cannot begin", where=where, todo="see its own error"
        )
    return found
