"""The health of the features during training: rows of metrics.jsonl, and words for the console.

Only rank 0 looks; the other ranks wait for it at their next collective.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from pipeline.config import Config
from pipeline.console import Console
from pipeline.record.metrics import read_metrics
from sdclr import Images, Trainer
from sdclr.checkup import Checkup, alarms

NUM_IMAGES = 512
"""Images that are looked at; fewer when the set is smaller."""


class HealthLog:
    """Measures of one method, written as rows of kind "health".

    Args:
        config: the run's.
        method: the method with the features to measure.
        trainer: holds them.
        images: of the pre-training set; a fixed part of them is measured.
        run_uri: where the rows of a resumed run are.
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
        earlier = read_metrics(run_uri, kind="health", method=method)
        self._history: list[dict[str, Any]] = [row["measures"] for row in earlier]

    def is_due(self) -> bool:
        """Return whether the features are measured between the last step and the next."""
        step = self._trainer.step
        epochs_done, rest = divmod(step, self._trainer.steps_per_epoch)
        is_last = step == self._trainer.num_steps
        return is_last or (rest == 0 and epochs_done % self._config.health.every_epochs == 0)

    def row(self, *, epoch: int) -> dict[str, Any]:
        """Look now; the row for metrics.jsonl."""
        start_s = time.monotonic()
        measures = self._checkup(self._trainer.model)
        self._history.append(measures)
        return {
            "kind": "health",
            "stage": "train",
            "method": self._method,
            "seed": self._config.run.seed,
            "epoch": epoch,
            "step": self._trainer.step,
            "num_images": len(self._checkup.images),
            "measures": measures,
            "alarms": alarms(self._history),
            "wall_s": time.monotonic() - start_s,
            "time_s": time.time(),
        }


def tell(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Show the last measures of each method in one line."""
    for row in {row["method"]: row for row in rows}.values():
        known = {n: v for n, v in row["measures"].items() if v is not None and math.isfinite(v)}
        shown = [
            f"{label} {form(known[name])}"
            for name, (label, form) in _SHOWN.items()
            if name in known
        ]
        console.stage("health", f"{row['method']}: " + ", ".join(shown))


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
