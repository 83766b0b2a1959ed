"""Records of trials of a sweep, as if they had been trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.config.file import load_config
from pipeline.errors import ErrorReport
from pipeline.tune.space import (
    Params,
)
from pipeline.tune.trials import TrialRecord, Trials, trial_name

EPOCHS = 9


def config(*overrides: str) -> Config:
    return load_config(None, [f"train.epochs={EPOCHS}", *overrides])


def quality(params: Params) -> float:
    """A smooth landscape with its top at ratio 0.8 and temperature 0.2."""
    ratio = params.get("sdclr.prune_ratio", 0.8)
    temperature = params.get("sdclr.temperature", params.get("simclr.temperature", 0.2))
    return 0.9 - (ratio - 0.8) ** 2 - 0.05 * np.log(temperature / 0.2) ** 2


def record(
    number: int, params: Params, *, epochs: int = EPOCHS, method: Any = "sdclr", **changes: Any
) -> TrialRecord:
    top = quality(params)
    rows = [
        {"epoch": e, "fewshot": top * e / EPOCHS, "balance": 0.1 + 0.01 * number, "seconds": 1.0}
        for e in range(1, epochs + 1)
    ]
    status = "complete" if epochs == EPOCHS else "pruned"
    values: dict[str, Any] = {"status": status, "rows": rows, "seconds": float(epochs)}
    values |= {"role": "search", "seed": 0} | changes
    return TrialRecord(
        name=trial_name(method, number), method=method, number=number, params=params, **values
    )


def sweep_of(folder: Path, c: Config) -> Trials:
    """A finished search of both methods, some of it stopped or failed."""
    trials, rng = Trials(str(folder)), np.random.default_rng(1)
    for n in range(8):
        params: Params = {"sdclr.prune_ratio": float(rng.uniform(0.3, 0.98)),
                          "sdclr.temperature": float(np.exp(rng.uniform(-3, 0)))}  # fmt: skip
        trials.save(record(n, params, epochs=EPOCHS if n % 3 else 4))
    params = {"sdclr.prune_ratio": 0.97, "sdclr.temperature": 0.05}
    error = ErrorReport("TrainingError", "E-TRAIN-999", "loss nan", "", "", 6)
    trials.save(record(8, params, epochs=1, status="failed", error=error))
    for n in range(4):
        trials.save(record(n, {"simclr.temperature": 0.13 + 0.1 * n}, method="simclr"))
    return trials
