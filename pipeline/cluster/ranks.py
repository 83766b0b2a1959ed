"""Work whose failure on one rank releases the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from pipeline.errors import ClusterError, PipelineError, TrainingError
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


def fail_together(work: Callable[[], T], *, device: torch.device) -> T:
    """Run `work` and return its result, or fail on all ranks; every rank calls it.

    Raises:
        PipelineError: that of `work`, the same on every rank: of the first that failed.
        ClusterError: another rank failed with something else.
    """
    if not collective.is_distributed():
        return work()  # and a GPU is not waited for
    found, error = [], None
    try:
        found.append(work())
    except Exception as caught:
        error = caught
    failed = torch.tensor(error is not None, device=device)
    if not bool(collective.stack_over_ranks(failed).any()):
        return found[0]
    errors: list[PipelineError | None] = [error if isinstance(error, PipelineError) else None]
    if collective.is_distributed():
        errors *= collective.world_size()
        dist.all_gather_object(errors, errors[0])
    told = next((e for e in errors if e is not None), None)
    raise (
        told
        or error
        or ClusterError(
            "E-CLUSTER-012",
            "another rank has no more images",
            where="feed",
            todo="look at the first error of the run",
        )
    )
