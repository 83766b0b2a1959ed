"""The kinds of lines of RUN/metrics.jsonl, distinguished by `kind`.

    step      loss, learning rate, speed: every few steps of one method
    mask      kept fraction of each layer: at the start of each epoch, SDCLR only
    health    label-free measures: before training and every few epochs
    restore   where a restart resumed, and which checkpoints it skipped
    stage     start and end of a stage

Times are seconds: `time_s` since 1970, `wall_s` of the clock on the wall.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from pipeline.record.schema import Measured, Part

PARTS = ("wait", "views", "compute", "exchange", "checkpoint", "health", "rest")
"""Parts of the time of a step, see `StepRow`."""


class StepRow(Part):
    """One logged step; `loss` and `grad_norm` are None where a run diverged.

    Attributes:
        parts_s: part -> seconds of one step of rank 0, mean since the last line; empty in older
            records. Wait, checkpoint and health are the host's time. Views, compute and exchange
            are the device's, so on a GPU a host that waits may hide behind them. The rest is what
            is in none of them, never less than 0.
        flops_per_s: arithmetic of the network, of all workers; None where it is unknown.
        roofline_frac: the least time that the network takes on such devices, over the time that it
            took; None as above.
    """

    kind: Literal["step"] = "step"
    stage: str = "train"
    method: str
    seed: int
    epoch: int
    step: int
    num_steps: int
    loss: Measured
    lr: float
    temperature: float
    grad_norm: Measured
    images_per_s: float
    data_wait_frac: float
    parts_s: dict[str, float] = Field(default_factory=dict)
    flops_per_s: Measured = None
    roofline_frac: Measured = None
    time_s: float


class MaskRow(Part):
    """A refreshed mask; `kept_frac` by weight name."""

    kind: Literal["mask"] = "mask"
    stage: str = "train"
    method: str
    epoch: int
    step: int
    prune_ratio: float
    kept_frac: dict[str, float]
    time_s: float


class AlarmPart(Part):
    """One alarm, as in `sdclr.checkup.Alarm`."""

    name: str
    level: Literal["warning", "alarm"]
    text: str
    change: str

    @property
    def is_severe(self) -> bool:
        """Whether the network failed to learn; a warning may pass."""
        return self.level == "alarm"


class HealthRow(Part):
    """One look at the features of a method; measures without a value are None."""

    kind: Literal["health"] = "health"
    stage: str = "train"
    method: str
    seed: int
    epoch: int
    step: int
    num_images: int
    measures: dict[str, Measured]
    alarms: tuple[AlarmPart, ...]
    wall_s: float
    time_s: float

    @property
    def epochs_trained(self) -> int:
        """Whole epochs behind the measures; `step` 0 is before training."""
        return self.epoch + 1 if self.step else 0


Cause = Literal["start", "resume", "error", "worker", "node", "reclaimed", "resize", "controller"]
"""Why steps were not made for a while: a first start, a resume by hand, or what Ray Train lost."""


class RestoreRow(Part):
    """The step that a training began at, or resumed from; 0 is the start.

    Attributes:
        refused: checkpoints that could not be used, newest first, each with its reason.
        num_workers: how many train from here on; unknown in older records, as what follows.
        cause: of the pause before it.
        lost_s: wall time that it cost, steps that are made again included.
        lost_steps: how many those are.
    """

    kind: Literal["restore"] = "restore"
    stage: str = "train"
    method: str
    step: int
    refused: tuple[str, ...]
    num_workers: int | None = None
    cause: Cause | None = None
    lost_s: float = 0.0
    lost_steps: int = 0
    time_s: float


class StageRow(Part):
    """A stage that began or ended."""

    kind: Literal["stage"] = "stage"
    stage: str
    event: Literal["start", "end"]
    wall_s: float
    time_s: float


Row = StepRow | MaskRow | HealthRow | RestoreRow | StageRow
_Row = Annotated[Row, Field(discriminator="kind")]
ROW: TypeAdapter[Row] = TypeAdapter(_Row)
ROWS: TypeAdapter[list[Row]] = TypeAdapter(list[_Row])
