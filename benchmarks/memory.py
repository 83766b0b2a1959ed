"""Peak memory and speed of a step with gradient caching beside one without, ResNet-18 32 px.

    python -m benchmarks.memory

Each step runs in a process of its own; what counts is how far its resident memory rises above what
the process held before the step: weights, momentum and views are there already.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.table import Row, main

NUM_IMAGES, MICRO_BATCH = 64, 8
_STEP = """
import resource, sys, time
import torch
from dataclasses import replace
from benchmarks.step import RECIPE, trainer
from sdclr import ImageSet

num_images, micro_batch = map(int, sys.argv[1:])
torch.set_num_threads(1)
images = ImageSet(torch.randint(0, 256, (num_images, 3, 32, 32), dtype=torch.uint8))
made, batch = trainer(replace(RECIPE, micro_batch=micro_batch or None), images)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made.update(batch)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
made.update(batch)
print(peak - before, time.process_time() - start)
"""


def _step(micro_batch: int) -> tuple[float, float]:
    """Return the KiB by which memory rises in a step, and CPU seconds of the next step."""
    arguments = [str(NUM_IMAGES), str(micro_batch)]
    done = subprocess.run(
        [sys.executable, "-c", _STEP, *arguments], check=True, capture_output=True, text=True
    )
    rise, spent = map(float, done.stdout.split())
    return rise, spent


def rows() -> list[Row]:
    """Measure both ratios, whole batch over chunks."""
    pairs = [(_step(0), _step(MICRO_BATCH)) for _ in range(3)]
    name = f"step, ResNet-18 32 px, batch {NUM_IMAGES} in chunks of {MICRO_BATCH}"
    versus = "whole batch at once"
    return [
        Row(
            name=f"{name}: memory saved",
            values=[whole[0] / chunks[0] for whole, chunks in pairs],
            unit="x",
            versus=versus,
        ),
        Row(
            name=f"{name}: memory of the step",
            values=[chunks[0] / 1024 for _, chunks in pairs],
            unit="MiB",
        ),
        Row(
            name=f"{name}: speed",
            values=[whole[1] / chunks[1] for whole, chunks in pairs],
            unit="x",
            versus=versus,
            note="6 / 8 = 0.75 by arithmetic",
        ),
    ]


if __name__ == "__main__":
    main(rows)
