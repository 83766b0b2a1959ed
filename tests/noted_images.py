"""`pipeline/run.py` whose workers train in float64 and note which images they took at each step.

    FOLDER/images/PID.jsonl     beside the folder of runs: a line for each step of a worker

In float32 a rounding that differs turns a ReLU over now and then, which moves the norm of the
gradient by 1e-4 and more. In float64 that practically never happens, so equal runs agree closely.

Run it as a script: Ray then passes its functions by value, and no worker has to import them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = "images"


def noting_worker(job: dict[str, Any]) -> dict[str, str | None]:
    """Train as the worker does, but in float64, and note the images of each step."""
    from pipeline.model import build
    from pipeline.train.worker import train_worker
    from sdclr import Trainer

    folder = Path(job["run_uri"]).parent.parent / FOLDER
    folder.mkdir(exist_ok=True)
    update, new_network = Trainer.update, build.new_network

    def noting(self: Trainer, batch: Any, **options: Any) -> Any:
        report = update(self, batch, **options)
        line = [self.step, time.time(), batch.start, batch.rows_B.tolist()]
        with open(folder / f"{os.getpid()}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        return report

    def in_float64(*args: Any, **options: Any) -> Any:
        return new_network(*args, **options).double()

    Trainer.update = noting  # type: ignore[method-assign]
    build.new_network = in_float64
    return train_worker(job)


class _Part(NamedTuple):
    step: int
    time_s: float
    start: int
    rows: list[int]


def taken(folder: Path) -> dict[int, list[int]]:
    """Return step -> the images of all ranks; a step that was made again counts as the last time.

    Its last line says how many ranks there were by then.
    """
    found = defaultdict[int, list[_Part]](list)
    for file in (folder / FOLDER).glob("*.jsonl"):
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # else its worker was killed meanwhile
                part = _Part(*json.loads(line))
                found[part.step].append(part)
    return {step: _of_all_ranks(parts) for step, parts in sorted(found.items())}


def _of_all_ranks(parts: list[_Part]) -> list[int]:
    newest = sorted(parts, key=lambda part: part.time_s)
    share = len(newest[-1].rows)
    last = {part.start: part.rows for part in newest if len(part.rows) == share}
    return [row for start in sorted(last) for row in last[start]]


def uneven(steps: Mapping[int, list[int]], *, per_epoch: int, num_images: int) -> list[str]:
    """Name the images of each whole epoch that came twice or not at all."""
    found = []
    for epoch in range(max(steps) // per_epoch):
        numbers = range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1)
        rows = [row for step in numbers for row in steps.get(step, [])]
        for image in range(num_images):
            if (times := rows.count(image)) != 1:
                found.append(f"epoch {epoch}: image {image} {times} times")
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from pipeline import run
    from pipeline.train import driver

    driver.train_worker = noting_worker
    run.program()
