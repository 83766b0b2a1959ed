"""End of a command: what a run has written, where it is, and what to type next."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline import storage
from pipeline.console import Console, duration, program
from pipeline.record.folder import RunFolder

_FILES = ("evaluation.json", "aggregate.json", "report.html", "mining.html")


def show_results(
    console: Console, folder: RunFolder, timings_s: Mapping[str, float], *, again: str
) -> None:
    """Report the end of a run.

    Args:
        console: where to.
        folder: of the run.
        timings_s: seconds of each stage.
        again: the words that make the same run with another seed.
    """
    uri = folder.uri
    console.line("done: " + ", ".join(f"{name} {duration(s)}" for name, s in timings_s.items()))
    console.line(f"  record      {uri}")
    for name in _FILES:
        if storage.exists(storage.join(uri, name)):
            console.line(f"  {name.partition('.')[0]:11s} {storage.join(uri, name)}")
    for method in folder.config.train.methods:
        models = storage.join(uri, "models", method)
        if not storage.exists(models):  # an evaluation without a training
            continue
        console.line(f"  checkpoint  {storage.join(models, 'checkpoints')}")
        console.line(f"  backbone    {storage.join(models, 'backbone.safetensors')}")
    console.line("next:")
    console.line(f"  another seed   {program()} {again}")
    console.line(
        f"  your images    {program()} data.source=folder data.path=FOLDER feed.canvas_px=64 "
        "augment.crop_px=32"
    )
    console.line(f"  photos, GPU    {program()} --config tune_configs/photos.yaml data.path=FOLDER")
    console.line(f"  all keys       {program()} --help-keys")
