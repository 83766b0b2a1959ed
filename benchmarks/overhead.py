"""Images per second of `run.py train` with one worker beside the bare loop of sdclr.

    python -m benchmarks.overhead

Same images, network, views and threads: the demo's set and ResNet-8, whose steps are so short that
anything added to them shows. The bare loop runs in a process without Ray, before and after.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.startup import run_stage
from benchmarks.table import Row, main

_EPOCHS, _EVERY, _REPEATS = 12, 2, 2
_TARGETS = {"host": 0.97, "none": 0.9}  # feed.cache -> share of the bare loop
_BARE = """
import sys, time
import torch
import sdclr
from pipeline import feed
from pipeline.model import build
from pipeline.config import Config
from pipeline.dataset.decoding import shard_items
from pipeline.dataset.manifest import read_manifest

uri, epochs, every, threads = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(threads)
config = Config.model_validate({"train": {"epochs": epochs, "workers": 1}})
manifest = read_manifest(uri)
decode = feed.decoder(config, uri, manifest)
items = shard_items(uri, manifest, ("pretrain",))
columns = ({key: [item[key]] for key in item} for item in items)
images = feed.SharedImages(map(decode, columns), manifest).to(torch.device('cpu'))
plan = feed.epoch_plan(config, manifest)
recipe = build.training_recipe(config, manifest, "sdclr")
network = build.new_network(config, "sdclr")
trainer = sdclr.Trainer(network, recipe, steps_per_epoch=plan.num_steps)
start = time.monotonic()
for report in trainer.run(images.feed(plan, seed=0)):
    if report.step % every == 0:
        now = time.monotonic()
        print(every * plan.global_batch / (now - start))
        start = now
"""


def _bare(uri: str, threads: int) -> float:
    """Return the median images per second of the bare loop, its first half left out."""
    arguments = [uri, str(_EPOCHS), str(_EVERY), str(threads)]
    done = subprocess.run(
        [sys.executable, "-c", _BARE, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    rates = [float(word) for word in done.stdout.split()]
    return statistics.median(rates[len(rates) // 2 :])


def rows() -> list[Row]:
    """Compare each way to feed with the mean of the bare loops on either side of the run."""
    threads = len(os.sched_getaffinity(0))
    rates: dict[str, list[float]] = {cache: [] for cache in _TARGETS}
    ratios: dict[str, list[float]] = {cache: [] for cache in _TARGETS}
    with tempfile.TemporaryDirectory() as name:
        made = run_stage(Path(name), "ingest")
        uri = next(line for _, line in made.lines if "data set:" in line).split()[-1]
        before = _bare(uri, threads)
        for repeat in range(_REPEATS):
            for cache in _TARGETS:
                rate = _run(Path(name), cache, f"{cache}-{repeat}")
                after = _bare(uri, threads)
                rates[cache].append(rate)
                ratios[cache].append(rate / ((before + after) / 2))
                before = after
    result = []
    for cache, target in _TARGETS.items():
        name = f"run.py train, ResNet-8 16 px, 1 worker, feed.cache={cache}"
        versus = "bare loop, images in memory"
        result += [
            Row(name=name, values=rates[cache], unit="images/s"),
            Row(name=name, values=ratios[cache], unit="x", versus=versus, target=target),
        ]
    return result


def _run(folder: Path, cache: str, name: str) -> float:
    """Return the median images per second of a run, its first half left out."""
    timeline = run_stage(
        folder, "train", f"train.epochs={_EPOCHS}", f"run.name={name}", f"feed.cache={cache}",
        f"train.log_every_steps={_EVERY}",
    )  # fmt: skip
    steps = [step for step in timeline.steps if step["time_s"] > timeline.start_s]
    return statistics.median(step["images_per_s"] for step in steps[len(steps) // 2 :])


if __name__ == "__main__":
    main(rows)
