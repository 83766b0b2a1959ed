"""Time before the first step: `run.py --help`, and the parts of `run.py train`.

    python -m benchmarks.startup

The demo's data set, ResNet-8, one worker, Ray started on this machine. Parts are read from the
console's lines and from the time of the first step in the run's metrics.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.table import Row, main

_ROOT = Path(__file__).resolve().parent.parent
_RUN = [sys.executable, str(_ROOT / "pipeline" / "run.py")]
_REPEATS = 2


@dataclass(frozen=True)
class Timeline:
    """One `run.py train`.

    Args:
        start_s: wall clock when the process was started.
        lines: wall clock -> line of the console, in order.
        steps: the metrics lines of steps, in order.
        end_s: wall clock when the process had ended.
    """

    start_s: float
    lines: list[tuple[float, str]]
    steps: list[dict[str, float]]
    end_s: float

    def when(self, word: str) -> float:
        """Return the wall-clock time of the first line that has a word.

        Raises:
            LookupError: no line has it; with the whole output.
        """
        for time_s, line in self.lines:
            if word in line:
                return time_s
        raise LookupError(f"{word!r} in\n" + "\n".join(line for _, line in self.lines))


def run_stage(folder: Path, stage: str, *overrides: str) -> Timeline:
    """Run a stage of the demo below `folder`; overrides decide about the rest.

    Raises:
        RuntimeError: the stage failed; with what it said.
    """
    start_s = time.time()
    command = [*_RUN, stage, f"data.root={folder / 'data'}", f"run.root={folder / 'runs'}"]
    process = subprocess.Popen(
        [*command, "train.methods=[sdclr]", "train.workers=1", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=_ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    lines = [(time.time(), line.rstrip()) for line in process.stdout]
    if process.wait():
        raise RuntimeError("\n".join(line for _, line in lines))
    steps = []
    for file in folder.glob("runs/*/metrics.jsonl"):
        rows = map(json.loads, file.read_text().splitlines())
        steps += [row for row in rows if row["kind"] == "step"]
    return Timeline(start_s, lines, steps, time.time())


def rows() -> list[Row]:
    """Time --help and each part of the way to the first step."""
    help_s = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([*_RUN, "--help"], check=True, stdout=subprocess.DEVNULL)
        help_s.append(time.perf_counter() - start)
    parts: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        run_stage(Path(name), "ingest")
        for repeat in range(_REPEATS):
            t = run_stage(
                Path(name), "train", "train.epochs=1", "train.log_every_steps=1",
                f"run.name=start{repeat}",
            )  # fmt: skip
            newest = max(t.steps, key=lambda step: step["time_s"])
            first_s = newest["time_s"]
            marks = (
                ("to the first line: imports, configuration", t.when("connecting")),
                ("ray.init", t.when("this machine")),
                ("checks, with the import of torch", t.when("epochs,")),
                ("decoding, workers, set to the worker, first steps", first_s),
                ("export and end of the workers, Ray stopped", t.end_s),
            )
            before_s = t.start_s
            for part, until_s in marks:
                parts.setdefault(part, []).append(until_s - before_s)
                before_s = until_s
            parts.setdefault("all, to the first epoch", []).append(first_s - t.start_s)
    result = [Row(name="run.py --help", values=help_s, unit="s", target=1.5, at_most=True)]
    for part, values in parts.items():
        result.append(Row(name=f"run.py train, 1 worker: {part}", values=values, unit="s"))
    return result


if __name__ == "__main__":
    main(rows)
