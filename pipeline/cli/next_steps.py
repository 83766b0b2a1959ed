"""End of a command: what a run has written, where it is, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from pipeline import storage
from pipeline.console import Console, duration, program
from pipeline.record.folder import RunFolder, unfinished_methods
from pipeline.record.steps import outdated

_FILES = ("evaluation.json", "aggregate.json", "report.html", "mining.html", "curation.html")


def show_results(
    console: Console,
    folder: RunFolder,
    done_s: Mapping[str, float],
    *,
    again: str,
    is_labelled: bool,
) -> None:
    """Report the end of a run.

    Args:
        console: where to.
        folder: of the run.
        done_s: seconds of each stage that did its work.
        again: the words that make the same run with another seed; shown where one was trained.
        is_labelled: whether scores can be measured.
    """
    uri = folder.uri
    console.line("done: " + ", ".join(f"{name} {duration(s)}" for name, s in done_s.items()))
    console.line(f"  record      {uri}")
    for name in _FILES:
        if storage.exists(storage.join(uri, name)):
            console.line(f"  {name.partition('.')[0]:11s} {storage.join(uri, name)}")
    for method in folder.config.train.methods:
        models = storage.join(uri, "models", method)
        if not storage.exists(models):  # an evaluation without a training
            continue
        for name, file in (("checkpoint", "checkpoints"), ("backbone", "backbone.safetensors")):
            place = storage.join(models, file)
            if storage.exists(place):
                console.line(f"  {name:11s} {place}")
    console.line("next:")
    for name, words in next_steps(folder, is_labelled=is_labelled):
        console.line(f"  {name:14s} {program()} {words}")
    sheet = storage.join(uri, "mining", "annotate.csv")
    if storage.exists(sheet):
        console.line(f"  annotate       label the images of {sheet}")
    if storage.exists(storage.join(uri, "models")):
        console.line(f"  another seed   {program()} {again}")


def next_steps(folder: RunFolder, *, is_labelled: bool) -> list[tuple[str, str]]:
    """Return what can be done with this run, and the words for it, quoted for a shell.

    Args:
        folder: of the run.
        is_labelled: whether scores can be measured.
    """
    uri, quoted = folder.uri, shlex.quote(folder.uri)

    def there(*parts: str) -> bool:
        return storage.exists(storage.join(uri, *parts))

    is_trained = there("models")
    has_vectors = is_trained or there("embeddings")
    is_finished = not unfinished_methods(uri, folder.config.train.methods)
    late = outdated(uri, folder.config.train.methods)
    wanted = (  # name, stage, whether it applies, what it makes
        ("scores", "evaluate", is_trained and is_labelled, "evaluation.json"),
        ("page", "report", is_trained, "report.html"),
        ("rare images", "mine", has_vectors, "mining.json"),
        ("duplicates", "curate", has_vectors, "curation.json"),
        ("vectors", "embed", is_trained, "embeddings"),
        ("weights", "export", is_trained, "export"),
    )
    steps = [
        (name, f"{stage} --resume {quoted}")
        for name, stage, applies, made in wanted
        if applies and (stage in late or not there(made))
    ]
    if is_trained and not is_finished:
        steps.insert(0, ("finish it", f"--resume {quoted}"))
    elif is_trained:
        steps.append(("more epochs", f"train --extend {quoted} train.epochs=N"))
    if is_trained:
        steps.append(("compare", f"report {quoted} OTHER_RUN"))
    if folder.config.data.source in ("digits", "cifar10", "cifar100"):
        recipe = "--config tune_configs/photos_small.yaml data.path=FOLDER"
        steps.append(("your images", recipe))
    return steps
