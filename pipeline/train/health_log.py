"""The health of the features during training: rows of metrics.jsonl, alarms, words for the console.

Only rank 0 looks; the other ranks wait for it at their next collective.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pipeline.config import Config
from pipeline.console import Console
from pipeline.record.lineage import earlier_checks, steps_before
from pipeline.record.metrics import read_rows
from pipeline.record.rows import AlarmPart, HealthRow
from pipeline.record.run import RunAlarm
from sdclr import Images, StepReport, Trainer
from sdclr.checkup import ADVISED_STEPS, Checkup, alarms, loss_alarm

_NUM_LOSSES = 20

NUM_IMAGES = 512
"""Images that are looked at; fewer when the set is smaller."""


class HealthLog:
    """Measures of one method, written as rows of kind "health".

    Args:
        config: the run's.
        method: the method with the features to measure.
        trainer: holds them.
        images: of the pre-training set; a fixed part of them is measured.
        run_uri: where the rows are that a resumed run continues, and the configuration, which
            names the run that this one started from.
    """

    def __init__(
        self, config: Config, method: str, trainer: Trainer, images: Images, *, run_uri: str
    ) -> None:
        self._config, self._method, self._trainer = config, method, trainer
        self._checkup = Checkup.of_images(
            images,
            num_images=NUM_IMAGES,
            crop_px=trainer.recipe.augment.crop_px,
        )
        num_images = len(self._checkup.images)
        before = [r for r in earlier_checks(run_uri, method) if r.num_images == num_images]
        self._steps_before = steps_before(before)
        earlier = [*before, *read_rows(run_uri, HealthRow, method=method)]
        self._history: list[Mapping[str, float | None]] = [row.measures for row in earlier]
        self._reports: deque[StepReport] = deque(maxlen=_NUM_LOSSES)

    def see(self, report: StepReport) -> None:
        """Take note of a step; every step counts."""
        self._reports.append(report)  # its loss may still be on its way from a GPU

    def is_due(self) -> bool:
        """Return whether the features are to be looked at between the last step and the next."""
        step = self._trainer.step
        epochs_done, rest = divmod(step, self._trainer.steps_per_epoch)
        is_last = step == self._trainer.num_steps
        return is_last or (rest == 0 and epochs_done % self._config.health.every_epochs == 0)

    def row(self, *, epoch: int) -> HealthRow:
        """Look now; return the row for metrics.jsonl."""
        start_s = time.monotonic()
        measures: dict[str, float | None] = {**self._checkup(self._trainer.model)}
        step = self._trainer.step
        # Before the first step masks are whole, also where another run had trained the weights.
        self._history.append(measures if step else measures | {"disagreement": None})
        found = alarms(self._history, num_steps=self._steps_before + step)
        stuck = loss_alarm(
            [report.loss for report in self._reports],
            temperature=self._reports[-1].temperature if self._reports else 1.0,
            num_images=self._config.train.global_batch,
            num_steps=step,
        )
        return HealthRow(
            method=self._method,
            seed=self._config.run.seed,
            epoch=epoch,
            step=step,
            num_images=len(self._checkup.images),
            measures=measures,
            alarms=tuple(AlarmPart(**asdict(alarm)) for alarm in [*found, stuck] if alarm),
            wall_s=time.monotonic() - start_s,
            time_s=time.time(),
        )


def last_alarms(config: Config, rows: Sequence[HealthRow]) -> tuple[RunAlarm, ...]:
    """Return the alarms of the last look at each method, with the keys to try next."""
    newest = {row.method: row for row in rows}
    return tuple(
        RunAlarm(method=method, words=_words(config, alarm, row.step), **alarm.model_dump())
        for method, row in newest.items()
        for alarm in row.alarms
    )


def _words(config: Config, alarm: AlarmPart, num_steps: int) -> tuple[str, ...]:
    """Return `section.key=value` that is likely to help against an alarm after so many steps."""
    ratio, name = config.sdclr.prune_ratio, alarm.name
    if name == "branches agree":
        return (f"sdclr.prune_ratio={(1 + ratio) / 2:.3g}",)
    if name == "branches unrelated":
        return (f"sdclr.prune_ratio={ratio / 2:.3g}",)
    if name == "falling rank":
        return ()  # it may pass
    if name == "not learned" and alarm.level == "warning" and num_steps > 0:
        epochs = math.ceil(config.train.epochs * ADVISED_STEPS / num_steps)
        return (f"train.epochs={epochs}",)
    return (f"train.lr_per_256={config.train.lr_per_256 / 4:.3g}",)


def show_measures(console: Console, rows: Sequence[HealthRow]) -> None:
    """Show the last measures of each method in one line."""
    for row in {row.method: row for row in rows}.values():
        known = {n: v for n, v in row.measures.items() if v is not None and math.isfinite(v)}
        shown = [
            f"{label} {form(known[name])}"
            for name, (label, form) in _SHOWN.items()
            if name in known
        ]
        console.stage("health", f"{row.method}: " + ", ".join(shown))


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return f"{value:.3g}"


_SHOWN = {
    "view_retrieval": ("view retrieval", _percent),
    "balance_few": ("in small clusters", _percent),
    "rankme": ("RankMe", _number),
    "disagreement": ("disagreement with the pruned branch", _number),
}
