"""Report of a step of a trainer, and the errors that its figures turn out to be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sdclr.imageset import Batch
from sdclr.parts import StepParts
from sdclr.prune import StarvedLayerError, refuse_starved
from sdclr.replicas import Comparison, ReplicaError
from sdclr.transfer import HostCopy


class NonFiniteError(ArithmeticError):
    """The loss or the gradient is not finite; parameters and momentum are those before the step.

    The running statistics of BatchNorm have seen the batch: resume from a checkpoint.
    `sdclr.replay` keeps such a step in a file and repeats it.
    """

    def __init__(self, message: str, *, batch: Batch, loss: float, grad_norm: float) -> None:
        super().__init__(message)
        self.batch, self.loss, self.grad_norm = batch, loss, grad_norm


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Result of one step.

    Args:
        epoch: the epoch of the step, from 0.
        step: steps done so far in the run, this one included.
        figures: loss and gradient norm; those of a GPU may still be on their way.
        num_images: images of the step on all ranks.
        wait_s: time this rank waited for its batch.
        kept_frac: weight name -> fraction kept, when the mask was refreshed before this step.
        parts: of the step's time on this rank.
    """

    epoch: int
    step: int
    figures: HostCopy
    lr: float
    temperature: float
    num_images: int
    wait_s: float
    kept_frac: Mapping[str, float] | None
    parts: StepParts | None = None

    @property
    def loss(self) -> float:
        """Mean over all ranks; waits for a GPU that has not finished the step."""
        return float(self.figures.read()[0])

    @property
    def grad_norm(self) -> float:
        """L2 norm of the gradient that was applied; waits as `loss`."""
        return float(self.figures.read()[1])


BAD_STEP = (NonFiniteError, StarvedLayerError, ReplicaError)
"""What `refuse_bad` raises."""


def refuse_bad(report: StepReport, batch: Batch, comparison: Comparison | None) -> None:
    """Raise what a step turns out to be once its figures are read; waits for a GPU.

    Args:
        report: of the step.
        batch: of the step.
        comparison: of the ranks, if there was one before the step.

    Raises:
        NonFiniteError: as `Trainer.run`.
        StarvedLayerError: as `Trainer.run`.
        ReplicaError: as `Trainer.run`.
    """
    if comparison is not None:
        comparison.refuse()
    if report.kept_frac is not None:
        refuse_starved(report.kept_frac)
    if not (math.isfinite(report.loss) and math.isfinite(report.grad_norm)):
        raise NonFiniteError(
            f"step {report.step - 1} (epoch {report.epoch}): loss {report.loss}, gradient norm "
            f"{report.grad_norm}; stopped before the update: lower lr, or raise temperature",
            batch=batch,
            loss=report.loss,
            grad_norm=report.grad_norm,
        )
